"""Sets of attacks with names: the paper's, and the transfer attacks of today."""

from __future__ import annotations

from dcn_plugin.adapters._torchattacks_runner import TorchAttack
from dcn_plugin.adapters._torchattacks_table import Option
from dcn_plugin.attacks import PGD, Attack
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain

__all__ = ["modern_transfer_attacks", "paper_attacks"]

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


def modern_transfer_attacks(
    eps: float,
    *,
    steps: int = 10,
    channels: int = 3,
    kernel: int = 15,
    neighbours: int = 20,
    seed: int = 0,
    batch: int = 64,
) -> dict[str, Attack]:
    """Attacks made for transfer: DI-, TI-, SI-NI-, VMI- and VNI-FGSM, each with momentum 1 and steps of eps / steps.

    Settings are the published ones (eps 16 / 255 and 10 steps there), with torchattacks' defaults for what is not
    listed here. TI-FGSM is run without the input diversity that torchattacks mixes into it.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        steps: of each attack.
        channels: of the images. TI-FGSM exists for 3 only and is left out for other numbers.
        kernel: width of TI-FGSM's Gaussian, published for 299 pixels; take 5 or 7 for 32 pixels.
        neighbours: of VMI and VNI; each of their steps takes 1 + neighbours gradients.
        seed: of everything they draw.
        batch: see :class:`TorchAttack`.

    Returns:
        name -> attack.

    Raises:
        SpecError: a setting is out of range.

    Source: Xie et al. 2019 (DI, arXiv 1803.06978), Dong et al. 2019 (TI, arXiv 1904.02884), Lin et al. 2020 (SI-NI,
    arXiv 1908.06281), Wang and He 2021 (VMI, VNI, arXiv 2103.15571).
    """
    eps, steps = plain(eps), plain(steps)
    if not (is_number(eps) and 0 < eps <= 1 and is_count(steps, least=1)):
        raise SpecError("eps or steps are not usable.", (eps, steps), "a number in (0, 1], and an int >= 1")

    def attack(name: str, **options: Option) -> TorchAttack:
        alpha = eps / steps
        return TorchAttack(name, seed=seed, batch=batch, eps=eps, alpha=alpha, steps=steps, decay=1.0, **options)

    attacks: dict[str, Attack] = {"DI-FGSM": attack("DIFGSM")}
    if channels == 3:
        attacks["TI-FGSM"] = attack("TIFGSM", len_kernel=kernel, diversity_prob=0.0)
    attacks["SI-NI-FGSM"] = attack("SINIFGSM")
    attacks["VMI-FGSM"] = attack("VMIFGSM", N=neighbours)
    attacks["VNI-FGSM"] = attack("VNIFGSM", N=neighbours)
    return attacks
