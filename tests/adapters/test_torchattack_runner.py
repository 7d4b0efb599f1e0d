"""torchattack's transfer attacks: in the ball, in the right direction, as the library alone, counted, repeatable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_plugin.adapters._torchattack_table import KNOWN
from dcn_plugin.errors import ImageRangeError, LabelError, MissingExtraError, SpecError
from tests.adapters.toy_rgb import RgbNet, examples
from tests.attack_oracles import Counting
from tests.toys import images

try:
    import torchattack

    from dcn_plugin.adapters.torchattack import TransferAttack
except ImportError:
    pytest.skip("torchattack is not installed", allow_module_level=True)

FEWER: dict[str, dict[str, Any]] = {
    "BSR": {"num_scale": 3},
    "DeCoWA": {"num_warping": 3},
    "DIFGSM": {"resize_rate": 0.5},  # 0.9 of 8 pixels leaves one size, and nothing to draw
    "GRA": {"num_neighbors": 3},
    "SSA": {"num_spectrum": 2},
    "VMIFGSM": {"n": 3},
    "VNIFGSM": {"n": 3},
}
#: Those that run on images of any size without another library.
NAMES = [name for name, entry in KNOWN.items() if entry.size is None and entry.module is None]
every_attack = pytest.mark.parametrize("name", NAMES)


def build(name: str, *, eps: float = 0.15, steps: int = 4, **more: Any) -> TransferAttack:
    return TransferAttack(name, eps=eps, steps=steps, **(FEWER.get(name, {}) | more))


def loss(clean: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(RgbNet().eval()(clean), labels, reduction="none")


@every_attack
def test_it_stays_in_its_ball_and_climbs_the_loss(name: str) -> None:
    clean, labels = examples()
    result = build(name)(RgbNet(), clean, labels)
    assert float((result.images - clean).abs().max()) <= 0.15 + 1e-6
    assert result.images.min() >= 0 and result.images.max() <= 1
    before, after = loss(clean, labels), loss(result.images, labels)
    assert (after > before).float().mean() > 0.9
    assert result.fooled.sum() >= 2
    assert not result.fooled[0]


@every_attack
def test_the_result_is_that_of_the_library_called_directly(name: str) -> None:
    clean, labels = examples()
    attack = build(name, seed=4, batch=8)
    found = attack(RgbNet(), clean, labels, batch_size=8).images
    options: dict[str, Any] = dict(attack._options, eps=0.15)
    if KNOWN[name].classes:
        options["num_classes"] = 6
    model = RgbNet().eval().requires_grad_(False)
    for first in (0, 8) if attack.batch else ():
        rows = slice(first, first + 8)
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
            patch.setattr("warnings.warn", lambda *_, **__: None)
            from dcn_plugin.support.randomness import isolated_global_rngs

            with isolated_global_rngs(attack.batch_seed(first)):
                direct = torchattack.create_attack(name, model, None, torch.device("cpu"), **options)
                assert torch.equal(found[rows], direct(clean[rows], labels[rows]).detach())


@every_attack
def test_the_seed_decides_and_the_global_generators_do_not(name: str) -> None:
    clean, labels = examples()
    before = torch.get_rng_state()
    first, again = (build(name, seed=1)(RgbNet(), clean, labels).images for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    other = build(name, seed=2)(RgbNet(), clean, labels).images
    assert KNOWN[name].random is not torch.equal(first, other)


@every_attack
def test_passes_are_those_that_the_model_was_asked_for(name: str) -> None:
    clean, labels = examples()
    model = Counting(RgbNet())
    attack = build(name)
    result = attack(model, clean, labels)
    assert int(result.queries.sum()) == model.rows
    assert result.queries.tolist() == [attack.gradients + 1] + [attack.gradients + 2] * 11
    assert result.backward_passes.tolist() == [attack.gradients] * 12


@every_attack
def test_what_the_table_says_of_the_others_of_a_piece_is_true(name: str) -> None:
    clean, labels = examples()
    attack = build(name, batch=12)
    whole = attack(RgbNet(), clean, labels, batch_size=12).images
    changed = clean.clone()
    changed[11] = 1 - changed[11]
    beside = attack(RgbNet(), changed, labels, batch_size=12).images
    assert attack.mixes_batch is not torch.allclose(whole[:11], beside[:11], atol=1e-6)


def test_a_dead_gradient_leaves_an_image_where_it_is_and_spoils_no_other() -> None:
    clean, labels = examples()
    result = build("MIFGSM")(RgbNet(), clean, labels)

    class Dead(RgbNet):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.cat([logits[:3].detach() + 0 * x[:3].sum(), logits[3:]]) if len(x) == 12 else logits

    with pytest.warns(UserWarning, match="gradient of the loss was exactly zero"):
        dead = build("MIFGSM")(Dead(), clean, labels)
    assert torch.equal(dead.images[:3], clean[:3])
    assert dead.zero_gradient.tolist() == [True] * 3 + [False] * 9
    assert torch.equal(dead.images[3:], result.images[3:])


def test_images_that_an_attack_does_not_take_are_refused_before_it_asks() -> None:
    clean, labels = examples()
    model = Counting(RgbNet())
    with pytest.raises(ImageRangeError, match=r"SSA is fixed to one size .* \(C, 224, 224\)"):
        build("SSA")(model, clean, labels)
    with pytest.raises(ImageRangeError, match="too small"):
        build("BSR", num_block=5)(model, clean, labels)
    assert model.rows == 2 * 12  # the checks of the clean images
    with pytest.raises(ImageRangeError, match="float32"):
        build("MIFGSM")(RgbNet(dtype=torch.float64), clean.double(), labels)
    with pytest.raises(ImageRangeError, match="square"):
        build("DIFGSM")(RgbNet(), images(2, shape=(3, 16, 4)), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(LabelError):
        build("BSR")(RgbNet(), clean, labels + 6)


def test_a_library_that_an_attack_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="kornia"):
        TransferAttack("MuMoDIG")


def test_settings_say_what_decides_and_pieces_must_fit() -> None:
    attack = build("BSR", batch=4)
    assert {"attack": "BSR", "year": 2024, "eps": 0.15, "num_scale": 3, "batch": 4}.items() <= attack.settings.items()
    assert attack.reach == pytest.approx(0.15)
    clean, labels = examples()
    with pytest.raises(SpecError, match="multiples of 4"):
        attack(RgbNet(), clean, labels, batch_size=6)
