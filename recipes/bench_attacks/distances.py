"""How close Boundary and HopSkipJump come at equal queries, beside Foolbox's and ART's.

Run it with ``.venv/bin/python -m recipes.bench_attacks.distances``, a few hours on two cores. Distances do not depend
on the machine's speed: other programs may run beside it. It writes ``distances.json`` and ``README.md`` beside itself.
Each part's figures are kept in ``parts`` as they come; a run that was killed goes on where it stopped, and one after a
change runs only the parts that the change may touch. ``--data ROOT --natural-images 24`` attacks networks of CIFAR-10
too; without it all images are digits, enlarged. ``--quick`` is a smoke test whose figures mean nothing; its record
goes only where ``--out`` says.

Every tool starts from the same adversarial images (uniform noise, bisected towards the clean image), and a query is
an image that the model is asked about.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dcn_plugin
from dcn_plugin.attacks import BoundaryAttack, HopSkipJump
from dcn_plugin.support.atomic_file import write_atomic
from recipes import benchmark
from recipes.bench_attacks.nets import SHAPES, Net, build
from recipes.bench_attacks.page import RIVAL_NAMES, markdown
from recipes.bench_attacks.rivals import RIVALS, Distances

HERE = Path(__file__).parent
OURS: dict[str, type[BoundaryAttack] | type[HopSkipJump]] = {
    "BoundaryAttack": BoundaryAttack,
    "HopSkipJump": HopSkipJump,
}
#: Ours without what it may take for granted about networks, that they look at low frequencies; and ours as it was by
#: default before bandwidths competed, which bets on it. Neither may be much better than the default.
PLAIN: dict[str, Any] = {"coarse": 1}
BET: dict[str, dict[str, Any]] = {"BoundaryAttack": {"coarse": 2}, "HopSkipJump": {"coarse": None}}
#: Network -> the shape of :data:`SHAPES` and the share of neurons that the bottom keeps, None: standard.
KINDS: dict[str, tuple[str, float | None]] = {
    "tiny": ("tiny", None),
    "tiny-defective": ("tiny", 0.3),
    "cifar": ("cifar", None),
    "cifar-defective": ("cifar", 0.3),
    "natural": ("natural", None),
    "natural-defective": ("natural", 0.3),
}
WORKERS = 2
#: The modules of this folder that distances depend on.
SOURCES = ("distances", "nets", "rivals")


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the versions."""

    seed: int = 0
    tiny_width: int = 8
    tiny_images: int = 48
    tiny_art_images: int = 32
    cifar_width: int = 16
    cifar_images: int = 24
    cifar_art_images: int = 4
    natural_width: int = 16
    natural_images: int = 0  # more with --natural-images and --data
    natural_art_images: int = 4
    natural_train_images: int = 20_000
    natural_epochs: int = 6
    epochs: int = 4
    budgets: tuple[int, int, int] = (1000, 5000, 25_000)  # HopSkipJump: the first two


QUICK = Options(
    tiny_images=4,
    tiny_art_images=2,
    cifar_width=8,
    cifar_images=3,
    cifar_art_images=1,
    epochs=2,
    budgets=(60, 120, 240),
)


def median(values: Tensor) -> float:
    """The mean of the two middle values where there are two, which ``Tensor.median`` is not."""
    return float(values.quantile(0.5))


def kinds(options: Options) -> list[str]:
    """The networks that are attacked: those of natural images where there are some."""
    return [kind for kind, (shape, _) in KINDS.items() if getattr(options, f"{shape}_images")]


def trained(options: Options, data: Path | None, kind: str) -> Net:
    """Train one network.

    Args:
        options: its width, images and epochs.
        data: root of CIFAR-10, for natural images.
        kind: of :data:`KINDS`.
    """
    shape, bottom = KINDS[kind]
    width, images = getattr(options, f"{shape}_width"), getattr(options, f"{shape}_images")
    shared: dict[str, Any] = {"width": width, "images": images, "seed": options.seed, "bottom": bottom}
    if shape != "natural":
        return build(shape, epochs=options.epochs, **shared)
    more = {"epochs": options.natural_epochs, "train_images": options.natural_train_images, "root": data}
    return build(shape, **shared, **more)


@dataclass(frozen=True)
class Made:
    """What one part gave: distances, infinity where the attack fails, and the seconds they took."""

    distances: Distances
    seconds: float


@dataclass(frozen=True)
class Part:
    """The attack of one tool on one network.

    Args:
        kind: of the network, one of :data:`KINDS`.
        attack: of :data:`OURS`.
        tool: "ours", "plain" and "bet" (ours with :data:`PLAIN` and with :data:`BET`), "foolbox" or "art".
    """

    kind: str
    attack: str
    tool: str

    def budgets(self, options: Options) -> tuple[int, ...]:
        """Queries of each image at which distances are noted."""
        return options.budgets if self.attack == "BoundaryAttack" else options.budgets[:2]

    def kept(self, folder: Path | None, head: Mapping[str, Any]) -> Made | None:
        """The figures of an earlier run, if all they depend on is as it was."""
        if folder is None or not (file := self._file(folder, head)).is_file():
            return None
        found = json.loads(file.read_text("utf-8"))
        distances = {
            int(budget): torch.tensor(each, dtype=torch.float64) for budget, each in found["distances"].items()
        }
        return Made(distances, found["seconds"])

    def keep(self, folder: Path | None, head: Mapping[str, Any], made: Made) -> None:
        """Write figures down for :meth:`kept`."""
        if folder is None:
            return
        folder.mkdir(exist_ok=True)
        each = {str(budget): values.tolist() for budget, values in made.distances.items()}
        write_atomic(
            self._file(folder, head), json.dumps({"distances": each, "seconds": made.seconds}, indent=1) + "\n"
        )

    def _file(self, folder: Path, head: Mapping[str, Any]) -> Path:
        return folder / f"{self.kind}-{self.attack}-{self.tool}-{self._key(head)[:20]}.json"

    def _key(self, head: Mapping[str, Any]) -> str:
        """Hash of options, versions, hardware, and all sources but the modules of attacks that are not of this part."""
        own = OURS[self.attack] if self.tool not in RIVAL_NAMES else None
        others = {inspect.getfile(attack) for attack in OURS.values() if attack is not own}
        files = [*Path(inspect.getfile(dcn_plugin)).parent.rglob("*.py"), *(HERE / f"{name}.py" for name in SOURCES)]
        digest = hashlib.sha256(
            json.dumps([{name: head[name] for name in ("options", "versions", "hardware")}, asdict(self)]).encode()
        )
        for file in sorted(file for file in files if str(file) not in others):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def parts_of(options: Options) -> list[Part]:
    """All parts, the slow ones first."""
    tools = ("ours", "plain", "bet", *RIVAL_NAMES)
    return [Part(kind, attack, tool) for kind in reversed(kinds(options)) for attack in OURS for tool in tools]


def measure(part: Part, net: Net, budgets: tuple[int, ...], seed: int) -> Made:
    """Run one part on all images of ``net``."""
    begin = time.perf_counter()
    if part.tool in RIVAL_NAMES:
        run = RIVALS[part.attack][part.tool]
        found = run(net.model, net.data.images, net.data.labels, net.starts, budgets, seed=seed)
    else:
        coarse = {"plain": PLAIN, "bet": BET[part.attack]}.get(part.tool, {})
        found = {
            budget: OURS[part.attack](max_queries=budget, seed=seed, **coarse)(
                net.model, net.data.images, net.data.labels, starting_points=net.starts
            ).distance.nan_to_num(nan=float("inf"))
            for budget in budgets
        }
    seconds = time.perf_counter() - begin
    print(f"{net.about()['network']}: {part.attack} of {part.tool}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return Made(found, seconds)


def compare(made: Mapping[str, Made]) -> dict[str, Any]:
    """Median distances of every tool, and ours over each rival's on the images that both attacked."""
    found = {tool: part.distances for tool, part in made.items()}
    last = max(found["plain"])
    return {
        "images": {tool: len(distances[last]) for tool, distances in found.items()},
        "seconds": {tool: part.seconds for tool, part in made.items()},
        "queries": {
            str(budget): {
                "median": {tool: median(distances[budget]) for tool, distances in found.items()},
                "over_better": median(ours) / min(median(found[tool][budget]) for tool in ("plain", "bet")),
                "ours_over": over_rivals(ours, {rival: found[rival][budget] for rival in RIVAL_NAMES}),
            }
            for budget, ours in found["ours"].items()
        },
        "plain": {
            "settings": PLAIN,
            "queries": last,
            "median": median(found["plain"][last]),
            "ours_over": over_rivals(found["plain"][last], {rival: found[rival][last] for rival in RIVAL_NAMES}),
        },
        "image_by_image": {
            tool: {str(budget): values.tolist() for budget, values in distances.items()}
            for tool, distances in found.items()
        },
    }


def over_rivals(ours: Tensor, rivals: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Our distances over each rival's, on the images that it attacked: the first ones."""
    return {
        rival: {
            "of_medians": median(ours[: len(theirs)]) / median(theirs),
            "of_geometric_means": float((ours[: len(theirs)] / theirs).log().mean().exp()),
        }
        for rival, theirs in rivals.items()
    }


def run(options: Options, command: str, *, parts: Path | None = None, data: Path | None = None) -> dict[str, Any]:
    """Measure everything, two parts at a time, each in a process of its own with one thread.

    Args:
        options: what the figures depend on.
        command: that made the record.
        parts: folder in which each part's figures are kept as soon as they are there, and looked for before it is run.
        data: root of CIFAR-10, for natural images.
    """
    if options.natural_images and data is None:
        raise SystemExit("--natural-images needs --data, the root of CIFAR-10")
    all_kinds, all_parts = kinds(options), parts_of(options)
    head = benchmark.head(options, command, packages=("foolbox", "adversarial-robustness-toolbox"))
    head["hardware"]["threads"] = 1  # of each process
    made: dict[Part, Made] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        nets = dict(zip(all_kinds, pool.map(partial(trained, options, data), all_kinds), strict=True))
        running: dict[Future[Made], Part] = {}
        for part in all_parts:
            if (kept := part.kept(parts, head)) is not None:
                made[part] = kept
                continue
            net = nets[part.kind]
            if part.tool == "art":
                net = net.first(getattr(options, f"{KINDS[part.kind][0]}_art_images"))
            running[pool.submit(measure, part, net, part.budgets(options), options.seed)] = part
        for done in as_completed(running):
            part = running[done]
            made[part] = done.result()
            part.keep(parts, head, made[part])
    found = {
        kind: {
            attack: compare({part.tool: made[part] for part in all_parts if (part.kind, part.attack) == (kind, attack)})
            for attack in OURS
        }
        for kind in all_kinds
    }
    return {**head, "nets": {kind: {**nets[kind].about(), **found[kind]} for kind in all_kinds}}


def main() -> None:
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=(*(f"{shape}_{images}" for shape in SHAPES for images in ("images", "art_images")), "seed"),
        roots=("data",),
        measure=partial(run, parts=HERE / "parts"),
        page=markdown,
        script="distances",
        beside="record",
    )


if __name__ == "__main__":
    main()
