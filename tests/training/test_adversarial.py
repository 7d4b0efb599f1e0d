from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.training import Batch, TrainConfig, madry, train
from dcn_plugin.training.adversarial import describe
from tests.toys import ModeNet, image_set, linear_model

DATA = image_set(12)
BATCH = Batch(DATA.images, DATA.labels, torch.arange(12))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def slowly(model: nn.Module, batch: Batch, *, eps: float, steps: int, step_size: float) -> Tensor:
    """One image at a time, one step at a time, in eval mode."""
    start = 2 * torch.rand(batch.images.shape, generator=seeded()) - 1
    made = []
    for i in range(len(batch.images)):
        clean, label = batch.images[i : i + 1], batch.labels[i : i + 1]
        image = (clean + eps * start[i]).clamp(clean - eps, clean + eps).clamp(0, 1)
        for _ in range(steps):
            image = image.detach().requires_grad_()
            F.cross_entropy(model(image), label).backward()
            assert image.grad is not None
            image = (image + step_size * image.grad.sign()).clamp(clean - eps, clean + eps).clamp(0, 1)
        made.append(image.detach())
    return torch.cat(made)


def test_madry_is_pgd_with_a_random_start() -> None:
    model = linear_model(16)
    found = madry(0.1, steps=4, step_size=0.03)(model, BATCH, seeded()).images
    torch.testing.assert_close(found, slowly(model, BATCH, eps=0.1, steps=4, step_size=0.03), rtol=0, atol=1e-6)
    assert (found - BATCH.images).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0 and found.max() <= 1


def test_madry_raises_the_loss_and_keeps_labels_and_places() -> None:
    model = linear_model(16)
    batch = madry(0.1)(model, BATCH, seeded())
    assert F.cross_entropy(model(batch.images), batch.labels) > F.cross_entropy(model(BATCH.images), batch.labels) + 0.1
    assert torch.equal(batch.labels, BATCH.labels) and torch.equal(batch.places, BATCH.places)


def test_madry_leaves_modes_statistics_and_gradients_alone() -> None:
    model = ModeNet().train()
    model.frozen.eval()
    flags, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    madry(0.1, steps=2)(model, BATCH, seeded())
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_trained_on_what_the_hook_returns() -> None:
    """Two views of each image, as training on clean and attacked images together needs it."""
    attacked = 1 - DATA.images

    def both(model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        assert torch.equal(batch.images, DATA.images[batch.places])
        images = torch.cat([batch.images, attacked[batch.places]])
        return Batch(images, batch.labels.repeat(2), batch.places.repeat(2))

    sizes: list[int] = []
    model = linear_model(16)
    model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    train(model, DATA, TrainConfig(epochs=1, batch_size=4), step_images=both)
    assert sizes.count(8) == 3


def test_the_weights_that_a_hook_returns_are_those_of_the_loss() -> None:
    """Twice the weight on one image is that image twice."""

    def weighted(model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        return batch._replace(weights=torch.tensor([1.6, 0.8, 0.8, 0.8]))

    def doubled(model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        rows = torch.tensor([0, 0, 1, 2, 3])
        return Batch(batch.images[rows], batch.labels[rows], batch.places[rows])

    models = []
    for hook in (weighted, doubled, None):
        models.append(linear_model(16))
        train(models[-1], DATA, TrainConfig(epochs=2, batch_size=4, label_smoothing=0.1), step_images=hook)
    first, second, third = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert not torch.allclose(first, third, atol=1e-3)


def test_adversarial_training_gives_other_weights_and_more_robust_ones() -> None:
    robust = []
    for hook in (None, madry(0.2, steps=5, step_size=0.1)):
        model = linear_model(16)
        train(model, image_set(60), TrainConfig(epochs=20, batch_size=10, lr=0.3), step_images=hook)
        made = madry(0.2, steps=10, step_size=0.05)(model, BATCH, seeded()).images
        robust.append(F.cross_entropy(model(made), BATCH.labels).item())
    assert robust[1] < robust[0] - 0.1


@pytest.mark.parametrize("change", [{"eps": 0}, {"eps": 1.5}, {"steps": 0}, {"step_size": 0}], ids=str)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="adversarial training"):
        madry(**{"eps": 0.1, **change})


def test_a_hook_is_described_alike_in_every_process() -> None:
    def mine(model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        return batch

    class Nameless:
        def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
            return batch

    assert describe(None) is None
    assert describe(madry(0.1, steps=2)) == "Madry(eps=0.1, steps=2, step_size=0.05)"
    assert "at 0x" not in f"{describe(mine)} {describe(Nameless())}"
    assert describe(mine) != describe(Nameless())
