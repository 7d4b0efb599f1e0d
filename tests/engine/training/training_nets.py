"""Small defective networks to train, and what a few steps leave in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

import dcn_plugin as dcn
from tests.engine.small_nets import conv
from tests.models.timm_checks import seeded
from tests.nets import NoNorm, Residual, SmallNet

SIZE = (3, 16, 16)


def mask(channels: int, side: int, site: int) -> dcn.DefectMask2d:
    return dcn.DefectMask2d((channels, side, side), dcn.MaskSpec(p=0.4), site=site)


class HandWritten(nn.Module):
    """Layers of the paper's kind, with and without a norm, a stride and a bias."""

    def __init__(self) -> None:
        super().__init__()
        shared: dict[str, Any] = {"p": 0.4, "seed": 3, "padding": 1}
        self.conv1 = dcn.DefectiveConv2d(3, 7, 3, output_size=16, site=0, norm=nn.BatchNorm2d(7), **shared)
        self.conv2 = dcn.DefectiveConv2d(7, 9, 3, 2, output_size=8, site=1, **shared)
        self.conv3 = dcn.DefectiveConv2d(
            9, 9, 3, output_size=8, site=2, groups=3, bias=False, norm=nn.BatchNorm2d(9, affine=False), **shared
        )
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        logits: Tensor = self.head((torch.relu(self.conv3(x)) + x).mean((2, 3)))
        return logits


class OneBlock(nn.Module):
    """A stem and a residual block with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6), nn.BatchNorm2d(6)
        self.layer1, self.fc = Residual(6, 8, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return logits


class Joined(nn.Module):
    """Values that are concatenated, gated, pooled, dropped out and read twice; a norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.mask1 = conv(3, 6), nn.BatchNorm2d(6), mask(6, 16, 1)
        self.conv2, self.mask2 = conv(6, 5, groups=1), mask(5, 16, 2)
        self.bn2, self.mask3, self.conv3 = nn.BatchNorm2d(11), mask(11, 16, 3), conv(11, 4)
        self.gate, self.gain = nn.Linear(4, 4), nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.conv4, self.bn4, self.mask4 = conv(4, 4), nn.BatchNorm2d(4), mask(4, 8, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.mask1(self.bn1(self.conv1(x))))
        x = torch.cat([x, torch.relu(self.mask2(self.conv2(x)))], 1)
        x = self.conv3(torch.relu(self.mask3(self.bn2(x))))
        x = x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None]
        x = torch.max_pool2d(x, 3, 2, 1)
        x = x + torch.relu(self.mask4(self.bn4(self.conv4(x)))) * self.gain
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def bottlenecks() -> nn.Module:
    """timm's ResNeXt, with a max-pool behind the stem, at 16x16."""
    return ResNet(
        Bottleneck, (1, 1, 1, 1), num_classes=5, cardinality=3, base_width=64, channels=(6, 6, 6, 6)
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "one block": lambda: defective(OneBlock()),
    "residual": lambda: defective(SmallNet()),
    "vgg": lambda: defective(NoNorm()),
    "bottleneck": lambda: defective(bottlenecks()),
    "hand-written": HandWritten,
    "joined": Joined,
}


def defective(plain: nn.Module, p: float = 0.4) -> nn.Module:
    """The network with masks behind all its convolutions."""
    return dcn.defectify(plain, p=p, blocks=["*"], input_size=SIZE)


def make(name: str = "one block", seed: int = 1) -> nn.Module:
    """A network of the list, in training mode, always the same."""
    with seeded(seed):
        return NETS[name]().train()


def fast_of(model: nn.Module, backend: str = "c", **options: Any) -> dcn.TrainingModel:
    """The model as it trains on rows."""
    return dcn.compact_training(model, backend=backend, input_size=SIZE, **options)  # type: ignore[arg-type]


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def loss_of(run: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Cross-entropy with labels that go round."""
    return nn.functional.cross_entropy(run(images), torch.arange(len(images)) % 5)


def gradients(run: nn.Module, images: Tensor, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Of the loss, by the names of the model that ``run`` runs."""
    model = model or getattr(run, "model", run)
    for parameter in model.parameters():
        parameter.grad = None
    loss_of(run, images).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def train(run: nn.Module, steps: int = 3, *, lr: float = 0.05) -> list[float]:
    """Losses of some steps of SGD with momentum."""
    optimizer = torch.optim.SGD(run.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(run, pictures(seed=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Every tensor, relative to its largest value; one that is rounding noise, to the largest of all."""
    assert actual.keys() == expected.keys()
    largest = max(float(value.detach().abs().max()) for value in expected.values() if value.is_floating_point())
    for name, value in expected.items():
        value = value.detach()
        if not value.is_floating_point():
            assert torch.equal(actual[name], value), name
            continue
        limit = tolerance * max(float(value.abs().max()), 1e-2 * largest)
        error = float((actual[name].detach() - value).abs().max())
        assert error <= limit, f"{name}: {error} > {limit}"


def twins(name: str = "one block") -> tuple[nn.Module, nn.Module]:
    """A network and its copy."""
    model = make(name)
    return model, copy.deepcopy(model)
