"""A block on rows equals PyTorch on images: outputs, every gradient, running statistics."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.engine import native
from dcn_plugin.engine.row_layout import Geometry, number_rows
from dcn_plugin.engine.training.block import Norm, NormKind, RowsBlock
from dcn_plugin.errors import CompactError
from tests.engine.cases import Layer, make_layer, needs_c, rows_of

TOLERANCE = 1e-5
"""Relative to the largest value, or to 1 where all are smaller: what is drawn is standard normal."""

BATCHES = (1, 2, 15, 16, 17, 37, 64, 65, 130)
NAMES = ("x", "residual", "weight", "bias", "gamma", "beta")

pytestmark = needs_c


@dataclass(frozen=True, eq=False)
class Case:
    """A layer, its norm, and the tensors of one call; a statistic is None where the norm keeps none."""

    layer: Layer
    norm: Norm
    relu: bool
    tensors: dict[str, Tensor | None]
    statistics: tuple[Tensor | None, Tensor | None]

    def block(self, backend: str, *, relu: bool | None = None) -> RowsBlock:
        return RowsBlock(
            *self.layer.indexes,
            tuple(self.layer.weight.shape),  # type: ignore[arg-type]
            self.layer.geometry,
            self.norm,
            relu=self.relu if relu is None else relu,
            backend=backend,
        )

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another precision."""
        tensors = {name: None if value is None else value.to(dtype) for name, value in self.tensors.items()}
        mean, var = (None if value is None else value.to(dtype) for value in self.statistics)
        return replace(self, tensors=tensors, statistics=(mean, var))


def make_case(
    layer: Layer, kind: NormKind = "batch", *, affine: bool = True, tracked: bool = True, eps: float = 0.1
) -> Case:
    """A case with random parameters of the norm."""
    outputs = len(layer.weight)
    generator = torch.Generator().manual_seed(outputs)

    def values(*, positive: bool = False) -> Tensor:
        drawn = torch.randn(outputs, generator=generator)
        return drawn.abs() + 0.5 if positive else drawn

    normed = kind != "none"
    tensors = {
        "x": rows_of(layer.images, layer.in_live).contiguous(),
        "residual": None if layer.residual is None else rows_of(layer.residual, layer.residual_live).contiguous(),  # type: ignore[arg-type]
        "weight": layer.weight,
        "bias": layer.bias if layer.bias.any() else None,
        "gamma": values() if normed and affine else None,
        "beta": values() if normed and affine else None,
    }
    kept = normed and (tracked or kind == "running")
    statistics = (values(), values(positive=True)) if kept else (None, None)
    return Case(layer, Norm(kind, 0.3, eps), layer.relu, tensors, statistics)


@dataclass(frozen=True)
class Outcome:
    """What a call and its backward pass leave."""

    out: Tensor
    grads: dict[str, Tensor | None]
    statistics: tuple[Tensor | None, Tensor | None]


def run(case: Case, backend: str, grad: Tensor, *, relu: bool | None = None) -> Outcome:
    """Call the block and go back from ``grad``; the case is left as it is."""
    case = copy.deepcopy(case)
    leaves = {name: None if value is None else value.clone().requires_grad_() for name, value in case.tensors.items()}
    out = case.block(backend, relu=relu)(*(leaves[name] for name in NAMES), *case.statistics)
    asked = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    grads = torch.autograd.grad(out, list(asked.values()), grad, allow_unused=True)
    return Outcome(out.detach(), dict(zip(asked, grads, strict=True)), case.statistics)


def upstream(case: Case) -> Tensor:
    rows = int(case.layer.out_live.sum())
    return torch.randn(rows, case.layer.images.shape[0], generator=torch.Generator().manual_seed(1))


def expected(case: Case, grad: Tensor, out: Tensor) -> Outcome:
    """The reference in float64. At a ReLU the float32 output says which side a value is on: near 0 both are right."""
    exact = case.to(torch.float64)
    through = grad.double() * (out > 0) if case.relu else grad.double()
    outcome = run(exact, "reference", through, relu=False)
    return replace(outcome, out=outcome.out.relu()) if case.relu else outcome


def assert_near(name: str, actual: Tensor | None, wanted: Tensor | None, *, tolerance: float = TOLERANCE) -> None:
    if wanted is None or actual is None:
        assert actual is None or not actual.any(), name
        assert wanted is None or not wanted.any(), name
        return
    assert actual.shape == wanted.shape and actual.dtype == torch.float32, name
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(
        actual.double(), wanted, rtol=0, atol=tolerance * max(largest, 1.0), msg=lambda text: f"{name}: {text}"
    )


def assert_right(case: Case, outcome: Outcome, wanted: Outcome, *, tolerance: float = TOLERANCE) -> None:
    assert_near("out", outcome.out, wanted.out, tolerance=tolerance)
    for name in outcome.grads:
        if name == "bias" and case.norm.kind in ("batch", "live"):
            # Subtracted again by the norm: exactly 0 here, rounding noise there.
            assert not outcome.grads[name].any()  # type: ignore[union-attr]
            assert wanted.grads[name].abs().max() < 1e-9 * (1 + len(wanted.out) * wanted.out.shape[1])  # type: ignore[union-attr]
        else:
            assert_near(name, outcome.grads[name], wanted.grads[name], tolerance=tolerance)
    for name, actual, right in zip(("mean", "variance"), outcome.statistics, wanted.statistics, strict=True):
        assert_near(name, actual, right, tolerance=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any block whose output has a position, and whose norm has more than a single value a channel."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 2), (1, 3)]))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = (draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1])))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = (max(reach[0], 2) + draw(st.integers(0, 3)), max(reach[1], 2) + draw(st.integers(0, 3)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    share = st.sampled_from([0.0, 0.1, 0.4, 0.8, 1.0])
    layer = make_layer(
        kernel=kernel,
        size=size,
        inputs=draw(st.sampled_from([1, 2, 3, 7])),
        outputs=draw(st.sampled_from([1, 2, 5, 13, 17, 33]) if groups == 1 else st.integers(1, 7)),
        groups=groups,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 2))),
        padding=padding,
        dilation=dilation,
        densities=(draw(share), draw(share), draw(st.none() | share)),
        relu=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch=draw(st.sampled_from(BATCHES)),
        seed=draw(st.integers(0, 2**16)),
    )
    kind: NormKind = draw(st.sampled_from(["none", "running", "batch", "live"]))
    if kind == "batch" and layer.kept[0].numel() * len(layer.images) == 1:
        kind = "running"
    return make_case(layer, kind, affine=draw(st.booleans()), tracked=draw(st.booleans()))


@settings(max_examples=60)
@given(cases())
def test_outputs_gradients_and_statistics_are_those_of_the_dense_masked_layer(case: Case) -> None:
    grad = upstream(case)
    outcome = run(case, "c", grad)
    assert_right(case, outcome, expected(case, grad, outcome.out))


@pytest.mark.parametrize("kind", ["none", "running", "batch", "live"])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_size_with_every_norm(batch: int, kind: NormKind) -> None:
    layer = make_layer(densities=(0.4, 0.5, 0.6), batch=batch, relu=True, outputs=19, inputs=5)
    case = make_case(layer, kind)
    grad = upstream(case)
    outcome = run(case, "c", grad)
    assert_right(case, outcome, expected(case, grad, outcome.out))


@pytest.mark.parametrize("size", [8, 4, 1])
@pytest.mark.parametrize("batch", [3, 16, 37, 65])
def test_every_vector_width_gives_the_same_up_to_rounding(
    batch: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size > native.lanes():
        pytest.skip(f"this machine's vectors hold {native.lanes()} values")
    monkeypatch.setattr(native, "lanes", lambda: size)
    for kind in ("batch", "live"):
        layer = make_layer(densities=(0.4, 0.5, 0.6), batch=batch, relu=True, outputs=11, inputs=7)
        case = make_case(layer, kind)  # type: ignore[arg-type]
        grad = upstream(case)
        outcome = run(case, "c", grad)
        assert_right(case, outcome, expected(case, grad, outcome.out))


@pytest.fixture
def threads() -> object:
    """Gives the number of threads back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [5, 40, 130])
def test_any_number_of_threads_is_right_and_the_same_number_gives_the_same_bits(batch: int, threads: object) -> None:
    case = make_case(make_layer(size=(9, 8), densities=(0.4, 0.5, 0.6), batch=batch, relu=True, outputs=19, inputs=5))
    grad = upstream(case)
    for count in (1, 2, 3, 8):
        threads(count)  # type: ignore[operator]
        first, second = run(case, "c", grad), run(case, "c", grad)
        assert_right(case, first, expected(case, grad, first.out))
        assert torch.equal(first.out, second.out)
        assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)  # type: ignore[arg-type]
        assert all(map(torch.equal, first.statistics, second.statistics))  # type: ignore[arg-type]


def test_windows_of_more_rows_than_the_first_cache_holds_are_summed_in_parts() -> None:
    layer = make_layer(kernel=(5, 5), padding=(2, 2), inputs=40, outputs=7, size=(5, 4), densities=(0.9, 0.7, 0.5))
    for batch in (3, 17, 70, 130):
        generator = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 40, 5, 4, generator=generator)
        residual = torch.randn(batch, 7, 5, 4, generator=generator)
        case = make_case(replace(layer, images=images, residual=residual, weight=layer.weight / 30))
        grad = upstream(case)
        outcome = run(case, "c", grad)
        assert_right(case, outcome, expected(case, grad, outcome.out))


@pytest.mark.parametrize("kind", ["batch", "live"])
@pytest.mark.parametrize("outlier", ["first image", "first position", "offset", "constant"])
def test_statistics_are_exact_where_single_values_lie_far_off(outlier: str, kind: NormKind) -> None:
    layer = make_layer(size=(9, 9), densities=(1.0, 0.9, None), batch=64, inputs=3, outputs=4, bias=False)
    images = layer.images.clone()
    if outlier == "first image":
        images[0] *= 1000
    elif outlier == "first position":
        images[0, :, 0, 0] *= 1000
    elif outlier == "offset":
        images += 100
    else:
        images[:] = 0.7 + images * 1e-3
    case = make_case(replace(layer, images=images), kind, eps=1e-5)
    outcome = run(case, "c", upstream(case))
    wanted = run(case.to(torch.float64), "reference", upstream(case).double())
    plain = run(case, "reference", upstream(case))
    for name, actual, right, theirs in zip(
        ("mean", "variance", "out"),
        (*outcome.statistics, outcome.out),
        (*wanted.statistics, wanted.out),
        (*plain.statistics, plain.out),
        strict=True,
    ):
        error, usual = ((value.double() - right).abs().max() / right.abs().max() for value in (actual, theirs))  # type: ignore[union-attr]
        assert error <= 10 * usual + 1e-6, (name, float(error), float(usual))


def test_a_channel_that_the_mask_keeps_nowhere_keeps_its_statistics_and_gives_no_nan() -> None:
    layer = make_layer(densities=(0.5, 0.5, 0.5), batch=6)
    kept = layer.kept.clone()
    kept[1] = False
    case = make_case(replace(layer, kept=kept), "live")
    outcome = run(case, "c", upstream(case))
    assert outcome.statistics[0][1] == case.statistics[0][1]  # type: ignore[index]
    assert outcome.statistics[1][1] == case.statistics[1][1]  # type: ignore[index]
    assert all(value.isfinite().all() for value in (outcome.out, *outcome.grads.values()))  # type: ignore[union-attr]
    assert not outcome.grads["gamma"][1] and not outcome.grads["weight"][1].any()  # type: ignore[index]


def test_no_number_hides_one_that_is_none() -> None:
    case = make_case(make_layer(densities=(0.8, 0.8, None), batch=5, relu=True), "none")
    case.tensors["x"][3, 2] = torch.nan  # type: ignore[index]
    ours, theirs = (run(case, backend, upstream(case)).out for backend in ("c", "reference"))
    assert ours[:, 2].isnan().any() and not ours[:, [0, 1, 3, 4]].isnan().any()
    assert (ours.isnan() <= theirs.isnan()).all()  # where a dead weight is multiplied with it, images have more of them


def test_a_norm_of_a_single_value_is_refused_as_by_pytorch() -> None:
    layer = make_layer(kernel=(1, 1), padding=(0, 0), size=(1, 1), densities=(1.0, 1.0, None), batch=1)
    for backend in ("c", "reference"):
        case = make_case(layer)
        before = copy.deepcopy(case.statistics)
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            case.block(backend)(*(case.tensors[name] for name in NAMES), *case.statistics)
        assert all(map(torch.equal, before, case.statistics))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "running", "batch", "live"])
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_alone_is_what_it_is_with_all_others(wanted: str, kind: NormKind) -> None:
    case = make_case(make_layer(densities=(0.5, 0.5, 0.5), batch=9, relu=True), kind)
    if case.tensors[wanted] is None:
        pytest.skip("there is no norm")
    grad = upstream(case)
    every = run(case, "c", grad)
    leaf = case.tensors[wanted].clone().requires_grad_()  # type: ignore[union-attr]
    values = {**case.tensors, wanted: leaf}
    out = case.block("c")(*(values[name] for name in NAMES), *copy.deepcopy(case.statistics))
    (alone,) = torch.autograd.grad(out, leaf, grad)
    assert_near(wanted, alone, every.grads[wanted].double())  # type: ignore[union-attr]


def test_a_gradient_of_a_gradient_is_refused_by_name_and_the_reference_has_it() -> None:
    case = make_case(make_layer(densities=(0.5, 0.5, None), batch=3), "none")
    for backend in ("c", "reference"):
        x = case.tensors["x"].clone().requires_grad_()  # type: ignore[union-attr]
        weight = case.tensors["weight"].clone().requires_grad_()  # type: ignore[union-attr]
        values = {**case.tensors, "x": x, "weight": weight}
        out = case.block(backend)(*(values[name] for name in NAMES), None, None).square().sum()
        if backend == "c":
            with pytest.raises(CompactError, match="no gradient of a gradient"):
                torch.autograd.grad(out, x, create_graph=True)
        else:
            (grad,) = torch.autograd.grad(out, x, create_graph=True)
            (second,) = torch.autograd.grad(grad.square().sum(), weight)
            assert second.abs().max() > 0


def test_a_weight_that_is_written_between_the_passes_is_noticed() -> None:
    case = make_case(make_layer(densities=(0.5, 0.5, None), batch=3))
    weight = case.tensors["weight"].clone().requires_grad_()  # type: ignore[union-attr]
    values = {**case.tensors, "weight": weight}
    out = case.block("c")(*(values[name] for name in NAMES), *case.statistics)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("backend", ["c", "reference"])
def test_a_batch_without_images_gives_rows_without_images(backend: str) -> None:
    case = make_case(make_layer(densities=(0.5, 0.5, None), batch=0), "none")
    outcome = run(case, backend, upstream(case))
    assert outcome.out.shape == (int(case.layer.out_live.sum()), 0)
    assert not outcome.grads["weight"].any()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["none", "running", "batch", "live"])
def test_the_reference_has_the_gradients_of_its_function(kind: NormKind) -> None:
    layer = make_layer(
        kernel=(2, 2), size=(3, 3), inputs=1, outputs=2, groups=2, densities=(0.7, 0.6, 0.5), batch=3, relu=True
    )
    case = make_case(layer, kind).to(torch.float64)
    block = case.block("reference")
    present = [name for name in NAMES if case.tensors[name] is not None]

    def call(*values: Tensor) -> Tensor:
        named = {**dict.fromkeys(NAMES), **dict(zip(present, values, strict=True))}
        out: Tensor = block(*(named[name] for name in NAMES), *copy.deepcopy(case.statistics))
        return out

    leaves = [case.tensors[name].clone().requires_grad_() for name in present]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(call, leaves)


def test_rows_that_nobody_reads_have_no_gradient() -> None:
    layer = make_layer(densities=(1.0, 0.5, 1.0), batch=4)
    in_index, out_index, kept, residual_index = layer.indexes
    live = torch.rand(layer.in_live.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    holes = torch.where(live, in_index, -1)  # what a mask leaves behind: the rows are there, unread
    assert residual_index is not None
    added = torch.where(out_index % 3 == 0, -1, residual_index)
    case = make_case(layer)
    leaves = {name: value.clone().requires_grad_() for name, value in case.tensors.items() if value is not None}
    grads = {}
    for backend in ("c", "reference"):
        block = RowsBlock(
            holes, out_index, kept, added, tuple(layer.weight.shape), Geometry(padding=(1, 1)), case.norm,  # type: ignore[arg-type]
            relu=False, backend=backend,
        )  # fmt: skip
        out = block(*(leaves.get(name) for name in NAMES), *copy.deepcopy(case.statistics))
        grads[backend] = torch.autograd.grad(out, [leaves["x"], leaves["residual"]], upstream(case))
    for ours, theirs in zip(*grads.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert not grads["c"][0][in_index[~live].long()].any()
    assert torch.equal(number_rows(layer.out_live), out_index)
