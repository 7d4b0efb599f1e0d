"""How a source relates to a target: what an attacker who has the source has of the target."""

from __future__ import annotations

import functools
import itertools
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import EnsembleSource
from dcn_plugin.engine import CompactModel
from dcn_plugin.evaluate.records import Relation
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["closest", "hidden_modules", "relation"]

_BY_CLOSENESS: tuple[Relation, ...] = ("same network", "other weights", "other masks", "other network")

#: Two networks that share this much of the smaller one's weights have a common part, such as a backbone.
_SHARED = 0.1
#: Names of classes that do nothing in eval mode.
_IDLE = re.compile(r"Identity|(?:Alpha|Feature)*Dropout\w*|DropPath|StochasticDepth")
#: What every module keeps in its attributes.
_STANDARD = frozenset(vars(nn.Module()))
#: Numbers of each tensor that are looked at before two tensors are compared in full.
_PROBE = 16
#: Numbers by which tensors are compared of which one may be the other in fewer bits.
_SAMPLE = 1 << 16


def relation(source: nn.Module, target: nn.Module) -> Relation:
    """How a source relates to a target, read off their structure, masks and weights.

    Names, wrappers, devices, dtypes and memory formats do not count: looked through are ``torch.compile``,
    ``DataParallel``, :class:`dcn_plugin.Normalized`, a compact model, ``nn.Sequential(normalize, net)`` and any other
    module around a network, also one that keeps it in a list, or in an object with a ``model``. Where either side
    holds several networks, as an ensemble does, the closest relation among them is that of the whole.

    Args:
        source: the network that was attacked.
        target: the network that was shown the images.

    Returns:
        "same network": the one holds all weights of the other, and the same masks. "other weights": the same structure
        and masks, or a shared part such as a backbone (a tenth of the weights or more). "other masks": the same
        structure or weights, with other masks. "other network": none of these.
    """
    if source is target:
        return "same network"
    ours, theirs = (list(_networks(_Part.of(model))) for model in (source, target))
    nearest: Relation = "other network"
    for first, second in itertools.product(ours, theirs):
        nearest = closest([nearest, _between(first, second)])
        if nearest == "same network":
            break
    return nearest


def closest(relations: Iterable[Relation]) -> Relation:
    """The closest of some relations, "same network" first; at least one."""
    return min(relations, key=_BY_CLOSENESS.index)


def hidden_modules(module: nn.Module) -> list[nn.Module]:
    """Modules that a module keeps in plain attributes, which ``children()`` does not know.

    Looked into are lists, tuples, sets and dicts, functions (what they are bound to or closed over), and the ``model``
    of other objects, such as a classifier of ART.
    """
    values = [value for name, value in vars(module).items() if name not in _STANDARD]
    return list(dict.fromkeys(hidden for value in values for hidden in _modules_in(value, depth=0)))


def _modules_in(value: object, *, depth: int) -> Iterator[nn.Module]:
    inner: Iterable[object] = ()
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple | set):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.MethodType):
        inner = [value.__self__]
    elif isinstance(value, types.FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType | Tensor):
        inner = [vars(value).get(name) for name in ("model", "_model")]
    if depth < 4:
        for item in inner:
            yield from _modules_in(item, depth=depth + 1)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _inside(model: nn.Module) -> nn.Module:
    """A model without its wrappers; of a compact model, the model it was made from."""
    while isinstance(model := network_in(model), CompactModel):
        model = model.origin
    return model


@dataclass(frozen=True, eq=False)
class _Part:
    """A module, and what lies within it.

    Args:
        module: the network inside its wrappers.
        parts: directly within it, lists and dicts of modules as their items.
        own: weights and masks of the module itself: parameters, and buffers that are no statistics of a normalisation.
    """

    module: nn.Module
    parts: tuple[_Part, ...]
    own: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: nn.Module, seen: set[int] | None = None) -> _Part:
        """Read a model. A hidden module is read where it is first met: it may well point back to the whole."""
        module, seen = _inside(model), set() if seen is None else seen
        if not {id(model), id(module)} <= seen:
            seen.update(id(part) for root in (model, module) for part in root.modules())
        hidden = [part for part in hidden_modules(module) if id(part) not in seen]
        seen.update(id(part) for root in hidden for part in root.modules())
        parts: list[_Part] = []
        for child in [*module.children(), *hidden]:
            part = cls.of(child, seen)
            parts += part.parts if isinstance(child, nn.ModuleList | nn.ModuleDict) else [part]
        buffers = [b for _, b in module.named_buffers(recurse=False) if _is_mask(b) or sum(n > 1 for n in b.shape) > 1]
        parameters = [p for _, p in module.named_parameters(recurse=False)]
        tensors = (t for t in (*parameters, *buffers) if not (nn.parameter.is_lazy(t) or t.is_meta) and t.numel())
        return cls(module, tuple(parts), tuple(tensors))

    @functools.cached_property
    def tensors(self) -> dict[int, Tensor]:
        """By id, all weights and masks in it, in the order of the modules."""
        by_id = {id(tensor): tensor for tensor in self.own}
        for part in self.parts:
            by_id |= part.tensors
        return by_id

    @functools.cached_property
    def weights(self) -> _Weights:
        """All weights."""
        return _Weights.of([tensor for tensor in self.tensors.values() if not _is_mask(tensor)])

    @property
    def masks(self) -> list[Tensor]:
        """All masks."""
        return [tensor for tensor in self.tensors.values() if _is_mask(tensor)]

    @property
    def width(self) -> int | None:
        """Outputs of the last layer."""
        shapes = [tensor.shape for tensor in self.tensors.values() if tensor.ndim > 1 and not _is_mask(tensor)]
        return shapes[-1][0] if shapes else None

    @functools.cached_property
    def structure(self) -> str:
        """The classes in it and what they print, without what does nothing in eval mode."""
        kind, about = type(self.module), self.module.extra_repr() if self.parts else repr(self.module)
        about = re.sub(r",? ?inplace=(?:True|False)", "", about)
        inner = [part.structure for part in self.parts if not _IDLE.fullmatch(type(part.module).__name__)]
        return f"{kind.__module__}.{kind.__qualname__}({about})[{', '.join(inner)}]"

    def smallest_with(self, wanted: Mapping[frozenset[int], int]) -> list[_Part]:
        """The smallest parts that hold this many tensors of each set of ids; none if the whole network does not."""
        if not all(len(ids & self.tensors.keys()) >= count for ids, count in wanted.items()):
            return []
        return [smallest for part in self.parts for smallest in part.smallest_with(wanted)] or [self]


@dataclass(frozen=True, eq=False)
class _Weights:
    """The weights of a network.

    Args:
        tensors: as they are.
        probes: float64 (weights, 16) on the CPU, a few numbers of each.
        telling: whether a tensor has more than one value; others, such as a new norm's ones, are met everywhere.
    """

    tensors: list[Tensor]
    probes: Tensor
    telling: list[bool]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> _Weights:
        probes = torch.zeros(len(tensors), _PROBE, dtype=torch.float64)
        for row, tensor in zip(probes, tensors, strict=True):
            sample = _sampled(_flat(tensor), _PROBE)
            row[: len(sample)] = sample
            row[len(sample) :] = sample[0]
        return cls(tensors, probes, (probes != probes[:, :1]).any(dim=1).tolist())

    @property
    def numbers(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.tensors)

    def met_in(self, other: _Weights) -> list[frozenset[int]]:
        """For each weight, the ids of those of another network that hold the same values."""
        places: dict[torch.Size, list[int]] = {}
        for place, tensor in enumerate(other.tensors):
            places.setdefault(tensor.shape, []).append(place)
        probes = {shape: other.probes[rows] for shape, rows in places.items()}
        matches = []
        for tensor, probe in zip(self.tensors, self.probes, strict=True):
            rows = places.get(tensor.shape, [])
            # The coarsest dtype there is; whoever passes is compared in full.
            near = torch.isclose(probes[tensor.shape], probe, rtol=0.3, atol=1e-3).all(dim=1).tolist() if rows else []
            candidates = [other.tensors[row] for row, passes in zip(rows, near, strict=True) if passes]
            matches.append(frozenset(id(candidate) for candidate in candidates if _equal(tensor, candidate)))
        return matches


def _networks(part: _Part) -> Iterator[_Part]:
    """The network within a model, and where that is an ensemble the networks within it."""
    while len(holding := [inner for inner in part.parts if inner.tensors]) == 1 and not part.own:
        (part,) = holding
    yield part
    # Stages and layers of a network differ in width, or end with a single layer.
    one_width = len({inner.width for inner in holding}) == 1
    alike = len(holding) > 1 and one_width and not part.own and all(inner.parts for inner in holding)
    if alike or isinstance(part.module, EnsembleSource):
        for inner in holding:
            yield from _networks(inner)


def _between(left: _Part, right: _Part) -> Relation:
    """The relation of two single networks."""
    small, large = sorted((left, right), key=lambda side: side.weights.numbers)
    alike, met = left.structure == right.structure, small.weights.met_in(large.weights)
    # Several weights of one value, such as new biases, must be met as often. A weight that is not met: never.
    parts = large.smallest_with(Counter(met))
    # Where no weight tells anything, as in a network without any, the structure must.
    if parts and (alike or any(small.weights.telling)):
        return "same network" if any(_same(small.masks, part.masks) for part in parts) else "other masks"
    rows = zip(small.weights.tensors, small.weights.telling, met, strict=True)
    shared = sum(tensor.numel() for tensor, telling, ids in rows if telling and ids)
    if alike or (shared and shared >= _SHARED * small.weights.numbers):
        return "other weights" if _same(left.masks, right.masks) else "other masks"
    return "other network"


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _sampled(flat: Tensor, count: int) -> Tensor:
    """At most this many numbers of a vector, spread evenly."""
    return flat[:: max(1, len(flat) // count)][:count]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, or one holds those of the other rounded to fewer bits."""
    if a is b or (a.dtype == b.dtype and torch.equal(a.detach(), b.detach().to(a.device))):
        return True
    if not (a.is_floating_point() and b.is_floating_point()):
        return False
    left, right = (_sampled(_flat(tensor), _SAMPLE).float().cpu() for tensor in (a, b))
    # The values of a half-precision file remain rounded when they are read back into float32.
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return any(torch.equal(left.to(kind), right.to(kind)) for kind in kinds)


def _same(masks: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(masks) == len(others) and all(
        mask.shape == other.shape and torch.equal(mask.cpu(), other.cpu())
        for mask, other in zip(masks, others, strict=True)
    )
