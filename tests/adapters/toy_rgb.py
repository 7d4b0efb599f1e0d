"""A network for RGB images whose modes matter, and a set of images that it gets right but for one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.toys import images

CLASSES = 6
SHAPE = (3, 8, 8)


class RgbNet(nn.Module):
    """Convolution, batch norm, dropout, a frozen batch norm and a frozen weight; ``gain`` multiplies the logits.

    It raises in forward number ``fail_at``, counted from 1.
    """

    def __init__(self, *, gain: float = 1.0, fail_at: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5)
            self.frozen, self.head = nn.BatchNorm2d(6), nn.Linear(6 * 64, CLASSES)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self.gain, self.fail_at, self.calls = gain, fail_at, 0
        self.to(dtype)
        self.frozen.eval()
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("injected")
        x = self.frozen(self.drop(torch.tanh(self.norm(self.conv(x)))))
        logits: Tensor = self.gain * self.head(x.flatten(1))
        return logits


def examples(count: int = 12, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images, and the classes that RgbNet says, but for a wrong one in front."""
    clean = images(count, shape=SHAPE, dtype=dtype)
    with torch.no_grad():
        labels = RgbNet(dtype=dtype).eval()(clean).argmax(dim=1)
    labels[0] = (labels[0] + 1) % CLASSES
    return clean, labels
