"""Signs of gradient masking: does a model resist attacks, or only the gradients that attacks follow?

Every check compares numbers that an honest gradient puts in order. A failed check says that robustness figures from
gradient attacks on this model overstate it; passing all of them proves nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError, warn_caller
from dcn_plugin.evaluate.arguments import (
    check_count,
    check_images,
    check_model,
    check_models,
    check_number,
)
from dcn_plugin.evaluate.cache_keys import Key, data_key, surroundings
from dcn_plugin.evaluate.data_checks import check_all_names
from dcn_plugin.evaluate.predictions import ran_on
from dcn_plugin.evaluate.protocol import Option, Protocol, Request
from dcn_plugin.evaluate.protocols.paired_tests import LEVEL, Verdict, not_weaker, only_one, stronger
from dcn_plugin.evaluate.protocols.sanity_attacks import Attempts, Outcome
from dcn_plugin.evaluate.records import Result, Scalar
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.statistics import sign_test
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["PROTOCOL", "sanity"]

#: Largest share of images without any gradient that passes.
ZERO_GRADIENTS = 0.01
#: Radii of the growing attack, in units of eps.
LADDER = {"quarter": 0.25, "half": 0.5, "eps": 1.0, "double": 2.0}


def sanity(
    model: nn.Module,
    data: LabelledImages,
    *,
    eps: float,
    steps: int = 40,
    sources: Mapping[str, nn.Module] | None = None,
    queries: int = 1000,
    training_seed: int | None = None,
    attack_seed: int = 0,
    name: str = "model",
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Run the known warning signs on a model; some hundred images are enough.

    ================  ================================================================================================
    check             fails if
    ================  ================================================================================================
    "black-box"       PGD on the model is weaker than black-box attacks: the best, image by image, of PGD on each of
                      ``sources`` and of HopSkipJump, which asks for decisions alone
    "one-step"        one full step (FGSM) is stronger than many small ones (PGD)
    "radius"          PGD wins fewer images in a larger ball (eps / 4, eps / 2, eps, 2 eps), or the loss does not rise
                      from the smallest to the largest on more images than it rises on; the loss is the margin, which
                      unlike the cross-entropy does not round to zero where a model is sure
    "noise"           random corners of the ball, as many an image as PGD has steps, win more images than PGD, or
                      more than PGD adds to them
    "zero-gradient"   the loss has no gradient at all at more than 1 % of the clean images
    "unbounded"       PGD with eps = 1, where every image is within reach, leaves an image standing
    ================  ================================================================================================

    Only images that are right when clean are compared. "More" and "fewer" mean: by more than chance, in a one-sided
    exact sign test at 5 % over the images on which the two attacks differ. The model must be deterministic; a
    random defence has to be attacked in expectation, which PGD does not do.

    Args:
        model: images in [0, 1] -> logits.
        data: the clean images.
        eps: radius of the L-inf ball that the model is said to resist.
        steps: of PGD, >= 2, each of 2.5 * eps / steps.
        sources: name -> model for transfer attacks. One that is the model itself is left out, with a warning. One that
            holds the model's weights in another form ("same network", see :func:`relation`) may fail the check, but a
            pass needs another one.
        queries: budget of HopSkipJump on each image; 0 leaves it out.
        training_seed: of the run that made the model, 0 by default; it goes into the records as ``seed``.
        attack_seed: of the noise and of HopSkipJump.
        name: of the model, in the records.
        batch_size: images at a time.
        store: finished checks are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: eps, steps or queries are out of range, or an argument is of the wrong type; or the processes have
            different models or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as attacks do.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Yields:
        One record a check, in the order above; protocol "sanity", ``attack`` the name of the check, ``figures`` the
        numbers compared. ``passed`` is None where the check could not judge: too few images are right when clean,
        neither attack wins any, the difference is within chance where one has to show, or there is no black-box
        attack to compare with.

    Example:
        >>> records = list(sanity(net, data, eps=8 / 255, steps=5, queries=0))
        >>> [record.attack for record in records]
        ['black-box', 'one-step', 'radius', 'noise', 'zero-gradient', 'unbounded']

    Source: Athalye, Carlini, Wagner 2018, "Obfuscated gradients give a false sense of security", section 3.1;
    Carlini et al. 2019, "On evaluating adversarial robustness", section 5.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress, default_seed=0)
    model, data, eps = check_model(model), check_images(data), check_number(eps, "eps")
    if not 0 < eps <= 1:
        raise SpecError("eps is not usable.", eps, "a number in (0, 1]", "write 8 / 255 for 8 of 255 grey levels")
    steps = check_count(steps, "number of steps, of which many are compared with one,", least=2)
    queries, attack_seed = check_count(queries, "number of queries", least=0), check_count(attack_seed, "seed", least=0)
    others = _others(model, check_models(sources, "source to attack") if sources else {}, session)
    check_all_names(data, {name: model}, others)
    case = Attempts(model, data, eps, steps, others, queries, attack_seed, session.batch_size, session.team)

    def unit(check: str) -> Unit:
        def measure(bar: Any) -> list[Result]:
            return _measure(case, check, name, session)

        return Unit.whole(f"{check} of {name}", functools.partial(_key, case, check, name, session), measure)

    return session.measure("sanity", map(unit, CHECKS), count=len(CHECKS), size=1, unit="check")


def _others(model: nn.Module, sources: Mapping[str, nn.Module], session: Session) -> dict[str, nn.Module]:
    """The sources without the model itself: attacks on it are not black-box, and could show no lead."""
    inside = network_in(model)
    key = session.model_key(inside)
    itself = [
        name
        for name, source in sources.items()
        if network_in(source) is inside or (key is not None and session.model_key(network_in(source)) == key)
    ]
    if itself:
        warn_caller(
            f"The source {', '.join(itself)} is the model itself. It is left out: attacks on it are not black-box.",
        )
    return {name: source for name, source in sources.items() if name not in itself}


def _black_box(case: Attempts) -> Verdict:
    white = case.pgd()
    black = [case.pgd(source=source) for source in case.sources] + ([case.decisions()] if case.queries else [])
    if not black:
        return Verdict(None, {"n_white_box": int(white.fooled.sum())})
    verdict = not_weaker(white.right, white_box=white.fooled, black_box=_any_of(black))
    # A source with the model's own weights may show what the model hides; but where it wins nothing, it proves nothing.
    apart = case.queries or any(relation(source, case.model) != "same network" for source in case.sources.values())
    return verdict if apart or not verdict.passed else Verdict(None, verdict.figures)


def _one_step(case: Attempts) -> Verdict:
    many = case.pgd()
    return not_weaker(many.right, many_steps=many.fooled, one_step=case.one_step().fooled)


def _radius(case: Attempts) -> Verdict:
    rungs = _ladder(case)
    smallest, *_, largest = rungs.values()
    right = smallest.right
    rises = int((right & (largest.margin > smallest.margin)).sum())
    rest = int(right.sum()) - rises
    # All neighbours are compared, so each shares the level.
    level = LEVEL / (len(rungs) - 1)
    loses = any(
        sign_test(*only_one(small.fooled, large.fooled)) <= level for small, large in itertools.pairwise(rungs.values())
    )
    passed: bool | None = None
    if loses or sign_test(rest, rises) <= LEVEL:
        passed = False
    elif sign_test(rises, rest) <= LEVEL:
        passed = True
    counts = {f"n_{name}": int(rung.fooled.sum()) for name, rung in rungs.items()}
    return Verdict(passed, {**counts, "n_loss_rises": rises, "n_loss_does_not_rise": rest})


def _noise(case: Attempts) -> Verdict:
    attack = case.pgd()
    return stronger(attack.right, attack=attack.fooled, noise=case.noise().fooled)


def _zero_gradient(case: Attempts) -> Verdict:
    clean = case.one_step()
    count, total = int((clean.zero_gradient & clean.right).sum()), int(clean.right.sum())
    share = count / total if total else None
    passed = None if share is None else share <= ZERO_GRADIENTS
    return Verdict(passed, {"n_zero_gradient": count, "zero_gradient_share": share})


def _unbounded(case: Attempts) -> Verdict:
    outcome = case.pgd(1.0)
    # What a smaller ball gave lies in this one too.
    fooled = _any_of([outcome, *_ladder(case).values()])
    count, total = int(fooled.sum()), int(outcome.right.sum())
    share = count / total if total else None
    return Verdict(None if share is None else count == total, {"n_fooled": count, "fooled_share": share})


def _ladder(case: Attempts) -> dict[str, Outcome]:
    """PGD in smaller and larger balls, smallest first."""
    return {name: case.pgd(min(1.0, factor * case.eps)) for name, factor in LADDER.items()}


def _any_of(outcomes: Sequence[Outcome]) -> Tensor:
    return torch.stack([outcome.fooled for outcome in outcomes]).any(dim=0)


CHECKS: dict[str, Callable[[Attempts], Verdict]] = {
    "black-box": _black_box,
    "one-step": _one_step,
    "radius": _radius,
    "noise": _noise,
    "zero-gradient": _zero_gradient,
    "unbounded": _unbounded,
}


def _settings(case: Attempts, check: str) -> dict[str, Scalar]:
    settings: dict[str, Scalar] = {"steps": case.steps}
    if check == "black-box":
        settings |= {"queries": case.queries, "sources": ", ".join(case.sources)}
    if check in ("black-box", "noise"):
        settings["attack_seed"] = case.attack_seed
    return settings


def _key(case: Attempts, check: str, name: str, session: Session) -> Key | None:
    networks = case.sources if check == "black-box" else {}
    model = session.model_key(case.model)
    sources = {source: session.model_key(network) for source, network in networks.items()}
    if model is None or None in sources.values():
        return None
    return {
        "protocol": "sanity",
        "check": check,
        "target": {"name": name, **model},
        "sources": sources,
        "data": data_key(case.data),
        "eps": case.eps,
        "settings": _settings(case, check),
        "seed": session.training_seed,
        "batch_size": case.batch_size,
        **surroundings(device_of(case.model)),
    }


def _measure(case: Attempts, check: str, name: str, session: Session) -> list[Result]:
    finding, passes = case.counted(CHECKS[check])
    return [
        Result(
            protocol="sanity",
            target=name,
            data=case.data.name,
            data_hash=case.data.content_hash,
            seed=session.training_seed,
            attack=check,
            attack_settings=_settings(case, check),
            eps=1.0 if check == "unbounded" else case.eps,
            steps=1 if check == "zero-gradient" else case.steps,
            n_total=len(case.data),
            n_clean_correct=case.n_right,
            n_counted=case.n_right,
            figures=finding.figures,
            passed=finding.passed,
            **passes,
            hardware=ran_on(case.model),
        )
    ]


def _check_all(request: Request) -> Iterator[Result]:
    runs = [
        sanity(target, request.data, sources=request.sources, name=name, **request.options, **request.run)
        for name, target in request.targets.items()
    ]
    return itertools.chain.from_iterable(runs)


PROTOCOL = Protocol(
    name="sanity",
    record="sanity",
    title="Checks for gradient masking",
    help="warning signs of gradient masking",
    measure=_check_all,
    sources="optional",
    options=(
        Option(name="eps", kind="radius", default=8 / 255, help="radius, e.g. 16/255"),
        Option(
            name="steps",
            kind="count",
            default=40,
            metavar="N",
            help="of PGD, twice those of --attack pgd, so that few steps are no reason for a warning",
        ),
    ),
    strength=None,
    figure="passed",
    partial=True,
)
