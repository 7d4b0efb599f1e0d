"""Small networks that several test files use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """conv-bn-relu, conv-bn, projection shortcut: a ResNet basic block."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


class SmallNet(nn.Module):
    """Stem and three stages at 16x16, 16x16, 8x8, 4x4: four blocks by resolution are three."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = Residual(8, 8, 1)
        self.layer2 = Residual(8, 12, 2)
        self.layer3 = Residual(12, 16, 2)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class NoNorm(nn.Module):
    """conv-relu-pool, conv-relu: VGG as it was before batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with all parameters and statistics moved off their special values (1, 0), in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, object]:
    """All that a function which must not change a model could change in it."""
    return {
        "repr": repr(model),
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "ids": {key: id(value) for key, value in model.state_dict(keep_vars=True).items()},
        "training": [module.training for module in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._load_state_dict_pre_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "rng": torch.get_rng_state(),
    }


def same(before: dict[str, object], after: dict[str, object]) -> bool:
    """Whether two snapshots are bit-equal."""
    state_before, state_after = before["state"], after["state"]
    assert isinstance(state_before, dict) and isinstance(state_after, dict)
    return (
        all(before[key] == after[key] for key in ("repr", "ids", "training", "hooks", "attributes"))
        and all(torch.equal(state_before[key], state_after[key]) for key in state_before)
        and torch.equal(before["rng"], after["rng"])  # type: ignore[arg-type]
    )
