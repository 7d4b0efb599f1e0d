"""compact() as a user meets it: the same outputs and gradients, a snapshot, and errors that say what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine import compaction as engine_model
from dcn_plugin.engine import ladder, native
from dcn_plugin.engine.clock import Compared
from dcn_plugin.engine.ladder import Ladder, Rung
from dcn_plugin.engine.packed_conv import IMAGES_CONV
from dcn_plugin.errors import CompactError, InputSizeError, NotDefectiveError, SpecError, TraceError
from tests.engine.cases import BACKENDS, needs_c
from tests.engine.compacted import (
    LIMIT,
    SIZE,
    assert_close,
    assert_equal_and_defective,
    created,
    error,
    images,
    input_gradient,
    randomised,
    rows,
    rows_cost_nothing,
    small,
    through_pickle,
)
from tests.models.timm_checks import seeded
from tests.nets import NoNorm, snapshot

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def compact(model: nn.Module) -> dcn.CompactModel:
    return dcn.compact(model, backend="reference")


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: "it was not compiled")


# --- the same outputs

# The paper's nets, shortened to one layer of each kind, at width 16; and timm's.
PAPER: dict[str, dict[str, Any]] = {
    "resnet18_cifar": {},
    "resnet50_cifar": {"layers": (2, 1, 1, 2)},
    "densenet121_cifar": {"layers": (2, 1, 1, 2)},
    "senet18_cifar": {},
    "vgg19_cifar": {},
    "wrn32_4_cifar": {"layers": (2, 1, 2)},
}
FAST_PAPER = ("resnet50_cifar", "densenet121_cifar")
TIMM = (
    "resnet18",
    "resnetv2_50",
    "regnetx_002",
    "regnety_002",
    "vgg11_bn",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "convnext_atto",
    "densenet121",
)


def engine() -> str:
    """The fastest backend that runs here."""
    return "reference" if native.native_problem() else "c"


@pytest.mark.parametrize("name", [name if name in FAST_PAPER else pytest.param(name, marks=slow) for name in PAPER])
def test_a_net_of_the_paper_keeps_its_outputs(name: str) -> None:
    model = created(f"defective_{name}", width=16, p=0.1, blocks="paper", **PAPER[name])
    compact = dcn.compact(model, backend=engine())  # type: ignore[arg-type]
    assert rows(compact)
    assert_equal_and_defective(compact, model, images(2, (3, 32, 32)))


@slow
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("name", PAPER)
def test_a_whole_net_of_the_paper_keeps_its_outputs(name: str, p: float, backend: Any) -> None:
    model = created(f"defective_{name}", width=16, p=p, blocks="paper")
    assert_equal_and_defective(dcn.compact(model, backend=backend), model, images(5, (3, 32, 32)))


@slow
@pytest.mark.parametrize("name", TIMM)
def test_a_timm_net_keeps_its_outputs(name: str) -> None:
    # Depthwise and grouped convolutions, squeeze-and-excite, silu and hardswish, pre-activation, LayerNorm.
    model = created(f"defective_{name}", img_size=32, p=0.3, num_classes=7)
    compact = dcn.compact(model, backend=engine())  # type: ignore[arg-type]
    assert rows(compact)
    assert_equal_and_defective(compact, model, images(2, (3, 32, 32)))


@slow
@pytest.mark.parametrize("name", TIMM)
def test_a_timm_net_keeps_its_outputs_under_auto(name: str) -> None:
    model = created(f"defective_{name}", img_size=32, p=0.3, num_classes=7)
    compact = dcn.compact(model)
    for count in (1, 3, 40):
        assert error(compact, model, images(count, (3, 32, 32))) < LIMIT


MODES: dict[str, dict[str, Any]] = {
    "neuron": {},
    "channel": {"p": 0.5},
    "shared": {},
    "hole": {"span": 2},
    "nm": {"p": 0.25, "span": 4},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_its_outputs(mode: str) -> None:
    model = small(mode=mode, **MODES[mode])
    compact = dcn.compact(model, backend=engine())  # type: ignore[arg-type]
    assert rows(compact) == ["stem.0", "body.0", "body.3", "side.0", "last"]
    assert_equal_and_defective(compact, model, images())


@pytest.mark.parametrize("p", [0.01, 0.7])
def test_few_and_many_neurons_keep_their_outputs(p: float) -> None:
    model = small(p=p, mode="neuron", seed=2)
    assert_equal_and_defective(dcn.compact(model, backend=engine()), model, images())  # type: ignore[arg-type]


def test_a_model_that_keeps_every_neuron_keeps_its_outputs() -> None:
    model = small(p=1.0)
    made = dcn.compact(model, backend="reference")
    assert error(made, model, images()) < LIMIT
    # And multiplies nothing by ones.
    masks = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)
    assert not any(node.target in masks for node in made.on_images.graph.nodes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_every_batch_size_gives_the_models_outputs(count: int, backend: Any, model: nn.Module) -> None:
    made, given = dcn.compact(model, backend=backend), images(count)
    assert made.plan.backend == backend
    torch.testing.assert_close(made(given), model(given).detach(), rtol=LIMIT, atol=1e-5)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=slow), 40])
def test_auto_gives_the_models_outputs_at_every_batch_size(batch_size: int, model: nn.Module) -> None:
    before = torch.get_rng_state()
    made = dcn.compact(model, batch_size=batch_size)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.plan.batch_size == batch_size
    for count in (1, 3, 40, 67):
        assert error(made, model, images(count)) < LIMIT


def test_float64_is_exact_on_the_reference() -> None:
    model = small(torch.float64)
    made = dcn.compact(model, backend="reference")
    assert rows(made)
    assert error(made, model, images().double()) < 1e-12


def test_normalisation_and_bias_go_along() -> None:
    with seeded():
        model = dcn.Normalized(NoNorm(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    model.model = dcn.defectify(model.model, blocks=["features.*"], p=0.3, input_size=(3, 16, 16))
    model.eval()
    made = dcn.compact(model, backend=engine())  # type: ignore[arg-type]
    assert rows(made) == ["model.features.0", "model.features.3"]
    assert_equal_and_defective(made, model, images(3, (3, 16, 16)))


class ByHand(nn.Module):
    """The layers for networks written from scratch: grouped, dilated, with and without norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = dcn.DefectiveConv2d(3, 8, 3, padding=1, output_size=(12, 12), site=0, norm=nn.BatchNorm2d(8))
        self.conv2 = dcn.DefectiveConv2d(8, 8, 3, 2, 2, dilation=2, groups=4, output_size=(6, 6), site=1, mode="shared")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))
        return logits


def by_hand() -> nn.Module:
    with seeded():
        return randomised(ByHand())


def test_a_network_written_by_hand_keeps_its_outputs() -> None:
    model = by_hand()
    made = dcn.compact(model, backend=engine(), input_size=SIZE)  # type: ignore[arg-type]
    assert rows(made) == ["conv1", "conv2"]
    assert error(made, model, images()) < LIMIT
    masks = [one for one in model.modules() if isinstance(one, dcn.DefectMask2d)]
    for mask in masks:
        mask.mask.fill_(True)
    assert error(made, model, images()) > 10 * LIMIT


def test_the_memory_format_of_the_images_does_not_matter(model: nn.Module, compact: dcn.CompactModel) -> None:
    given = images()
    for same in (
        given.contiguous(memory_format=torch.channels_last),
        given.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert error(compact, model, same) < LIMIT
    assert torch.equal(given, images())


# --- gradients


def test_the_input_gradient_is_the_models_in_float64() -> None:
    model = small(torch.float64)
    made, given = dcn.compact(model, backend="reference"), images().double()
    expected = input_gradient(model, given)
    assert_close(input_gradient(made, given), expected, 1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("auto", marks=slow)])
def test_the_input_gradient_is_the_models_in_float32(backend: Any, model: nn.Module) -> None:
    expected = input_gradient(model, images())
    found = input_gradient(dcn.compact(model, backend=backend), images())
    assert_close(found, expected)


def test_a_model_that_was_made_and_run_under_inference_mode_still_has_gradients(model: nn.Module) -> None:
    with torch.inference_mode():
        made = dcn.compact(model, backend=engine())  # type: ignore[arg-type]
        torch.testing.assert_close(made(images()), model(images()), rtol=LIMIT, atol=1e-5)
    assert_close(input_gradient(made, images()), input_gradient(model, images()))


# --- the choice


def test_the_model_is_not_changed(model: nn.Module) -> None:
    before = snapshot(model)
    dcn.compact(model, backend=engine())  # type: ignore[arg-type]
    after = snapshot(model)
    for what in ("repr", "ids", "training", "hooks", "attributes"):
        assert after[what] == before[what], what
    assert all(torch.equal(after["state"][key], value) for key, value in before["state"].items())  # type: ignore[index,attr-defined]
    assert torch.equal(after["rng"], before["rng"])  # type: ignore[arg-type]


class Judge:
    """Compares calls in place of the clock: each way through a model has a time, whatever the machine does.

    Args:
        times: way -> milliseconds of an image; "rows" is any graph but that on images, with rows or packed weights.
    """

    def __init__(self, times: dict[str, float]) -> None:
        self.times = times
        self.asked: list[tuple[str, str, int]] = []

    def __call__(self, plain: Any, other: Any, given_images: Tensor, **_: Any) -> Compared:
        one, two, count = self.kind(plain), self.kind(other), len(given_images)
        for run in (plain, other):
            run(given_images)
        self.asked.append((one, two, count))
        return Compared(self.times[one] / self.times[two], count * self.times[one], count * self.times[two])

    @staticmethod
    def kind(run: Any) -> str:
        if isinstance(run, fx.GraphModule):
            targets = {node.target for node in run.graph.nodes}
            return "images" if IMAGES_CONV not in targets else "rows"
        return "model" if isinstance(run, nn.Module) else "rows"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judge]:
    """As if every layer promised much on rows, and whole models took as long as the test says."""

    def rig(**times: float) -> Judge:
        judge = Judge(times)
        rows_cost_nothing(monkeypatch)
        monkeypatch.setattr(ladder, "raced", judge)
        return judge

    return rig


@needs_c
def test_a_plan_that_was_slower_is_not_kept_and_nor_are_its_lists(
    model: nn.Module, lists: Callable[[], int], judged: Callable[..., Judge]
) -> None:
    # The layers on their own promise much; the whole does not keep it.
    judged(model=1.0, images=0.5, rows=0.49)
    made = dcn.compact(model)
    assert made.plan.backend == "dense"
    assert not rows(made)
    assert not lists()
    assert (made.plan.dense_ms, made.plan.compact_ms) == (64.0, 32.0)
    assert made.plan.ways == ((1, "images"),)
    assert "Rows would take 31.36 ms a batch, images take 32.00 ms" in made.plan.note
    assert "skips dead neurons" not in str(made.plan)
    assert error(made, model, images()) < LIMIT


@needs_c
def test_where_nothing_is_faster_the_model_runs_as_it_is(
    model: nn.Module, lists: Callable[[], int], judged: Callable[..., Judge]
) -> None:
    judged(model=1.0, images=1.01, rows=2.0)
    made = dcn.compact(model)
    assert made.plan.ways == ((1, "model"),)
    assert not lists()
    assert made.plan.dense_ms == made.plan.compact_ms == 64.0
    for count in (0, 1, 5):
        assert torch.equal(made(images(count)), model(images(count)))
    # It is frozen, a snapshot, and travels along.
    assert not made(images()).requires_grad
    assert made.as_it_is is not None and not any(one.requires_grad for one in made.as_it_is.parameters())
    assert_close(input_gradient(made, images()), input_gradient(model, images()))
    assert torch.equal(through_pickle(made)(images()), made(images()))


@needs_c
@hypothesis.given(
    times=st.fixed_dictionaries(
        {way: st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0]) for way in ("model", "images", "rows")}
    )
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_way_that_lost_on_the_whole_model_is_handed_out(
    times: dict[str, float], model: nn.Module, judged: Callable[..., Judge]
) -> None:
    judge = judged(**times)
    made = dcn.compact(model, batch_size=8)
    handed = {"model": "model", "images": "images", "compact": "rows"}
    for count in range(10):
        way = handed[made.plan.way(count)]
        if way == "rows" and made.plan.backend == "dense":
            way = "images"
        assert times[way] <= times["model"], (made.plan.ways, judge.asked)
        # Between the sizes that were raced the model runs unless another way is faster by a reserve.
        if count in made.plan.raced:
            assert times[way] <= 1.05 * times["images"] or times["images"] > times["model"], (count, made.plan.ways)
    assert made.plan.dense_ms == 8 * times["model"]


@needs_c
def test_each_batch_runs_as_was_found_for_its_size(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Rung(1, ("model",), {"model": 1.0, "images": 1.2, "compact": 2.0}, one_thread=True),
        Rung(2, ("images", "model"), {"model": 1.5, "images": 1.0, "compact": 2.0}, one_thread=True),
        Rung(4, ("compact", "images", "model"), {"model": 2.0, "images": 1.5, "compact": 0.5}, one_thread=True),
        Rung(8, ("compact", "model"), {"model": 4.0, "images": 4.0, "compact": 1.0}, one_thread=True),
    ]
    rows_cost_nothing(monkeypatch)
    monkeypatch.setattr(engine_model, "climb", lambda *_, **__: Ladder(found, True, True))
    made = dcn.compact(model, batch_size=8)
    assert made.plan.ways == ((1, "model"), (2, "images"), (4, "compact"))
    assert made.plan.least_batch == 4
    assert (made.plan.dense_ms, made.plan.compact_ms) == (4.0, 1.0)
    assert "Made on a busy machine" in str(made.plan)
    assert "raced at batches of 1, 2, 4, 8" in str(made.plan)
    calls: list[str] = []
    made.on_rows.register_forward_hook(lambda *_: calls.append("rows"))
    made.on_images.register_forward_hook(lambda *_: calls.append("images"))
    assert made.as_it_is is not None
    made.as_it_is.register_forward_hook(lambda *_: calls.append("model"))
    for count in (1, 2, 3, 4, 9):
        assert error(made, model, images(count)) < LIMIT
        made(images(count).requires_grad_())
    # Of 9 images one is left over; without a gradient rows run in kept memory, which the hook does not see.
    assert calls == [*["model"] * 2, *["images"] * 4, "rows", "model", "rows", "model"]


@needs_c
def test_a_batch_is_cut_into_pieces_that_were_raced(model: nn.Module, judged: Callable[..., Judge]) -> None:
    judge = judged(model=3.0, images=2.0, rows=1.0)
    made = dcn.compact(model, batch_size=8)
    assert "8, 4, 2, 1 images at a time" in str(made.plan)
    assert {count for *_, count in judge.asked} == {1, 4, 8} == set(made.plan.raced)
    assert made.plan.ways == ((1, "compact"),)
    assert made.plan.parts(13) == [(8, "compact"), (4, "compact"), (1, "compact")]
    assert error(made, model, images(13)) < LIMIT
    assert_close(input_gradient(made, images(13)), input_gradient(model, images(13)))


# --- budget


def test_layers_beyond_the_budget_stay_on_images_and_the_plan_says_so(model: nn.Module) -> None:
    whole = dcn.compact(model, backend="reference").plan
    largest = max(layer.packed_bytes for layer in whole.layers)
    made = dcn.compact(model, backend="reference", max_packed_bytes=largest - 1)
    assert 0 < made.plan.packed_bytes < largest
    left = [layer for layer in made.plan.layers if layer.backend == "dense"]
    assert left and all("max_packed_bytes" in layer.reason for layer in left)
    assert_equal_and_defective(made, model, images())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_budget_that_no_layer_meets_is_refused(backend: Any, model: nn.Module) -> None:
    with pytest.raises(CompactError, match=r"budget.*Got: 0.*max_packed_bytes >= \d"):
        dcn.compact(model, backend=backend, max_packed_bytes=0)


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "cuda"}, "Unknown backend"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"max_packed_bytes": -1}, "max_packed_bytes"),
        ({"max_packed_bytes": 1e9}, "max_packed_bytes"),
    ],
)
def test_an_argument_out_of_range_is_refused(options: dict[str, Any], said: str, model: nn.Module) -> None:
    with pytest.raises(SpecError, match=said):
        dcn.compact(model, **options)


def test_a_model_in_training_mode_is_refused_whatever_part_of_it_is() -> None:
    model = small()
    model.body.train()
    with pytest.raises(CompactError, match=r"training mode.*'body'.*eval\(\)"):
        dcn.compact(model)
    with pytest.raises(CompactError, match="'Plain'"):
        dcn.compact(model.train())


def test_a_model_without_masks_is_refused(model: nn.Module) -> None:
    with pytest.raises(NotDefectiveError, match="Plain"):
        dcn.compact(dcn.undefectify(model))


def test_a_compact_model_is_not_made_compact_again(compact: dcn.CompactModel) -> None:
    with pytest.raises(CompactError, match="already"):
        dcn.compact(compact)
    again = dcn.compact(compact.origin, backend="reference")
    assert torch.equal(again(images()), compact(images()))


def test_a_network_written_by_hand_needs_the_size_of_its_images_and_another_one_a_right_one(model: nn.Module) -> None:
    with pytest.raises(InputSizeError, match="input_size="):
        dcn.compact(by_hand())
    with pytest.raises(InputSizeError, match=r"\(3, 16, 16\).*\(3, 12, 12\)"):
        dcn.compact(model, input_size=(3, 16, 16))
    with pytest.raises(TraceError, match="defect mask"):
        dcn.compact(by_hand(), input_size=(3, 16, 16))


@pytest.mark.parametrize("backend", ["auto", "reference", "c"])
def test_float16_on_the_cpu_is_refused(backend: Any) -> None:
    with pytest.raises(CompactError, match=r"float16.*model\.float\(\)"):
        dcn.compact(small(torch.float16), backend=backend)


def test_float64_is_refused_by_name_and_runs_on_images_under_auto() -> None:
    model = small(torch.float64)
    with pytest.raises(CompactError, match=r"'c'.*float32.*float64"):
        dcn.compact(model, backend="c")
    made = dcn.compact(model)
    assert made.plan.backend == "dense"
    assert "float64" in made.plan.note
    assert error(made, model, images().double()) < 1e-12


def test_a_model_in_two_dtypes_is_refused(model: nn.Module) -> None:
    mixed = copy.deepcopy(model)
    mixed.head.double()
    with pytest.raises(CompactError, match="several dtypes"):
        dcn.compact(mixed)


def test_without_a_kernel_auto_runs_on_images_and_says_so(no_kernel: None, model: nn.Module) -> None:
    made = dcn.compact(model)
    assert made.plan.backend == "dense"
    assert "it was not compiled" in made.plan.note and made.plan.note in str(made.plan)
    assert error(made, model, images()) < LIMIT
    with pytest.raises(CompactError, match=r"'c' cannot be used here: it was not compiled"):
        dcn.compact(model, backend="c")


def test_triton_is_refused_on_the_cpu(model: nn.Module) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton may run here")
    with pytest.raises(CompactError, match="'triton' cannot be used here"):
        dcn.compact(model, backend="triton")


class Branching(nn.Module):
    """Does what its input says: no graph has that."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits if x.sum() > 0 else -logits


def test_a_model_that_has_no_graph_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match="cannot follow Branching"):
        dcn.compact(Branching().eval())


@needs_c
def test_the_default_dtype_is_no_matter_of_the_engine(model: nn.Module) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        fast = dcn.compact(model, batch_size=2, use_cache=False)
        assert error(fast, model, images(2).float()) < LIMIT
    finally:
        torch.set_default_dtype(before)
