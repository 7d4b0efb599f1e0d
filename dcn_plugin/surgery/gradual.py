"""Gradual defects: the masks of a network start with all neurons and let them die a few at a time.

Masks of one stream are nested: a neuron is kept while its draw is below a border that falls with p. So p can fall from
1 to its goal, no dead neuron comes back, and the last masks are bit-equal to those that :func:`dcn_plugin.defectify`
makes at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dcn_plugin.errors import CheckpointError, MaskLostError, MaskStateError, SpecError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.specs import DefectSpec, MaskSpec
from dcn_plugin.support.arguments import check_choice, check_count, check_number
from dcn_plugin.surgery.queries import check_model, expected_sites, masks_of
from dcn_plugin.surgery.wrappers import bare_name, network_in

__all__ = ["GradualDefects", "GradualOrder", "GradualSchedule"]

GradualSchedule = Literal["linear", "cosine"]
GradualOrder = Literal["together", "bottom-up"]


class GradualDefects:
    """Let the neurons of a defective network die a few at a time while it is trained.

    The network is made defective as ever. This object gives its masks all their neurons back, and takes them away again
    from step to step, until the masks are bit for bit what they were. Mask buffers are changed in place; no parameter
    is touched. Meanwhile :func:`dcn_plugin.defect_spec`, :func:`dcn_plugin.summary` and
    :func:`dcn_plugin.save_checkpoint` say the keep probabilities of the masks as they are.

    Args:
        model: defective, wrapped or not; its masks are those that their seeds give. It is changed in place.
        steps: number of :meth:`step` after which the masks are those of the goal, >= 1.
        goal: None: the masks that ``model`` has. A keep probability below that of its masks, or the
            :class:`dcn_plugin.DefectSpec` of a network that differs in p alone: from the masks it has down to those.
        start: keep probability before the first step; None: 1 without a goal, else what the masks have.
        schedule: how p falls: "linear", or "cosine", slowly at both ends.
        order: "together", or "bottom-up": one block after another from the input upwards, each in an equal share of the
            steps.
        total_steps: steps of the whole training, where they are known: ``steps`` may not be more.

    Raises:
        NotDefectiveError: ``model`` carries no masks.
        MaskLostError: a mask is gone.
        MaskStateError: its masks came from a state dict, or were changed by hand: no draws say which neurons die first.
        SpecError: an argument is not usable, p would rise, or the network is at its goal already. The network is
            unchanged after any of these.

    Example:
        >>> gradual = GradualDefects(net, steps=4)
        >>> for _ in range(4):
        ...     gradual.step()  # in front of the forward pass of a training step
        ...     print(f"{dcn.defect_spec(net).p:.3f}")
        0.875
        0.750
        0.625
        0.500

    Source: the masks are the paper's; that they come gradually is ours. (Zhu and Gupta 2017, arXiv 1710.01878, prune
    weights so, by size; here the seed says which neurons go.)
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        goal: float | DefectSpec | None = None,
        start: float | None = None,
        schedule: GradualSchedule = "linear",
        order: GradualOrder = "together",
        total_steps: int | None = None,
    ) -> None:
        self._steps = check_count(steps, "number of steps of gradual defects")
        if total_steps is not None and self._steps > check_count(total_steps, "number of steps of the training"):
            raise SpecError(
                "The schedule of gradual defects is longer than the training.",
                self._steps,
                f"at most total_steps={total_steps}",
                "the masks of the goal should also be trained with: half of the steps is a good start",
            )
        check_choice("schedule of gradual defects", schedule, GradualSchedule)
        check_choice("order of gradual defects", order, GradualOrder)
        masks = _masks(model)
        goals = _goals(masks, goal)
        begin = _start(masks, goals, goal, start)
        self._schedule, self._order = schedule, order
        moving = {name: mask for name, mask in masks.items() if begin[name] != goals[name].p}
        blocks = dict.fromkeys(masks, 0) | (_blocks(moving) if order == "bottom-up" else {})
        last = max(blocks.values())
        # Whatever can go wrong has gone wrong before the first mask is changed.
        self._falls = {
            name: _Fall(mask, goals[name], begin[name], first=blocks[name] / (last + 1), width=1 / (last + 1))
            for name, mask in masks.items()
        }
        self._taken, self._share = 0, 0.0
        for fall in self._falls.values():
            fall.open()
        self.set(0.0)

    @property
    def share(self) -> float:
        """Share of the way that is done: 0 at the start, 1 at the goal."""
        return self._share

    @property
    def done(self) -> bool:
        """Whether the masks are those of the goal."""
        return self._share == 1

    def step(self) -> None:
        """Go one step on; at the goal nothing happens any more. Call it in front of a training step's forward pass."""
        self._taken += 1
        if not self.done:
            self.set(min(1.0, self._taken / self._steps))

    def jump(self, taken: int) -> None:
        """Stand where so many calls of :meth:`step` lead, e.g. after a resume: dead neurons may come back.

        Args:
            taken: number of steps, >= 0.

        Raises:
            SpecError: it is no such number.
        """
        self._taken = check_count(taken, "number of steps taken", least=0)
        self.set(min(1.0, self._taken / self._steps))

    def set(self, share: float) -> None:
        """Stand at a share of the way, for a schedule of your own.

        Args:
            share: in [0, 1], of the time; ``schedule`` and ``order`` say where p is then.

        Raises:
            SpecError: it is out of range.
        """
        share = _check_share(share)
        specs: dict[tuple[MaskSpec, float], MaskSpec] = {}
        for fall in self._falls.values():
            fall.to(share, self._schedule, specs)
        self._share = share

    def follow(self, copy: nn.Module) -> None:
        """Keep the masks of a copy at the same place, e.g. of an average of the weights.

        Averages copy the bits of masks, but not what a mask says about itself: without this a checkpoint of the average
        cannot be saved.

        Args:
            copy: of the network, wrapped or not, e.g. ``ema.module``.

        Raises:
            NotDefectiveError, MaskStateError: it has other masks.
        """
        masks = _masks(copy)
        theirs = {name: _identity(mask) for name, mask in masks.items()}
        ours = {name: _identity(fall.masks[0]) for name, fall in self._falls.items()}
        if theirs != ours:
            raise MaskStateError(
                f"This {type(copy).__name__} is no copy of the network with gradual defects: it has other masks.",
                sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))[:3],
                "masks of the same places, shapes and seeds",
                "pass a copy of the network, e.g. ema.module",
            )
        for name, mask in masks.items():
            self._falls[name].add(mask)
        self.set(self._share)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from, as plain values."""
        return {"taken": self._taken, "share": self._share, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, before or after the network loads its own state.

        Raises:
            CheckpointError: it is no such state, or one of another schedule; nothing is changed.
        """
        here = self._settings()
        if not isinstance(state, Mapping) or not {"taken", "share"} <= state.keys():
            raise CheckpointError("This is no state of gradual defects.", state, "what state_dict() returned")
        there = {key: value for key, value in state.items() if key not in ("taken", "share")}
        if there != here:
            raise CheckpointError(
                "The state is one of other gradual defects.",
                {key: there.get(key) for key in here if there.get(key) != here[key]},
                str({key: here[key] for key in here if there.get(key) != here[key]}),
                "build GradualDefects with the arguments of the run that is to go on",
            )
        share = _check_share(state["share"])
        self._taken = check_count(state["taken"], "number of steps taken", least=0)
        for fall in self._falls.values():
            fall.open()  # the network may have loaded any bits
        self.set(share)

    def _settings(self) -> dict[str, Any]:
        places = {name: [fall.start, fall.goal.p, fall.goal.seed] for name, fall in self._falls.items()}
        return {"steps": self._steps, "schedule": self._schedule, "order": self._order, "masks": places}


class _Fall:
    """The way of one site's mask, and of its copies, from the start to the goal.

    Args:
        mask: of the network.
        goal: what its mask shall be.
        start: keep probability at the start.
        first: share of the whole way at which its own begins.
        width: share of the whole way that its own takes.
    """

    def __init__(self, mask: DefectMask2d, goal: MaskSpec, start: float, *, first: float, width: float) -> None:
        self.masks, self.goal, self.start = [mask], goal, start
        self._first, self._width = first, width
        self._draws = mask.draws()
        values = mask.laid_out(self._draws.values.expand(mask.shape)).flatten().numpy()
        mortal = np.flatnonzero(values >= self._draws.border(goal.p))
        # The largest draw dies first; of equal draws (a whole channel) the order does not matter: they go together.
        mortal = mortal[np.argsort(-values[mortal], kind="stable")]
        self._heights = -values[mortal]  # ascending, for searchsorted
        self._mortal = mortal
        self._offsets: dict[tuple[torch.device, tuple[int, ...]], torch.Tensor] = {}
        self._dead = 0

    def open(self) -> None:
        """Give every neuron back."""
        self._dead = 0
        for mask in self.masks:
            self._write(mask, goes=0)

    def add(self, mask: DefectMask2d) -> None:
        """Let one more mask go this way."""
        if all(mask is not other for other in self.masks):
            self.masks.append(mask)
        self._write(mask, goes=self._dead)

    def to(self, share: float, schedule: GradualSchedule, specs: dict[tuple[MaskSpec, float], MaskSpec]) -> None:
        """Stand at a share of the whole way; ``specs`` keeps what sites have in common."""
        # The last of several ways ends with the whole one, however their shares are rounded.
        done = 1.0 if share == 1 else min(1.0, max(0.0, (share - self._first) / self._width))
        p = self._p(done, schedule)
        spec = self.goal
        if p != spec.p:
            spec = specs.get((self.goal, p)) or specs.setdefault((self.goal, p), dataclasses.replace(self.goal, p=p))
        dead = int(np.searchsorted(self._heights, -self._draws.border(p), side="right"))
        if dead != self._dead:
            for mask in self.masks:
                self._put(mask, min(dead, self._dead), max(dead, self._dead), lives=dead < self._dead)
            self._dead = dead
        for mask in self.masks:
            mask.spec = spec

    def _p(self, done: float, schedule: GradualSchedule) -> float:
        if done == 1:
            return self.goal.p
        fallen = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        p = self.start + (self.goal.p - self.start) * fallen
        if self.goal.span is None or self.goal.mode != "nm":
            return p
        # A pattern n:m has a mask at whole n alone: it waits for the next one.
        return max(self.goal.pattern[0], math.ceil(p * self.goal.span - 1e-9)) / self.goal.span

    def _write(self, mask: DefectMask2d, *, goes: int) -> None:
        """Write all bits of a mask anew."""
        mask.mask.fill_(True)
        self._put(mask, 0, goes, lives=False)
        mask.origin = "sampled"

    def _put(self, mask: DefectMask2d, first: int, last: int, *, lives: bool) -> None:
        bits = mask.mask
        kind = bits.device, bits.stride()
        if kind not in self._offsets:  # in memory, whatever its format is: views cost less than indices by dimension
            places = np.unravel_index(self._mortal, tuple(bits.shape))
            offsets = sum(place * stride for place, stride in zip(places, bits.stride(), strict=True))
            self._offsets[kind] = torch.from_numpy(np.asarray(offsets, dtype=np.int64)).to(bits.device)
        # In place. Not put_, which torch refuses under deterministic algorithms.
        memory = bits.as_strided((bits.numel(),), (1,))
        memory.index_fill_(0, self._offsets[kind][first:last], lives)


def _check_share(given: object) -> float:
    share = check_number(given, "share of the way")
    if not 0 <= share <= 1:
        raise SpecError("The share of the way is out of range.", given, "a number in [0, 1]")
    return share


def _identity(mask: DefectMask2d) -> tuple[object, ...]:
    """What a mask and its copies have in common, whatever p they are at."""
    return mask.shape, mask.layout, mask.site, dataclasses.replace(mask.spec, p=1.0)


def _masks(model: nn.Module) -> dict[str, DefectMask2d]:
    check_model(model)
    network = network_in(model)
    masks = {bare_name(path): mask for path, mask in masks_of(network).items()}
    if (lost := len(expected_sites(network)) - len(masks)) > 0:
        raise MaskLostError(
            f"{lost} sites of this {type(network).__name__} have no mask any more.",
            len(masks),
            "a mask at every site of its specification",
            "undo the conversion that dropped them",
        )
    return masks


def _goals(masks: Mapping[str, DefectMask2d], goal: float | DefectSpec | None) -> dict[str, MaskSpec]:
    for name, mask in masks.items():
        if mask.origin == "loaded" or not torch.equal(mask.seeded(), mask.mask.cpu()):
            raise MaskStateError(
                "Masks that came from a state dict, or were changed by hand, cannot come gradually: no draws of theirs "
                "say which neuron dies first.",
                name,
                "masks as their seeds give them",
                "load weights without masks into a network that defectify() made",
            )
    if goal is None:
        return {name: mask.spec for name, mask in masks.items()}
    if not isinstance(goal, DefectSpec):
        return {name: dataclasses.replace(mask.spec, p=goal) for name, mask in masks.items()}
    sites = {site.name: site.mask for site in goal.sites}
    wanted = {name: sites.get(mask.site_spec.name) if mask.site_spec else None for name, mask in masks.items()}
    goals = {name: spec for name, spec in wanted.items() if spec is not None}
    other = [
        name
        for name, mask in masks.items()
        if name not in goals or dataclasses.replace(goals[name], p=mask.spec.p) != mask.spec
    ]
    if other or len(sites) != len(masks):
        raise SpecError(
            "The goal is the specification of a network with other masks.",
            other[:3] or {"sites of the goal": len(sites), "masks of the network": len(masks)},
            "the same sites, mode, sampling, seed and span; other keep probabilities",
            "make the goal's network with the same blocks=, mode=, sampling=, seed= and span=",
        )
    return goals


def _start(
    masks: Mapping[str, DefectMask2d],
    goals: Mapping[str, MaskSpec],
    goal: float | DefectSpec | None,
    start: float | None,
) -> dict[str, float]:
    """The keep probability that each mask starts at."""
    if start is None:
        begin = {name: 1.0 if goal is None else mask.spec.p for name, mask in masks.items()}
    else:
        begin = dict.fromkeys(masks, MaskSpec(start).p)
    if rising := [name for name in masks if begin[name] < goals[name].p]:
        raise SpecError(
            "The keep probability of gradual defects would rise: dead neurons would come back.",
            {name: f"from {begin[name]:g} to {goals[name].p:g}" for name in rising[:3]},
            "a goal below the start",
            "pass a smaller goal, or a larger start",
        )
    if all(begin[name] == goals[name].p for name in masks):
        raise SpecError(
            "The network is at the goal of its gradual defects already.",
            sorted({goals[name].p for name in masks}),
            "a goal below the start",
            "pass a smaller goal; or start=1 to begin again with all neurons, where p is below 1",
        )
    return begin


def _blocks(masks: Mapping[str, DefectMask2d]) -> dict[str, int]:
    """The turn of each mask, from the input upwards; masks placed by hand have one of their own, in order of site."""
    places = {
        name: (mask.site if mask.site_spec is None else mask.site_spec.block_index) for name, mask in masks.items()
    }
    turns = {place: turn for turn, place in enumerate(sorted(set(places.values())))}
    return {name: turns[place] for name, place in places.items()}
