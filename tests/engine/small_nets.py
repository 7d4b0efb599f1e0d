"""Small networks with masks, one for each way in which values are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = (3, 9, 8)
"""Odd and not square."""


class Mask(nn.Module):
    """Multiplies with a fixed mask, in which a channel and a position are dead everywhere."""

    kept: Tensor

    def __init__(self, channels: int, height: int = 9, width: int = 8, *, keep: float = 0.4, seed: int) -> None:
        super().__init__()
        kept = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed)) < keep
        kept[:, -1], kept[..., 0, 0] = False, False
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept


def conv(inner: int, outer: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


class PostActivation(nn.Module):
    """conv-bn-mask-relu, conv-bn-mask, projection, sum, relu: a ResNet block; the mask before the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.mask1 = conv(3, 6), nn.BatchNorm2d(6), Mask(6, seed=1)
        self.conv2, self.bn2, self.mask2 = conv(6, 7), nn.BatchNorm2d(7), Mask(7, seed=2)
        self.conv3, self.bn3, self.mask3 = conv(3, 7, 1), nn.BatchNorm2d(7), Mask(7, seed=3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.mask1(self.bn1(self.conv1(x))))
        out = self.mask2(self.bn2(self.conv2(out)))
        out += self.mask3(self.bn3(self.conv3(x)))
        return self.relu(out)


class PreActivation(nn.Module):
    """bn-mask-relu-conv, twice, identity shortcut: batch norms that follow no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 5)
        self.bn1, self.mask1, self.conv1 = nn.BatchNorm2d(5), Mask(5, seed=4), conv(5, 5)
        self.bn2, self.mask2, self.conv2 = nn.BatchNorm2d(5), Mask(5, seed=5), conv(5, 5)
        self.bn3, self.mask3 = nn.BatchNorm2d(5), Mask(5, seed=6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv1(F.relu(self.mask1(self.bn1(x))))
        out = self.conv2(F.relu(self.mask2(self.bn2(out))))
        return F.relu(self.mask3(self.bn3(out + x)))


class DenseConcat(nn.Module):
    """DenseNet: each layer reads all before it, concatenated; one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask0 = conv(3, 4), Mask(4, seed=7)
        self.bn1, self.mask1, self.conv1 = nn.BatchNorm2d(4), Mask(4, seed=8), conv(4, 3)
        self.bn2, self.mask2, self.conv2 = nn.BatchNorm2d(7), Mask(7, seed=9), conv(7, 3)
        self.last = conv(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mask0(self.stem(x)))
        y = self.conv1(F.relu(self.mask1(self.bn1(x))))
        both = torch.cat([x, y], 1)
        z = self.conv2(F.relu(self.mask2(self.bn2(both))))
        return self.last(torch.cat([x, z, x, y], 1))


class MaxPooled(nn.Module):
    """VGG: conv-bn-mask-relu, max pool, conv-mask-relu, average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.mask1 = conv(3, 6), nn.BatchNorm2d(6), Mask(6, seed=10)
        self.conv2, self.mask2 = conv(6, 5), Mask(5, 5, 4, seed=11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.mask1(self.bn1(self.conv1(x)))), 2, ceil_mode=True)
        return F.avg_pool2d(F.relu(self.mask2(self.conv2(x))), 3, 2, 1)


class Gated(nn.Module):
    """Squeeze and excite: the gate multiplies each channel with a number between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1 = conv(3, 6), Mask(6, seed=12)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.conv2, self.mask2 = conv(6, 4), Mask(4, seed=13)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.mask1(self.conv1(x)))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return F.relu(self.mask2(self.conv2(x * gate)))


class Depthwise(nn.Module):
    """MobileNet: pointwise, depthwise with a stride, grouped; leaky and clipped activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1 = conv(3, 6, 1), Mask(6, seed=14)
        self.conv2, self.mask2 = conv(6, 6, 5, stride=2, groups=6), Mask(6, 5, 4, seed=15)
        self.conv3, self.mask3 = conv(6, 4, 3, groups=2), Mask(4, 5, 4, seed=16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.mask1(self.conv1(x)))
        x = F.relu6(self.mask2(self.conv2(x)))
        return F.hardtanh(self.mask3(self.conv3(x)))


class TwoConvsAdded(nn.Module):
    """Two convolutions and a third are summed, without and with a ReLU before the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1 = conv(3, 5), Mask(5, seed=17)
        self.conv2, self.mask2 = conv(3, 5, 1), Mask(5, seed=18)
        self.conv3, self.mask3 = conv(5, 5), Mask(5, seed=19)
        self.conv4, self.mask4 = conv(5, 5), Mask(5, seed=20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mask1(self.conv1(x)) + self.mask2(self.conv2(x)))
        return self.mask3(self.conv3(x)) + F.relu(self.mask4(self.conv4(x)))


class ReadTwice(nn.Module):
    """A convolution whose value is read before and after its mask, and added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1 = conv(3, 5), Mask(5, seed=21)
        self.conv2 = conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        masked = F.relu(self.mask1(x))
        return self.conv2(masked + masked) + x


class MaskedLast(nn.Module):
    """A mask behind a sum and an activation: rows are left behind, and the images have gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1 = conv(3, 5), Mask(5, keep=0.7, seed=22)
        self.mask2 = Mask(5, seed=23)
        self.mask3 = Mask(5, seed=24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mask2(F.relu(self.mask1(self.conv1(x))))
        return self.mask3(x.tanh()).sigmoid()


class ClippedAwayFromZero(nn.Module):
    """An activation that makes something of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1, self.conv2 = conv(3, 5), Mask(5, seed=25), conv(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.hardtanh(self.mask1(self.conv1(x)), 0.25, 2.0))


NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net
    for net in (
        PostActivation,
        PreActivation,
        DenseConcat,
        MaxPooled,
        Gated,
        Depthwise,
        TwoConvsAdded,
        ReadTwice,
        MaskedLast,
        ClippedAwayFromZero,
    )
}


OPERATIONS = (
    "mask",
    "mask",
    "conv",
    "conv",
    "depthwise",
    "norm",
    "relu",
    "leaky_relu",
    "silu",
    "tanh",
    "clip away from 0",
    "sigmoid",
    "add",
    "add",
    "cat",
    "gate",
    "scale",
    "shift",
    "max_pool",
    "avg_pool",
)


class Program(nn.Module):
    """Any sequence of operations.

    Args:
        lines: for each operation its name and the values it reads, counted from the last one backwards; the second is
            replaced by the nearest one of a shape that fits, if need be by the first itself.
    """

    def __init__(self, lines: Sequence[tuple[str, int, int]]) -> None:
        super().__init__()
        self.plan: list[tuple[str, int, int]] = []
        self.parts = nn.ModuleList()
        shapes = [SIZE]
        for number, (operation, first, second) in enumerate(lines):
            first = max(len(shapes) - 1 - first, 0)
            channels, height, width = shapes[first]
            fits = [
                at for at, one in enumerate(shapes) if one[operation == "cat" :] == shapes[first][operation == "cat" :]
            ]
            second = min(fits, key=lambda at: abs(at - (len(shapes) - 1 - second)))
            part: nn.Module = nn.Identity()
            if operation == "mask":
                part = Mask(channels, height, width, seed=number)
            elif operation == "conv":
                part = conv(channels, 4, 3 if number % 2 else 1)
                channels = 4
            elif operation == "depthwise":
                part = conv(channels, channels, 3, groups=channels)
            elif operation == "norm":
                part = nn.BatchNorm2d(channels)
            elif operation == "cat":
                channels += shapes[second][0]
            elif operation.endswith("pool"):
                height, width = (height + 1) // 2, (width + 1) // 2
            self.parts.append(part)
            self.plan.append((operation, first, second))
            shapes.append((channels, height, width))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (operation, at, second), part in zip(self.plan, self.parts, strict=True):
            first, other = values[at], values[second]
            if operation == "cat":
                value = torch.cat([first, other], 1)
            elif operation == "add":
                value = first + other
            elif operation == "gate":
                value = first * other
            elif operation == "scale":
                value = first * -0.5
            elif operation == "shift":
                value = first + 0.25
            elif operation == "clip away from 0":
                value = F.hardtanh(first, 0.25, 2.0)
            elif operation == "max_pool":
                value = F.max_pool2d(first, 3, 2, 1)
            elif operation == "avg_pool":
                value = F.avg_pool2d(first, 2, 2, ceil_mode=True)
            elif operation in ("mask", "conv", "depthwise", "norm"):
                value = part(first)
            else:
                value = getattr(F, operation)(first)
            values.append(value)
        # Two ends, so that more than the last chain counts.
        return torch.cat([values[-1].flatten(1), values[len(values) // 2].flatten(1)], 1)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A random network; no two are alike."""
    line = st.tuples(st.sampled_from(OPERATIONS), st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 5))
    return Program([("conv", 0, 0), ("mask", 0, 0), *draw(st.lists(line, min_size=2, max_size=9))])


def make(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of the list with random weights, biases of either sign and norms that are no identity."""
    return randomised(NETS[name](), seed=seed, dtype=dtype)


def randomised(net: nn.Module, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network itself, in evaluation mode, with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            fan_in = max(tensor[0].numel(), 1)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (fan_in**-0.5 if tensor.ndim > 1 else 0.5))
            if key.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return net.to(dtype).eval()


def pictures(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 3, 9, 8), standard normal."""
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
