from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageFolder, ImageSet
from dcn_plugin.data.augment import draw_moves
from dcn_plugin.errors import CheckpointError, ImageRangeError, SpecError
from dcn_plugin.surgery import defectify
from dcn_plugin.surgery.inspection import verify
from dcn_plugin.training import (
    Batch,
    HeldImages,
    Shard,
    TrainConfig,
    isolated_rng,
    plan_epoch,
    pubdef,
    public_images,
    train,
)
from dcn_plugin.training.adversarial import describe
from dcn_plugin.training.checks import masks_hash
from tests.image_files import write_folder
from tests.toys import linear_model

PAIRS = 3
CPU = torch.device("cpu")


def clean(count: int = 24, *, side: int = 4) -> ImageSet:
    """8-bit images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels.float().div_(255), torch.arange(count) % 3, 3, "bytes")


def attacked(data: ImageSet, *, pairs: int = PAIRS) -> list[Tensor]:
    """One image a pair for every clean one, up to 8/255 away, as uint8."""
    generator = torch.Generator().manual_seed(1)
    change = torch.randint(-8, 9, (pairs, *data.images.shape), generator=generator)
    return list((data.images.mul(255).round() + change).clamp(0, 255).byte())


DATA = clean()
ADVERSARIAL = attacked(DATA)
CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, shift=1, flip=True, seed=3)


class Watched:
    """A hook whose results are kept, and which may raise at a step."""

    def __init__(self, hook: Any, *, fails_at: int = -1) -> None:
        self.hook, self.left, self.batches = hook, fails_at, list[Batch]()

    def __repr__(self) -> str:
        return repr(self.hook)

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        if not self.left:
            raise InterruptedError
        self.left -= 1
        made: Batch = self.hook(model, batch, generator)
        self.batches.append(made)
        return made


def pairs_of(batch: Batch) -> list[int]:
    """Which pair each attacked image of a batch comes from; the images must be where ``places`` says, and unmoved."""
    half = len(batch.places) // 2
    found = []
    for image, place in zip(batch.images[half:], batch.places[half:], strict=True):
        (pair,) = [i for i, kept in enumerate(ADVERSARIAL) if torch.equal(kept[place].float() / 255, image)]
        found.append(pair)
    return found


def one_batch(count: int = 8, *, shift: int = 0, flip: bool = False) -> Batch:
    data = HeldImages(DATA, shift=shift, flip=flip)
    return next(data.epoch(count, generator=Generator().manual_seed(0), device=CPU, shard=Shard()))


@pytest.mark.parametrize("sampling", ["random", "random-batch", "all"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_takes_the_steps_of_a_loop_written_out_image_by_image(
    sampling: Any, weight: float, smoothing: float
) -> None:
    config = dataclasses.replace(CONFIG, schedule="steps", label_smoothing=smoothing, momentum=0, nesterov=False)
    model, expected = linear_model(16), linear_model(16)
    hook = Watched(pubdef(ADVERSARIAL, weight=weight, sampling=sampling))
    losses = train(model, DATA, config, step_images=hook).losses
    generator = Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(expected.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    step, slow = 0, []
    for _ in range(config.epochs):
        for places in plan_epoch(len(DATA), 8, generator=generator):
            moves = draw_moves(8, pixels=1, flip=True, generator=generator)
            moved = [moves(images[places].float() / 255) for images in ADVERSARIAL]
            made = hook.batches[step].images[8:]
            loss = torch.zeros(())
            for i, (place, image) in enumerate(zip(places, moves(DATA.images[places]), strict=True)):
                label = DATA.labels[place][None]
                others = [m[i] for m in moved] if sampling == "all" else [made[i]]
                assert all(any(torch.equal(other, m[i]) for m in moved) for other in others)
                ce = [F.cross_entropy(expected(x[None]), label, label_smoothing=smoothing) for x in (image, *others)]
                loss = loss + (ce[0] + weight * sum(ce[1:]) / len(others)) / (1 + weight) / 8
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            slow.append(loss.item())
            step += 1
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert losses == pytest.approx([sum(slow[i : i + 3]) / 3 for i in (0, 3, 6)])


def test_an_attacked_image_is_moved_as_its_clean_one() -> None:
    hook = pubdef(ADVERSARIAL, sampling="all")
    plain, moved = one_batch(), one_batch(shift=2, flip=True)
    assert not torch.equal(plain.images, moved.images)
    made = hook(linear_model(16), moved, Generator()).images.view(1 + PAIRS, 8, 1, 4, 4)
    assert moved.moves is not None
    for pair, images in enumerate(ADVERSARIAL):
        assert torch.equal(made[1 + pair], moved.moves(images[moved.places].float() / 255))
    assert (made - made[0]).abs().max() <= 8 / 255 + 1e-6  # a border of zeros included


def test_labels_and_places_come_along() -> None:
    batch = one_batch()
    made = pubdef(ADVERSARIAL, sampling="all")(linear_model(16), batch, Generator())
    assert torch.equal(made.labels, DATA.labels[made.places])
    assert torch.equal(made.places, batch.places.repeat(1 + PAIRS))


def test_random_takes_each_pair_equally_often_image_by_image_and_random_batch_one_pair_a_batch() -> None:
    counts, generator = torch.zeros(PAIRS), Generator().manual_seed(0)
    each, whole = pubdef(ADVERSARIAL), pubdef(ADVERSARIAL, sampling="random-batch")
    for _ in range(100):
        pairs = pairs_of(each(linear_model(16), one_batch(), generator))
        counts += torch.tensor(pairs).bincount(minlength=PAIRS)
    assert len(set(pairs)) > 1
    assert counts / counts.sum() == pytest.approx(1 / PAIRS, abs=0.06)  # 3.6 standard deviations
    seen = {tuple(pairs_of(whole(linear_model(16), one_batch(), generator))) for _ in range(30)}
    assert seen == {(pair,) * 8 for pair in range(PAIRS)}


@pytest.mark.parametrize("sampling", ["random", "random-batch"])
def test_the_draw_is_from_the_generator_that_is_given_and_from_no_other(sampling: Any) -> None:
    hook, model = pubdef(ADVERSARIAL, sampling=sampling), linear_model(16)  # whose constructor draws
    before = torch.get_rng_state()
    found = [pairs_of(hook(model, one_batch(), Generator().manual_seed(s))) for s in (1, 1, *range(9))]
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]
    assert len(set(map(tuple, found))) > 1


def chosen_pairs(seed: int, hook: Watched, out: Path | None = None) -> list[list[int]]:
    config = dataclasses.replace(CONFIG, shift=0, flip=False, seed=seed)
    train(linear_model(16), DATA, config, step_images=hook, out=out)
    return [pairs_of(batch) for batch in hook.batches]


def test_the_pairs_are_determined_by_seed_epoch_and_step(tmp_path: Path) -> None:
    first = chosen_pairs(3, Watched(pubdef(ADVERSARIAL)))
    assert chosen_pairs(3, Watched(pubdef(ADVERSARIAL))) == first
    assert chosen_pairs(4, Watched(pubdef(ADVERSARIAL))) != first
    assert first[:3] != first[3:6] and first[0] != first[1]
    with pytest.raises(InterruptedError):
        chosen_pairs(3, Watched(pubdef(ADVERSARIAL), fails_at=4), tmp_path)
    assert chosen_pairs(3, Watched(pubdef(ADVERSARIAL)), tmp_path) == first[3:]  # from the second epoch on


def defective() -> nn.Module:
    with isolated_rng(0):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(16, 3)
        )
    return defectify(net, ["0"], p=0.5, input_size=(1, 4, 4))


def test_a_defective_network_resumes_to_the_bit_and_keeps_its_masks(tmp_path: Path) -> None:
    alone, model = defective(), defective()
    masks = masks_hash(alone)
    train(alone, DATA, CONFIG, step_images=pubdef(ADVERSARIAL, weight=0.7))
    with pytest.raises(InterruptedError):
        train(defective(), DATA, CONFIG, step_images=Watched(pubdef(ADVERSARIAL, weight=0.7), fails_at=7), out=tmp_path)
    train(model, DATA, CONFIG, step_images=pubdef(ADVERSARIAL, weight=0.7), out=tmp_path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in alone.state_dict().items())
    assert masks_hash(model) == masks != ""
    verify(model)


def test_a_run_does_not_go_on_with_other_attacked_images_or_settings(tmp_path: Path) -> None:
    train(linear_model(16), DATA, CONFIG, step_images=pubdef(ADVERSARIAL), out=tmp_path)
    other = [ADVERSARIAL[0], ADVERSARIAL[1], ADVERSARIAL[2].clone()]
    train(linear_model(16), DATA, CONFIG, step_images=pubdef(other), out=tmp_path)  # the same in another place
    other[2][5, 0, 0, 0] ^= 1
    for hook in (pubdef(other), pubdef(ADVERSARIAL, weight=2), pubdef(ADVERSARIAL, sampling="all")):
        with pytest.raises(CheckpointError, match="step_images"):
            train(linear_model(16), DATA, CONFIG, step_images=hook, out=tmp_path)
    assert "at 0x" not in str(describe(hook))


def test_eight_bit_images_are_kept_as_bytes_and_others_as_they_are() -> None:
    floats = [images.float() / 255 for images in ADVERSARIAL]
    as_bytes, as_floats = pubdef(ADVERSARIAL), pubdef(floats)
    assert as_bytes._adversarial[0].dtype == as_floats._adversarial[0].dtype == torch.uint8  # type: ignore[attr-defined]
    mixed = [ADVERSARIAL[0], floats[1] * 0.999, ADVERSARIAL[2].double() / 255]
    batch = one_batch()
    made = pubdef(mixed, sampling="all")(linear_model(16), batch, Generator()).images[8:].view(PAIRS, 8, 1, 4, 4)
    for found, images in zip(made, (floats[0], floats[1] * 0.999, floats[2]), strict=True):
        assert torch.equal(found, images[batch.places])


def test_training_on_attacked_images_defends_against_the_source() -> None:
    """The whole way: a public model, its attack made once, a training with it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = 0.5 + 0.05 * torch.randn(90, 1, 4, 4, generator=generator)
    images[torch.arange(90), 0, 0, labels] += 0.3  # large, and robust
    images[torch.arange(90), 0, 1:, labels] += 0.1  # small, but many
    data = ImageSet(images.clamp(0, 1), labels, 3, "columns")
    config = TrainConfig(epochs=10, batch_size=15, lr=0.3)
    source, plain, defended = linear_model(16), linear_model(16, seed=1), linear_model(16, seed=1)
    train(source, data, config)
    attack = PGD(eps=0.15, steps=10, step_size=0.03)
    (made,) = (images.float() / 255 for images in public_images({"source": source}, [attack], data))
    train(plain, data, config)
    train(defended, data, config, step_images=pubdef([made], eps=0.15))
    with torch.no_grad():
        right = [float((net(made).argmax(1) == labels).float().mean()) for net in (plain, defended)]
        assert float((defended(data.images).argmax(1) == labels).float().mean()) > 0.95
    assert right[1] > right[0] + 0.3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": 0}, "weight of PubDef"),
        ({"weight": float("inf")}, "weight of PubDef"),
        ({"sampling": "top-k"}, "'random', 'random-batch', 'all'"),
        ({"eps": 0}, "eps of PubDef"),
        ({"eps": 2}, "eps of PubDef"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        pubdef(ADVERSARIAL, **options)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], SpecError),
        ([ADVERSARIAL[0], ADVERSARIAL[1][:-1]], SpecError),
        ([ADVERSARIAL[0][0]], ImageRangeError),
        ([ADVERSARIAL[0].long()], ImageRangeError),
        ([ADVERSARIAL[0].float()], ImageRangeError),
        ([torch.full((24, 1, 4, 4), float("nan"))], ImageRangeError),
    ],
    ids=["none", "other lengths", "no batch", "long", "up to 255", "nan"],
)
def test_images_that_are_none_are_refused(images: list[Tensor], error: type[Exception]) -> None:
    with pytest.raises(error):
        pubdef(images)


@pytest.mark.parametrize(
    "images",
    [ADVERSARIAL[0][:20], ADVERSARIAL[0][:, :, :3], ADVERSARIAL[0].flip(0)],
    ids=["too few", "other size", "other order"],
)
def test_images_that_belong_to_other_data_are_noticed_before_the_first_step(images: Tensor) -> None:
    model = linear_model(16)
    before = model[1].weight.clone()  # type: ignore[index, union-attr, operator]
    config = dataclasses.replace(CONFIG, batch_size=24)
    with pytest.raises(SpecError, match=r"training (images|set)"):
        train(model, DATA, config, step_images=pubdef([images]))
    assert torch.equal(model[1].weight, before)  # type: ignore[index, union-attr, arg-type]


def test_random_crops_of_files_cannot_be_repeated_and_are_refused(tmp_path: Path) -> None:
    folder = ImageFolder(write_folder(tmp_path / "photos", {"ant": 5, "bee": 4}, height=12, width=10), size=6)
    config = TrainConfig(epochs=1, batch_size=4, min_scale=0.5)
    hook = pubdef([torch.zeros(9, 3, 6, 6, dtype=torch.uint8)])
    with pytest.raises(SpecError, match="min_scale=None"):
        train(linear_model(108, 2), folder, config, step_images=hook, workers=0)
