"""Attacks that move images along low frequencies: the directions that defective networks are weak against."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_plugin.attacks.base import Attack, AttackRun
from dcn_plugin.attacks.frequencies import AxisFilter, check_cutoff, check_kernel
from dcn_plugin.attacks.noise import row_sums
from dcn_plugin.attacks.pgd import PGD
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain

__all__ = ["MIFGSM", "TIFGSM", "LowPassPGD", "RandomLowPass"]


class LowPassPGD(PGD):
    """PGD along the sign of the low-passed gradient.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        cutoff: share of the frequencies along each axis that the gradient keeps, the lowest first; 1 is PGD itself.
        steps: number of gradient steps, >= 1.
        step_size: change of a pixel in one step; by default 2.5 * eps / steps.
        random_start: begin at a uniformly random point of the ball.
        seed: of the random start.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> LowPassPGD(eps=8 / 255, cutoff=0.25, steps=3)(net, images, labels).images.shape
        torch.Size([8, 1, 16, 16])

    Source: Sharma, Ding, Brubaker 2019, arXiv 1903.00073, section 3 (a mask over the DCT of the gradient).
    """

    def __init__(
        self,
        eps: float,
        *,
        cutoff: float,
        steps: int = 20,
        step_size: float | None = None,
        random_start: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(eps, steps=steps, step_size=step_size, random_start=random_start, seed=seed)
        self.cutoff = check_cutoff(cutoff)

    def direction(self, gradient: Tensor) -> Tensor:
        """Where a step goes: the sign of the gradient without its high frequencies."""
        height, width = gradient.shape[2:]
        return AxisFilter.low_pass(height, width, self.cutoff)(gradient).sign()


class MIFGSM(Attack):
    """MI-FGSM: steps along the sign of an average of the gradients, each divided by its mean absolute value.

    With ``cutoff`` below 1 each gradient is low-passed first, and the attack looks for changes of low frequency, which
    transfer to defective networks where others do not.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        steps: number of gradient steps, >= 1.
        step_size: change of a pixel in one step; by default eps / steps, as published.
        decay: of the momentum; 1 as published.
        cutoff: share of the frequencies along each axis that a gradient keeps, the lowest first; 1 keeps all.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> MIFGSM(eps=8 / 255, steps=3, cutoff=0.25)(net, images, labels).images.shape
        torch.Size([8, 1, 16, 16])

    Source: Dong et al. 2018, arXiv 1710.06081; the low pass: Sharma, Ding, Brubaker 2019, arXiv 1903.00073.
    """

    eps: float

    def __init__(
        self, eps: float, *, steps: int = 10, step_size: float | None = None, decay: float = 1.0, cutoff: float = 1.0
    ) -> None:
        eps, steps, step_size, decay = map(plain, (eps, steps, step_size, decay))
        if not is_number(eps):
            raise SpecError("eps is not usable.", eps, "a number in (0, 1]", "write 8 / 255 for 8 of 255 grey levels")
        super().__init__(eps=eps)
        if not is_count(steps, least=1):
            raise SpecError("An attack needs at least one step.", steps, "an int >= 1")
        step_size = eps / steps if step_size is None else step_size
        if not (is_number(step_size) and 0 < step_size <= 2):
            raise SpecError("The step size is not usable.", step_size, "a number in (0, 2]", "try eps / steps")
        if not (is_number(decay) and 0 <= decay <= 10):
            raise SpecError("The decay is not usable.", decay, "a number in [0, 10]", "1 as published")
        self.steps, self.step_size, self.decay, self.cutoff = steps, step_size, decay, check_cutoff(cutoff)

    @property
    def reach(self) -> float:
        """How far all steps together can move a pixel."""
        return self.steps * self.step_size

    def filter(self, height: int, width: int) -> AxisFilter | None:
        """What each gradient goes through; None: it stays as it is."""
        return None if self.cutoff == 1 else AxisFilter.low_pass(height, width, self.cutoff)

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        low, high = (run.images - self.eps).clamp(min=0), (run.images + self.eps).clamp(max=1)
        images, momentum = run.images, torch.zeros_like(run.images)
        height, width = run.images.shape[2:]
        filtered = self.filter(height, width)
        for _ in range(self.steps):
            gradient = run.loss_gradient(images)
            gradient = gradient if filtered is None else filtered(gradient)
            scale = torch.from_numpy(row_sums(gradient.abs().flatten(1))).to(gradient) / gradient[0].numel()
            # A gradient of zero has no direction: it adds nothing.
            scale = torch.where(scale > 0, scale, 1)
            momentum = self.decay * momentum + gradient / scale.view(-1, 1, 1, 1)
            images = (images + self.step_size * momentum.sign()).maximum(low).minimum(high)
        return images


class TIFGSM(MIFGSM):
    """TI-FGSM: MI-FGSM whose gradients are smoothed, which stands for an average over shifted images.

    Args:
        eps: largest change of a pixel, in units of [0, 1] images.
        kernel: width of the Gaussian in pixels, odd; it reaches three sigma. Published: 15 for 299 pixels; 5 or 7 suit
            32 pixels. 1 is MI-FGSM.
        steps: number of gradient steps, >= 1.
        step_size: change of a pixel in one step; by default eps / steps, as published.
        decay: of the momentum; 1 as published.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> TIFGSM(eps=8 / 255, kernel=5, steps=3)(net, images, labels).images.shape
        torch.Size([8, 1, 16, 16])

    Source: Dong et al. 2019, arXiv 1904.02884. Unlike torchattacks' it takes any number of channels, and mixes no
    other attack in.
    """

    def __init__(
        self, eps: float, *, kernel: int = 7, steps: int = 10, step_size: float | None = None, decay: float = 1.0
    ) -> None:
        super().__init__(eps, steps=steps, step_size=step_size, decay=decay)
        del self.cutoff  # the kernel says what it smooths
        self.kernel = check_kernel(kernel)

    def filter(self, height: int, width: int) -> AxisFilter | None:
        """The Gaussian."""
        return AxisFilter.smoothing(height, width, self.kernel)


class RandomLowPass(Attack):
    """Random noise of low frequencies, as far as the ball goes: what an attack without any network does.

    Every pixel moves by eps, up or down as the sign of low-passed normal noise says.

    Args:
        eps: change of a pixel, in units of [0, 1] images.
        cutoff: share of the frequencies along each axis that the noise keeps, the lowest first; 1 is white noise.
        seed: of the noise; an image's depends on its place in the data set.

    Raises:
        SpecError: a setting is out of range.

    Example:
        >>> result = RandomLowPass(eps=0.1, cutoff=0.25)(net, images, labels)
        >>> int(result.backward_passes.sum())
        0
    """

    eps: float

    def __init__(self, eps: float, *, cutoff: float = 0.25, seed: int = 0) -> None:
        if not is_number(plain(eps)):
            raise SpecError("eps is not usable.", eps, "a number in (0, 1]", "write 8 / 255 for 8 of 255 grey levels")
        super().__init__(eps=eps, seed=seed)
        self.cutoff = check_cutoff(cutoff)

    def perturb(self, run: AttackRun) -> Tensor:
        """Return the adversarial images (N, C, H, W) of one batch."""
        noise = run.streams.normal(run.images)
        height, width = noise.shape[2:]
        signs = AxisFilter.low_pass(height, width, self.cutoff)(noise).sign()
        return (run.images + self.eps * signs).clamp(0, 1)
