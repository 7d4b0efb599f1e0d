"""Sets of attacks with names: the paper's, and the transfer attacks of today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dcn_plugin.adapters._foreign import Option
from dcn_plugin.adapters._torchattacks_runner import TorchAttack
from dcn_plugin.attacks import MIFGSM, PGD, TIFGSM, Attack
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_count, is_count, is_number, plain

__all__ = ["MODERN", "ModernAttack", "modern_transfer_attacks", "paper_attacks"]

GREY = 1 / 255

#: (step, steps, eps) in grey levels.
PAPER_FGSM = (8, 16, 32)
PAPER_PGD = ((1, 20, 16), (2, 10, 16), (1, 40, 32))
PAPER_MIFGSM = ((1, 20, 16), (1, 40, 32))


def paper_attacks() -> dict[str, Attack]:
    """The gradient attacks of the paper's transfer tables: FGSM, PGD (ours, no random start) and MI-FGSM.

    The keys are the paper's: ``"FGSM 16"`` has eps 16 / 255, ``"PGD (1,20,16)"`` makes 20 steps of 1 / 255 with eps
    16 / 255. MI-FGSM has momentum 1. torchattacks divides its gradient by the mean of the absolute values where the
    paper takes their sum; that multiplies the momentum by the number of pixels and leaves its sign, which is all
    that moves the image.

    Returns:
        name -> attack, in the paper's order. None of them draws.

    Source: paper, section 4.1, and the authors' code (docs: concepts/authors-code). CW is
    ``dcn_plugin.attacks.CW.paper()``.
    """
    attacks: dict[str, Attack] = {f"FGSM {eps}": PGD(eps * GREY, steps=1, step_size=eps * GREY) for eps in PAPER_FGSM}
    for step, steps, eps in PAPER_PGD:
        attacks[f"PGD ({step},{steps},{eps})"] = PGD(eps * GREY, steps=steps, step_size=step * GREY)
    for step, steps, eps in PAPER_MIFGSM:
        attacks[f"MI-FGSM ({step},{steps},{eps})"] = TorchAttack(
            "MIFGSM", eps=eps * GREY, alpha=step * GREY, steps=steps, decay=1.0
        )
    return attacks


@dataclass(frozen=True)
class ModernAttack:
    """One attack of :func:`modern_transfer_attacks`.

    Args:
        year: of its publication.
        source: its paper.
        library: what runs it: "dcn_plugin", "torchattacks" or "torchattack".
        gradients: neighbours -> gradients an image and step.
    """

    year: int
    source: str
    library: str
    gradients: Callable[[int], int]


MODERN: Mapping[str, ModernAttack] = {
    "DI-FGSM": ModernAttack(2019, "Xie et al., arXiv 1803.06978", "torchattacks", lambda count: 1),
    "TI-FGSM": ModernAttack(2019, "Dong et al., arXiv 1904.02884", "dcn_plugin", lambda count: 1),
    "low-pass MI-FGSM": ModernAttack(2019, "Sharma, Ding, Brubaker, arXiv 1903.00073", "dcn_plugin", lambda count: 1),
    "SI-NI-FGSM": ModernAttack(2020, "Lin et al., arXiv 1908.06281", "torchattacks", lambda count: 5),
    "VMI-FGSM": ModernAttack(2021, "Wang and He, arXiv 2103.15571", "torchattacks", lambda count: 1 + count),
    "VNI-FGSM": ModernAttack(2021, "Wang and He, arXiv 2103.15571", "torchattacks", lambda count: 1 + count),
    "Admix": ModernAttack(2021, "Wang et al., arXiv 2102.00436", "torchattack", lambda count: 15),
    "GRA": ModernAttack(2023, "Zhu et al., ICCV 2023", "torchattack", lambda count: 1 + count),
    "BSR": ModernAttack(2024, "Wang et al., arXiv 2308.10299", "torchattack", lambda count: count),
    "DeCoWA": ModernAttack(2024, "Lin et al., arXiv 2402.03951", "torchattack", lambda count: 2 * count),
}
"""Name -> year, source and library of each attack in the set."""


def modern_transfer_attacks(
    eps: float,
    *,
    steps: int = 10,
    channels: int = 3,
    kernel: int = 15,
    neighbours: int = 20,
    cutoff: float = 0.25,
    since: int = 2018,
    seed: int = 0,
    batch: int = 64,
) -> dict[str, Attack]:
    """Attacks made for transfer, 2019 to 2024, each with momentum 1 and steps of eps / steps.

    :data:`MODERN` has the year and the paper of each. Two of them, TI-FGSM and MI-FGSM with a low-passed gradient, move
    images along low frequencies: what defective networks are weak against. Settings are the published ones (10 steps),
    with the libraries' defaults for what is not listed here. TI-FGSM is run without the input diversity that
    torchattacks mixes into it.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        steps: of each attack.
        channels: of the images; every attack of the set takes any number.
        kernel: width of TI-FGSM's Gaussian, published for 299 pixels; take 5 or 7 for 32 pixels.
        neighbours: of VMI, VNI and GRA, copies of BSR, warpings of DeCoWA: each step takes that many gradients or more.
        cutoff: share of the frequencies along each axis that the low-passed gradient keeps.
        since: leave out what is older than this year.
        seed: of everything they draw.
        batch: see :class:`TorchAttack`; images come in multiples of it.

    Returns:
        name -> attack, by year.

    Raises:
        SpecError: a setting is out of range.
        MissingExtraError: torchattack is not installed.

    Source: :data:`MODERN`.
    """
    eps, steps, since = plain(eps), plain(steps), plain(since)
    if not (is_number(eps) and 0 < eps <= 1 and is_count(steps, least=1)):
        raise SpecError("eps or steps are not usable.", (eps, steps), "a number in (0, 1], and an int >= 1")
    check_count(channels, "number of channels")
    neighbours = check_count(neighbours, "number of neighbours")
    newest = max(entry.year for entry in MODERN.values())
    if not (is_count(since, least=1) and since <= newest):
        raise SpecError("No attack of the set is that young.", since, f"a year up to {newest}")
    shared: dict[str, Any] = {"eps": eps, "steps": steps}
    drawn = shared | {"alpha": eps / steps, "decay": 1.0, "seed": seed, "batch": batch}

    def torchattack(name: str, **options: Option) -> Attack:
        from dcn_plugin.adapters.torchattack import TransferAttack

        settings: dict[str, Any] = drawn | options
        return TransferAttack(name, **settings)

    makers: dict[str, Callable[[], Attack]] = {
        "DI-FGSM": lambda: TorchAttack("DIFGSM", **drawn),
        "TI-FGSM": lambda: TIFGSM(kernel=kernel, **shared),
        "low-pass MI-FGSM": lambda: MIFGSM(cutoff=cutoff, **shared),
        "SI-NI-FGSM": lambda: TorchAttack("SINIFGSM", **drawn),
        "VMI-FGSM": lambda: TorchAttack("VMIFGSM", N=neighbours, **drawn),
        "VNI-FGSM": lambda: TorchAttack("VNIFGSM", N=neighbours, **drawn),
        "Admix": lambda: torchattack("Admix"),
        "GRA": lambda: torchattack("GRA", num_neighbors=neighbours),
        "BSR": lambda: torchattack("BSR", num_scale=neighbours),
        "DeCoWA": lambda: torchattack("DeCoWA", num_warping=neighbours),
    }
    return {name: makers[name]() for name, entry in MODERN.items() if entry.year >= since}
