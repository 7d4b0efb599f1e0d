"""timm's defective models: registration, options, weights, saving, and bad input, on one small model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import _registry as timm_registry
from timm.models import get_model_input_config, load_state_dict, save_for_hf
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.errors import (
    BlockError,
    CheckpointError,
    DcnError,
    InputSizeError,
    MaskShapeError,
    MaskStateError,
    PretrainedError,
    SiteError,
    SpecError,
)
from dcn_plugin.models.timm_names import BASES, FAMILIES, REFUSED
from dcn_plugin.surgery import masks_of
from tests.models.timm_checks import seeded, without_masks

BASE, NAME, SIZE = "resnet10t", "defective_resnet10t", 32


def create(name: str = NAME, *, weights_seed: int = 1, **options) -> nn.Module:
    with seeded(weights_seed):
        return timm.create_model(name, **{"img_size": SIZE, **options} if name != BASE else options)


def bits(model: nn.Module) -> dict[int, torch.Tensor]:
    return {mask.site: mask.mask for mask in masks_of(model).values()}


def same_bits(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = bits(ours), bits(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[site], b[site]) for site in a)


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def image(size: int = SIZE, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A defective network with weights and masks of its own, and the file it was saved to."""
    model = create(weights_seed=9, seed=9)
    path = tmp_path / "defective.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.fixture
def plain_checkpoint(tmp_path: Path) -> tuple[nn.Module, Path]:
    """The same without masks."""
    model = create(BASE, weights_seed=8)
    path = tmp_path / "plain.safetensors"
    save_file(model.state_dict(), path)
    return model, path


# Registration


def test_at_least_seven_hundred_models_are_listed() -> None:
    names = [f"defective_{base}" for base in BASES]
    assert len(set(BASES)) == len(BASES) >= 700 and len(FAMILIES) >= 15
    assert sorted(timm.list_models("defective_*")) == sorted(names)
    assert sorted(timm.list_models(module="defective")) == sorted(names)
    assert all(timm.is_model(name) for name in names)
    assert not timm.list_models("defective_*", pretrained=True)


def test_importing_registers_without_a_warning_and_leaves_every_name_of_timm_as_it_was() -> None:
    code = """
import json, sys, warnings, timm
from timm.models import _registry as r
def ours(name):
    return name.startswith("defective_") or name.partition(".")[0].endswith("_cifar")
def state():
    names = [n for n in r._model_entrypoints if not ours(n)]
    entry = {n: id(r._model_entrypoints[n]) for n in names}
    lists = {m: timm.list_models(module=m) for m in timm.list_modules() if m not in ("defective", "paper_nets")}
    tags = [n for n in timm.list_models(include_tags=True) if not ours(n)]
    return entry, lists, tags, timm.list_models(pretrained=True), {n: repr(timm.get_pretrained_cfg(n)) for n in tags}
before = state()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    import dcn_plugin
print(json.dumps([before == state(), len(timm.list_models("defective_*"))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(done.stdout) == [True, len(BASES)]


def test_every_entrypoint_is_documented_and_importable_by_its_name() -> None:
    from dcn_plugin.models import defective

    assert {f"defective_{base}" for base in BASES} < set(defective.__all__)
    assert all(f"``{base}``" in getattr(defective, f"defective_{base}").__doc__ for base in BASES)
    assert defective.defective_resnet10t is timm.model_entrypoint(NAME)


# Options


def test_a_defective_model_is_what_defectify_makes_of_its_base() -> None:
    options = dict(p=0.5, blocks="top", mode="channel", sampling="exact", seed=4)
    made = create(**options)
    by_hand = dcn.defectify(create(BASE), input_size=(3, SIZE, SIZE), **options)
    assert same_state(made, by_hand)
    assert dcn.defect_spec(made) == dcn.defect_spec(by_hand)
    assert type(made) is type(by_hand)


def test_building_draws_the_random_numbers_that_the_base_draws() -> None:
    with seeded():
        timm.create_model(BASE)
        expected = torch.get_rng_state()
    for options in ({}, {"features_only": True}):
        with seeded():
            timm.create_model(NAME, img_size=SIZE, **options)
            assert torch.equal(torch.get_rng_state(), expected)


def test_the_options_of_the_base_reach_it() -> None:
    model = create(num_classes=5, in_chans=2, act_layer="silu", drop_rate=0.25, global_pool="max")
    assert model(image(channels=2)).shape == (2, 5)
    assert isinstance(model.act1, nn.SiLU) and model.drop_rate == 0.25
    assert model.global_pool.pool_type == "max"
    assert dcn.defect_spec(model).input_size == (2, SIZE, SIZE)


def test_the_papers_placement_is_known_under_the_defective_name_too() -> None:
    for options in ({}, {"features_only": True}):
        model = create("defective_resnet18", blocks="paper", **options)
        assert [site.block for site in dcn.defect_spec(model).sites] == [*["stem"], *["layer1"] * 4, *["layer2"] * 5]


def test_device_and_dtype_are_the_bases() -> None:
    for options in ({}, {"features_only": True}):
        model = create(dtype=torch.float64, device="cpu", **options).eval()
        assert {mask.dtype for mask in bits(model).values()} == {torch.bool}
        out = model(image().double())
        assert (out if isinstance(out, torch.Tensor) else out[-1]).dtype == torch.float64


@pytest.mark.parametrize(("img_size", "size"), [(48, (48, 48)), ((32, 48), (32, 48)), ([32, 48], (32, 48))])
def test_timm_knows_the_size_that_the_masks_were_made_for(img_size, size) -> None:
    model = create(img_size=img_size, in_chans=1)
    assert dcn.defect_spec(model).input_size == (1, *size)
    assert model.pretrained_cfg["input_size"] == (1, *size)
    assert model.pretrained_cfg["architecture"] == NAME and model.pretrained_cfg["pool_size"] is None
    assert model.default_cfg is model.pretrained_cfg
    assert get_model_input_config(model)["input_size"] == (1, *size)
    assert resolve_model_data_config(model, use_test_size=True)["input_size"] == (1, *size)


def test_images_of_another_size_are_told_of_img_size() -> None:
    model = timm.create_model(NAME, p=0.3, num_classes=10)
    with pytest.raises(MaskShapeError, match=r"feed images of 3x176x176.*img_size= of timm's") as caught:
        model(torch.rand(2, 3, 32, 32))
    assert "timm.create_model('defective_resnet18', img_size=32)" in str(caught.value)


def test_numbers_of_numpy_and_torch_are_options_too() -> None:
    model = create(p=np.float32(0.5), seed=np.int64(3), blocks=np.int64(0), img_size=np.int64(SIZE))
    assert dcn.defect_spec(model) == dcn.defect_spec(create(p=0.5, seed=3, blocks=(0,), img_size=SIZE))
    mapped = create(blocks=[0, 1], p={np.int64(0): torch.tensor(0.5), 1: 0.25})
    assert dcn.defect_spec(mapped) == dcn.defect_spec(create(blocks=(0, 1), p={0: 0.5, 1: 0.25}))


def test_without_img_size_the_tag_decides() -> None:
    for tag in ("resnet18.a1_in1k", "resnet18.a3_in1k"):
        model = timm.create_model(f"defective_{tag}")
        assert dcn.defect_spec(model).input_size == timm.get_pretrained_cfg(tag).input_size
        assert model.pretrained_cfg["tag"] == tag.partition(".")[2]
        assert model.pretrained_cfg["pool_size"] == timm.get_pretrained_cfg(tag).pool_size
    overlaid = timm.create_model(NAME, pretrained_cfg_overlay=dict(input_size=(3, 40, 40)))
    assert dcn.defect_spec(overlaid).input_size == (3, 40, 40)


def test_the_path_of_timms_own_training_script_works() -> None:
    arguments = timm.models.resolve_model_input_args(NAME, {"img_size": SIZE}, num_classes=5)
    assert arguments["img_size"] == (SIZE, SIZE)
    name = arguments.pop("model_name")
    model = timm.create_model(name, p=0.4, **arguments)
    assert model(image()).shape == (2, 5)
    assert model.pretrained_cfg["architecture"] == NAME


def test_undefectify_gives_the_base_model() -> None:
    plain, base = dcn.undefectify(create()), create(BASE)
    assert same_state(plain, base) and torch.equal(plain.eval()(image()), base.eval()(image()))


# Weights


@pytest.mark.parametrize("options", [{}, {"features_only": True}, {"pretrained_cfg": "c3_in1k"}])
def test_pretrained_without_defective_weights_names_the_two_ways_on(options) -> None:
    with pytest.raises(PretrainedError, match=r"init_from='base'") as caught:
        create(pretrained=True, **options)
    assert "pretrained_cfg_overlay=dict(file=" in str(caught.value) and "defective_resnet10t.c3_in1k" in str(
        caught.value
    )


@pytest.mark.parametrize("features_only", [False, True])
def test_masks_of_a_weight_file_win(checkpoint, features_only: bool) -> None:
    saved, path = checkpoint
    loaded = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), features_only=features_only)
    assert same_bits(loaded, saved) and not same_bits(create(), saved)
    assert torch.equal(loaded.state_dict()["layer1.0.conv1.weight"], saved.state_dict()["layer1.0.conv1.weight"])
    assert dcn.defect_spec(loaded).mask_origin == "loaded"
    assert loaded.pretrained_cfg["file"] == str(path)
    dcn.verify(loaded)
    if not features_only:
        assert same_state(loaded, saved)


def test_weights_without_masks_are_taken_with_the_masks_that_the_seed_gives(plain_checkpoint) -> None:
    plain, path = plain_checkpoint
    loaded = create(pretrained=True, seed=6, pretrained_cfg_overlay=dict(file=str(path)))
    assert same_bits(loaded, create(seed=6))
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in plain.state_dict().items())
    assert dcn.defect_spec(loaded).mask_origin == "sampled"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_pth_file_is_read_like_a_safetensors_one(checkpoint, tmp_path: Path, wrap) -> None:
    saved, _ = checkpoint
    torch.save(wrap(saved.state_dict()), tmp_path / "model.pth")
    loaded = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "model.pth")))
    assert same_state(loaded, saved)


@pytest.mark.parametrize("features_only", [False, True])
def test_a_file_of_save_checkpoint_is_taken_too(checkpoint, tmp_path: Path, features_only: bool) -> None:
    saved, _ = checkpoint
    dcn.save_checkpoint(saved, tmp_path / "ours.safetensors")
    overlay = dict(file=str(tmp_path / "ours.safetensors"))
    loaded = create(pretrained=True, pretrained_cfg_overlay=overlay, features_only=features_only)
    assert same_bits(loaded, saved) and (features_only or same_state(loaded, saved))
    damaged = bytearray((tmp_path / "ours.safetensors").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "ours.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="sealed"):
        create(pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_state_dict_in_memory_is_taken_too(checkpoint) -> None:
    saved, _ = checkpoint
    loaded = create(pretrained=True, pretrained_cfg_overlay=dict(state_dict=saved.state_dict()))
    assert same_state(loaded, saved) and "state_dict" not in loaded.pretrained_cfg


def test_classes_and_channels_are_adapted_as_timm_does_it(checkpoint, plain_checkpoint) -> None:
    saved, path = checkpoint
    loaded = create(pretrained=True, num_classes=5, in_chans=1, pretrained_cfg_overlay=dict(file=str(path)))
    expected = saved.state_dict()["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(loaded.state_dict()["conv1.0.weight"], expected)
    assert loaded.fc.out_features == 5 and same_bits(loaded, saved)
    _, plain_path = plain_checkpoint
    options = dict(pretrained=True, num_classes=5, in_chans=1, pretrained_cfg_overlay=dict(file=str(plain_path)))
    ours, theirs = create(**options).state_dict(), create(BASE, **options).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_weights_with_other_masks_than_the_model_has_places_for_are_refused(checkpoint) -> None:
    saved, path = checkpoint
    some = [key for key in saved.state_dict() if not key.endswith("drop.mask")] + ["bn1.drop.mask"]
    partial = {key: saved.state_dict()[key] for key in some}
    for options in (
        dict(blocks="all"),
        dict(blocks=(0,)),
        dict(img_size=64),
        dict(blocks=(0,), features_only=True),
        dict(num_classes=5, img_size=64),
    ):
        with pytest.raises(MaskStateError):
            create(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options)
    with pytest.raises(MaskStateError, match="are missing"):
        create(pretrained=True, pretrained_cfg_overlay=dict(state_dict=partial))


def test_checkpoint_path_follows_the_same_rules(checkpoint) -> None:
    saved, path = checkpoint
    assert same_state(create(checkpoint_path=str(path)), saved)
    with pytest.raises(MaskStateError):
        create(checkpoint_path=str(path), img_size=64)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("features_only", [False, True])
def test_init_from_base_starts_from_the_weights_of_the_same_tag(
    plain_checkpoint, monkeypatch, pretrained: bool, features_only: bool
) -> None:
    plain, path = plain_checkpoint
    tag = "resnet10t.c3_in1k"
    local = timm.models.PretrainedCfg(**{**vars(timm.get_pretrained_cfg(tag)), "hf_hub_id": None, "file": str(path)})
    monkeypatch.setitem(timm_registry._model_pretrained_cfgs, tag, local)
    model = create(init_from="base", pretrained=pretrained, features_only=features_only)
    state = model.state_dict()
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in without_masks(state).items())
    assert same_bits(model, create()) and model.pretrained_cfg.get("file") is None


def test_init_from_base_takes_a_local_file(plain_checkpoint) -> None:
    _, path = plain_checkpoint
    model = create(init_from="base", num_classes=5, pretrained_cfg_overlay=dict(file=str(path)))
    base = create(BASE, pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(file=str(path)))
    assert all(torch.equal(base.state_dict()[key], value) for key, value in without_masks(model.state_dict()).items())


def test_init_from_base_refuses_a_base_without_weights_and_weights_with_masks(checkpoint) -> None:
    with pytest.raises(PretrainedError, match="No pretrained weights exist for regnetz_005"):
        timm.create_model("defective_regnetz_005", img_size=SIZE, init_from="base")
    with pytest.raises(PretrainedError, match="pass pretrained=True"):
        create(init_from="base", num_classes=5, pretrained_cfg_overlay=dict(file=str(checkpoint[1])))


# Saving as timm does


@pytest.mark.parametrize(
    ("options", "size", "channels"),
    [
        (dict(p=0.6, seed=2**64 - 1, num_classes=5), 32, 3),
        (dict(p={0: 0.2, "layer1": 0.9, 2: 1.0}, blocks=[0, "layer1", 2], mode="shared", in_chans=1), 32, 1),
        (dict(p={0: 0.25, 1: 0.5, 2: 0.75}, mode="nm", span=4), 32, 3),
        (dict(mode="hole", span=3, sampling="bernoulli"), 32, 3),
        (dict(blocks="top", sampling="exact", img_size=40, init_from="base", global_pool="max"), 40, 3),
    ],
)
@pytest.mark.parametrize("safe", [False, True])
def test_a_saved_model_comes_back_bit_equal(tmp_path: Path, plain_checkpoint, options, size, channels, safe) -> None:
    if "init_from" in options:
        options = {**options, "pretrained_cfg_overlay": dict(file=str(plain_checkpoint[1]))}
    model = create(**options).eval()
    save_for_hf(model, tmp_path / "saved", safe_serialization=safe)
    back = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert same_state(back, model)
    assert torch.equal(back(image(size, channels)), model(image(size, channels)))
    assert dcn.defect_spec(back) == dcn.defect_spec(model)
    assert back.pretrained_cfg["architecture"] == NAME
    unweighted = timm.create_model(f"local-dir:{tmp_path / 'saved'}")
    assert same_bits(unweighted, model)
    assert not torch.equal(unweighted.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    features = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, features_only=True)
    assert all(torch.equal(mask, bits(model)[site]) for site, mask in bits(features).items())


def test_what_was_changed_after_building_is_saved_too(tmp_path: Path, checkpoint) -> None:
    model = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(checkpoint[1]))).eval()
    model.reset_classifier(3)
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert same_state(back, model) and back(image()).shape == (2, 3)
    assert dcn.defect_spec(back).mask_origin == "loaded"


def test_a_saved_model_comes_back_bit_equal_in_a_fresh_process(tmp_path: Path) -> None:
    model = create(p=0.4, seed=11, mode="neuron", num_classes=5).eval()
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    torch.save({"state": model.state_dict(), "images": image(), "logits": model(image())}, tmp_path / "expected.pt")
    code = f"""
import dcn_plugin, timm, torch
torch.set_num_threads({torch.get_num_threads()})
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
random = timm.create_model("local-dir:{tmp_path / "saved"}")
back = timm.create_model("local-dir:{tmp_path / "saved"}", pretrained=True).eval()
state = back.state_dict()
assert state.keys() == expected["state"].keys()
assert all(torch.equal(state[key], value) for key, value in expected["state"].items())
assert all(torch.equal(random.state_dict()[key], state[key]) for key in state if key.endswith("drop.mask"))
assert torch.equal(back(expected["images"]), expected["logits"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_saved_configuration_is_readable_json(tmp_path: Path) -> None:
    save_for_hf(create(p={0: 0.2, 1: 0.3, 2: 0.4}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == NAME
    assert config["model_args"]["p"] == {"0": 0.2, "1": 0.3, "2": 0.4}
    assert config["model_args"]["img_size"] == [SIZE, SIZE]
    assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]
    assert config["pretrained_cfg"]["fixed_input_size"] is True
    assert (
        without_masks(load_state_dict(str(tmp_path / "pytorch_model.bin"))).keys() == create(BASE).state_dict().keys()
    )


# Truncated networks


@pytest.mark.parametrize("feature_cls", [None, "list", "dict", "hook", "getter", "fx"])
def test_every_kind_of_truncated_network_has_the_masks_of_the_full_one(feature_cls) -> None:
    options = dict(p=0.5, blocks="all", seed=3)
    features = create(features_only=True, feature_cls=feature_cls, **options)
    assert same_bits(features, create(**options))
    assert features.feature_info.channels() == create(BASE, features_only=True).feature_info.channels()
    assert features.pretrained_cfg["architecture"] == NAME and features.pretrained_cfg["input_size"] == (3, SIZE, SIZE)
    assert dcn.is_defective(features)


def test_feature_cfg_is_understood_as_timm_does() -> None:
    features = create(features_only=True, feature_cfg={"feature_cls": "hook", "out_indices": (2, 3)})
    assert type(features).__name__ == "FeatureHookNet" and len(features(image())) == 2
    dcn.verify(features)


def test_blocks_are_those_of_the_full_network_whatever_is_kept_of_it() -> None:
    full = create()
    features = create(features_only=True, out_indices=(1,))
    kept = bits(features)
    assert 0 < len(kept) < len(bits(full)) and all(torch.equal(mask, bits(full)[site]) for site, mask in kept.items())
    assert {site.block_index for site in dcn.defect_spec(features).sites} == {0, 1}
    dcn.verify(features)


def test_a_truncated_network_that_keeps_no_mask_is_refused() -> None:
    with pytest.raises(SiteError, match="out_indices"):
        create(features_only=True, blocks="top", out_indices=(0, 1))


def test_modules_that_do_not_match_the_full_network_are_refused() -> None:
    from dcn_plugin.models.timm_features import full_paths

    features, other = create(BASE, features_only=True), timm.create_model("resnet18")
    with pytest.raises(SiteError, match="no exact counterpart"):
        full_paths(features, other)


# Bad input


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(p=0.0), SpecError),
        (dict(p=1.5), SpecError),
        (dict(p=float("nan")), SpecError),
        (dict(p={}), SpecError),
        (dict(p={0: 0.5}), SpecError),
        (dict(mode="pixel"), SpecError),
        (dict(sampling="poisson"), SpecError),
        (dict(span=3), SpecError),
        (dict(mode="hole"), SpecError),
        (dict(mode="nm", span=4, p=0.3), SpecError),
        (dict(seed=-1), SpecError),
        (dict(seed=0.5), SpecError),
        (dict(init_from="bases"), SpecError),
        (dict(blocks="layer9"), BlockError),
        (dict(blocks=()), BlockError),
        (dict(img_size=0), InputSizeError),
        (dict(img_size="32"), InputSizeError),
        (dict(img_size=(3, 32, 32)), InputSizeError),
        (dict(img_size=(32.0, 32)), InputSizeError),
        (dict(img_size=True), InputSizeError),
        (dict(p="0.3"), SpecError),
        (dict(blocks=0.3), BlockError),
        (dict(mode=["neuron"]), SpecError),
        (dict(pretrained=True), PretrainedError),
        (dict(pretrained=True, pretrained_cfg_overlay=dict(file="/nowhere/model.safetensors")), PretrainedError),
        (dict(init_from="base", pretrained_cfg_overlay=dict(file="/nowhere/model.safetensors")), PretrainedError),
    ],
    ids=str,
)
@pytest.mark.parametrize("features_only", [False, True])
def test_a_bad_option_is_a_named_error_that_says_what_was_got(options, error, features_only: bool) -> None:
    with pytest.raises(error) as caught:
        create(features_only=features_only, **options)
    assert isinstance(caught.value, DcnError) and caught.value.got != "<unset>"


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("option", ["mood", "image_size", "out_indexes", "num_class"])
def test_a_misspelt_option_is_timms_own_error(option: str, features_only: bool) -> None:
    with pytest.raises(TypeError, match=option):
        create(features_only=features_only, **{option: 1})


def test_an_unknown_tag_is_timms_own_error() -> None:
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        create("defective_resnet10t.nonsense")


def test_a_wrong_image_size_is_an_error_that_says_both() -> None:
    with pytest.raises(MaskShapeError, match="is 24x32x32 but its defect mask is 24x16x16"):
        create()(image(64))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_table_refuses_is_refused_by_name(name: str) -> None:
    assert name not in BASES and timm.is_model(name) and not timm.is_model(f"defective_{name}")
    with pytest.raises((BlockError, SiteError)):
        dcn.defectify(timm.create_model(name, num_classes=2), input_size=(3, 64, 64), inplace=True)
