"""Which operations mix images: the proof against what an output says when the other image of its batch changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.engine import compaction as engine_model
from dcn_plugin.engine import ladder
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.mixing import check_graph, first_mixing
from dcn_plugin.errors import TraceError
from tests.engine.cases import needs_c
from tests.engine.compacted import LIMIT, choice_wins, error, rows_cost_nothing
from tests.engine.small_nets import Program, pictures, programs, randomised
from tests.models.timm_checks import seeded

SIZE = (3, 8, 6)


class Net(nn.Module):
    """A convolution and what is made of it, (N, 4, 8, 6)."""

    def __init__(self, then: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.then = then
        with seeded():
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.batch_norm = nn.BatchNorm2d(4, track_running_stats=False)
            self.norms = nn.ModuleDict(
                {
                    "running": nn.BatchNorm2d(4),
                    "instance": nn.InstanceNorm2d(4),
                    "group": nn.GroupNorm(2, 4),
                    "layer": nn.LayerNorm(6),
                }
            )
            self.linear = nn.Linear(6, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.conv(x))


APART: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "running statistics": lambda net, x: net.norms["running"](x.relu()),
    "instance norm": lambda net, x: net.norms["instance"](x),
    "group norm": lambda net, x: net.norms["group"](x),
    "layer norm": lambda net, x: net.norms["layer"](x),
    "linear, mean, softmax": lambda net, x: net.linear(x).mean(2).softmax(1),
    "groups folded into the batch": lambda net, x: x.reshape(-1, 2, 8, 6).softmax(1).view(x.shape[0], 4, 8, 6),
    "batch last": lambda net, x: x.permute(1, 2, 3, 0).mean(1).permute(2, 0, 1),
    "slices joined": lambda net, x: torch.cat([x[:, 2:], x[:, :2], x.chunk(2, 1)[0]], 1),
    "stacked": lambda net, x: torch.stack([x, x.flip(2)], 0).sum(0),
    "attention of positions": lambda net, x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3),
    "products of an image with itself": lambda net, x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "einsum": lambda net, x: torch.einsum("nchw,ndhw->ncd", x, x),
    "a token for each": lambda net, x: torch.cat([net.linear.bias.expand(x.shape[0], 1, 5), net.linear(x).mean(1)], 1),
    "gate": lambda net, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "pools": lambda net, x: F.adaptive_avg_pool2d(F.pad(F.max_pool2d(x, 2), (1, 1)), 1).flatten(1),
    "resized": lambda net, x: F.pixel_shuffle(F.interpolate(x, scale_factor=2.0, mode="bilinear"), 2),
}
MIXED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "batch statistics": lambda net, x: net.batch_norm(x),
    "mean of the batch": lambda net, x: x - x.mean(0),
    "mean of all": lambda net, x: x / x.abs().mean(),
    "softmax over images": lambda net, x: x.softmax(0),
    "largest of the batch": lambda net, x: x - x.amax((0, 2, 3), keepdim=True),
    "divided by the number of images": lambda net, x: x / x.shape[0],
    "place in the batch": lambda net, x: x + torch.arange(x.shape[0]).view(-1, 1, 1, 1),
    "images the other way round": lambda net, x: x + x.flip(0),
    "rolled": lambda net, x: x + x.roll(1, 0),
    "attention of images": lambda net, x: F.scaled_dot_product_attention(*[x.flatten(1)[None]] * 3)[0],
    "likeness of images": lambda net, x: (0.01 * x.flatten(1) @ x.flatten(1).T).softmax(1) @ x.flatten(1),
    "batch folded behind channels": lambda net, x: (
        net.linear(x).transpose(0, 1).reshape(4, -1).softmax(1).view(4, -1, 40).transpose(0, 1)
    ),
    "norm of a folded batch": lambda net, x: (
        F.group_norm(x.transpose(0, 1).reshape(1, 4, -1, 6), 2).view(4, -1, 8, 6).transpose(0, 1)
    ),
    "sorted": lambda net, x: x.sort(0).values,
    "sums so far": lambda net, x: x.cumsum(0),
    "pairs": lambda net, x: x.flatten(1)[None].sub(x.flatten(1)[:, None]).abs().sum(1),
    "einsum over images": lambda net, x: torch.einsum("nchw,mchw->nm", x, 0.01 * x).softmax(1) @ x.flatten(1),
    "minibatch deviation in groups": lambda net, x: x + x.view(min(x.shape[0], 4), -1, 4, 8, 6).std(0).mean(),
    "minibatch deviation": lambda net, x: x + x.std(0).mean(),
}


def depends_on_others(net: nn.Module, size: tuple[int, int, int] = SIZE) -> bool:
    """The slow oracle: change the first image of three and look at the answers for the others."""
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = images.clone()
    other[0] = 3 * other[0].flip(-1) + 1
    with torch.no_grad():
        one, two = net.double()(images), net(other)
    return not torch.allclose(one[1:], two[1:], rtol=1e-9)


@pytest.mark.parametrize("name", APART)
def test_operations_that_keep_images_apart_are_proven_to(name: str) -> None:
    found = first_mixing(capture(Net(APART[name]), SIZE).graph)
    assert found is None, found and found.target
    assert not depends_on_others(Net(APART[name]))


@pytest.mark.parametrize("name", MIXED)
def test_operations_that_mix_images_are_found(name: str) -> None:
    assert first_mixing(capture(Net(MIXED[name]), SIZE).graph) is not None
    assert depends_on_others(Net(MIXED[name])) or name in ("divided by the number of images", "place in the batch")


@settings(max_examples=15)
@given(net=programs())
def test_networks_of_layers_are_proven_whatever_their_order(net: Program) -> None:
    assert first_mixing(capture(randomised(net), tuple(pictures(1).shape[1:])).graph) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "then",
    [
        lambda net, x: x if x.shape[0] > 3 else 2 * x,
        lambda net, x: torch.cat([net.batch_norm(part) for part in x.split(2)]),
    ],
    ids=["branch", "ghost batch norm"],
)
def test_a_graph_that_holds_for_some_batch_sizes_alone_is_refused(then: Callable[[Net, Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match="depends on the number of images in the batch"):
        capture(Net(then), SIZE)


def test_numbers_are_the_second_line_behind_the_proof() -> None:
    images = torch.rand(4, *SIZE) * torch.rand(4, 1, 1, 1)
    apart, mixed = Net(APART["gate"]), Net(MIXED["batch statistics"])
    assert check_graph(apart, apart, images, exact=True)
    assert not check_graph(mixed, mixed, images, exact=True)
    with pytest.raises(TraceError, match="something else"):
        check_graph(apart, mixed, images, exact=True)
    assert check_graph(apart, mixed, images, exact=False)


def defective(then: Callable[[Net, Tensor], Tensor]) -> nn.Module:
    return dcn.defectify(Net(then), p=0.3, blocks=["conv"], input_size=SIZE).eval()


def rows_always_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that runs on rows were twice as fast: batches are cut wherever they may be."""
    rows_cost_nothing(monkeypatch)
    monkeypatch.setattr(ladder, "raced", choice_wins)


@needs_c
def test_a_batch_that_the_network_keeps_apart_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_always_win(monkeypatch)
    assert dcn.compact(defective(APART["gate"]), batch_size=8).plan.chunks


@needs_c
@pytest.mark.parametrize("name", ["batch statistics", "softmax over images", "mean of the batch"])
def test_a_batch_that_the_network_mixes_is_never_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_always_win(monkeypatch)
    model = defective(MIXED[name])
    made = dcn.compact(model, batch_size=8)
    assert made.plan.backend == "c" and made.plan.chunks == ()
    assert "Batches are not cut: aten." in made.plan.note
    images = torch.rand(9, *SIZE) * torch.rand(9, 1, 1, 1)
    assert error(made, model, images) < LIMIT


@needs_c
def test_numbers_that_differ_are_enough_not_to_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_always_win(monkeypatch)
    monkeypatch.setattr(engine_model, "first_mixing", lambda graph: None)
    made = dcn.compact(defective(MIXED["batch statistics"]), batch_size=4)
    assert made.plan.backend == "c" and made.plan.chunks == ()
    assert "Batches are not cut" in made.plan.note
