"""A defective network comes back from its file bit for bit, or the file is refused and nothing is changed."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint import read_info, read_spec
from dcn_plugin.checkpoint.sealed_file import read_archive, write_archive
from dcn_plugin.errors import CheckpointError, MaskLostError, MaskStateError, NotDefectiveError, SpecError
from dcn_plugin.specs import DefectSpec
from tests.nets import NoNorm, SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, *SIZE)


class MixedNorms(nn.Module):
    """conv-GroupNorm, conv-channels-last LayerNorm, a tied pair of 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, 2, 1), nn.LayerNorm(8)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.two(torch.relu(self.one(x))).mean((2, 3))


class ByHand(nn.Module):
    """A network written with the paper's layer."""

    def __init__(self, seed: int = 0, size: int = 16) -> None:
        super().__init__()
        kind = {"output_size": (size, size), "seed": seed, "padding": 1}
        self.conv1 = dcn.DefectiveConv2d(3, 6, 3, site=0, norm=nn.BatchNorm2d(6), **kind)  # type: ignore[arg-type]
        self.conv2 = dcn.DefectiveConv2d(6, 6, 3, site=1, **kind)  # type: ignore[arg-type]
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def tiny_timm() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=4)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "SmallNet": SmallNet,
    "NoNorm": NoNorm,
    "MixedNorms": MixedNorms,
    "tiny_timm": tiny_timm,
}


def defective(name: str = "SmallNet", seed: int = 5, **options: Any) -> nn.Module:
    return shaken(dcn.defectify(PLAIN[name](), "all", 0.4, input_size=SIZE, seed=seed, **options))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


@pytest.fixture
def saved(path: Path) -> nn.Module:
    """A defective SmallNet that has been saved to ``path``."""
    model = defective()
    dcn.save_checkpoint(model, path)
    return model


# ---------------------------------------------------------------------------------------------- round trips

FRESH = """
import sys, torch
import dcn_plugin as dcn
from tests.checkpoint import test_network as t
folder = sys.argv[1]
for name, make in {**t.PLAIN, "ByHand": t.ByHand}.items():
    torch.manual_seed(99)  # other weights than those that were saved
    model = dcn.load_checkpoint(f"{folder}/{name}.safetensors", make()).eval()
    dcn.verify(model, t.IMAGES)
    assert torch.equal(model(t.IMAGES), torch.load(f"{folder}/{name}.pt")), name
    model.train()
    assert torch.equal(model(t.IMAGES), torch.load(f"{folder}/{name}.train.pt")), name
print("equal")
"""


def test_outputs_are_bit_equal_in_a_fresh_process(tmp_path: Path) -> None:
    for name in (*PLAIN, "ByHand"):
        model = shaken(ByHand()) if name == "ByHand" else defective(name)
        dcn.save_checkpoint(model, tmp_path / f"{name}.safetensors")
        torch.save(model(IMAGES), tmp_path / f"{name}.pt")
        torch.save(model.train()(IMAGES), tmp_path / f"{name}.train.pt")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, timeout=110, cwd=root
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_becomes_the_one_that_was_saved(path: Path, name: str, inplace: bool) -> None:
    model = defective(name)
    dcn.save_checkpoint(model, path)
    plain = PLAIN[name]()
    before = snapshot(plain)
    loaded = dcn.load_checkpoint(path, plain, inplace=inplace)
    assert (loaded is plain) == inplace
    assert inplace or same(before, snapshot(plain))
    assert loaded.training  # the flags are the model's own
    assert dcn.defect_spec(loaded) == dcn.defect_spec(model) == read_spec(path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded.eval()(IMAGES), model(IMAGES))
    dcn.verify(loaded)
    assert type(dcn.undefectify(loaded)) is type(plain)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    p=st.one_of(
        st.floats(0, 1, exclude_min=True, allow_subnormal=False),
        st.fixed_dictionaries({0: st.just(0.5), 1: st.floats(0.1, 1), 2: st.just(1.0)}),
    ),
    kind=st.sampled_from(
        [(mode, sampling, None) for mode in ("neuron", "channel", "shared") for sampling in ("bernoulli", "exact")]
        + [("hole", "bernoulli", 3), ("nm", "bernoulli", 4)]
    ),
    seed=st.integers(0, 2**64 - 1),
    blocks=st.sampled_from(["all", "bottom", "top", (0, "layer2.bn*"), ("conv1",)]),
)
def test_any_specification_comes_back_equal(
    path: Path, p: Any, kind: tuple[Any, Any, int | None], seed: int, blocks: Any
) -> None:
    mode, sampling, span = kind
    if mode == "nm":
        p = 0.75  # has to be a whole number of channels in four
    model = dcn.defectify(SmallNet(), blocks, p, mode, sampling=sampling, seed=seed, span=span, input_size=SIZE)
    dcn.save_checkpoint(model, path)
    assert read_spec(path) == dcn.defect_spec(model)
    loaded = dcn.load_checkpoint(path, SmallNet())
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_saving_what_was_loaded_gives_the_same_bytes(saved: nn.Module, path: Path, tmp_path: Path) -> None:
    dcn.save_checkpoint(dcn.load_checkpoint(str(path), SmallNet()), str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_packed_masks_cost_little(path: Path, tmp_path: Path) -> None:
    model = dcn.defectify(timm.create_model("resnet18", num_classes=10), input_size=(3, 224, 224))
    dcn.save_checkpoint(model, path)
    safetensors.torch.save_file(dcn.undefectify(model).state_dict(), tmp_path / "plain")
    assert path.stat().st_size <= 1.02 * (tmp_path / "plain").stat().st_size


def test_the_file_names_what_wrote_it_and_what_builds_it(path: Path) -> None:
    model = dcn.defectify(timm.create_model("test_resnet", num_classes=7, in_chans=1), input_size=(1, 16, 16))
    dcn.save_checkpoint(model, path, metadata={"epoch": "3", "run": "grün"})
    info = read_info(path)
    assert info.metadata == {"epoch": "3", "run": "grün"}
    assert info.versions["torch"] == torch.__version__.partition("+")[0]
    assert {"dcn-plugin", "timm"} <= info.versions.keys()
    assert info.architecture == "test_resnet"
    assert info.model_args is not None
    rebuilt = dcn.load_checkpoint(path, timm.create_model(info.architecture, **info.model_args))
    assert torch.equal(rebuilt.eval()(IMAGES[:, :1]), model.eval()(IMAGES[:, :1]))


def test_arguments_that_are_no_json_are_left_out_whole(path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=7, act_layer=nn.Mish)
    dcn.save_checkpoint(dcn.defectify(model, input_size=SIZE), path)
    assert read_info(path).architecture == "test_resnet"
    assert read_info(path).model_args is None


# ------------------------------------------------------------------------------- into a defective model


@pytest.mark.parametrize("inplace", [False, True])
def test_weights_and_masks_of_the_file_win_in_a_defective_model(saved: nn.Module, path: Path, inplace: bool) -> None:
    other = defective(seed=6)
    loaded = dcn.load_checkpoint(path, other, inplace=inplace)
    assert (loaded is other) == inplace
    assert torch.equal(loaded(IMAGES), saved(IMAGES))
    assert dcn.defect_spec(loaded).mask_origin == "loaded"
    assert inplace or dcn.defect_spec(other).mask_origin == "sampled"
    dcn.verify(loaded)


def test_equal_masks_are_no_loaded_masks(saved: nn.Module, path: Path) -> None:
    loaded = dcn.load_checkpoint(path, defective())
    assert dcn.defect_spec(loaded) == dcn.defect_spec(saved)


def test_masks_that_a_state_dict_brought_come_back(saved: nn.Module, path: Path) -> None:
    state = {key: ~value if value.dtype == torch.bool else value for key, value in saved.state_dict().items()}
    saved.load_state_dict(state)
    dcn.save_checkpoint(saved, path)
    for target in (SmallNet(), defective()):
        loaded = dcn.load_checkpoint(path, target)
        assert torch.equal(loaded.eval()(IMAGES), saved(IMAGES))
        assert dcn.defect_spec(loaded).mask_origin == "loaded"
        dcn.verify(loaded)


def test_torchs_own_loading_into_a_plain_model_is_a_strict_error(saved: nn.Module, path: Path) -> None:
    plain = SmallNet()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*drop.mask"):
        plain.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*drop.mask"):
        plain.load_state_dict(safetensors.torch.load_file(path))


def test_the_raw_file_in_a_defective_model_is_a_named_error(saved: nn.Module, path: Path) -> None:
    with pytest.raises(MaskStateError):
        defective().load_state_dict(safetensors.torch.load_file(path))


# --------------------------------------------------------------------------------------------- by hand


def test_a_network_written_by_hand_comes_back_with_its_masks(path: Path) -> None:
    model = shaken(ByHand(seed=1))
    dcn.save_checkpoint(model, path)
    assert read_info(path).parts == {} and set(read_info(path).masks) == {"conv1.drop", "conv2.drop"}
    for seed, origin in ((1, "sampled"), (2, "loaded")):
        loaded = dcn.load_checkpoint(path, ByHand(seed=seed)).eval()
        assert torch.equal(loaded(IMAGES), model(IMAGES))
        assert {mask.origin for mask in loaded.modules() if isinstance(mask, dcn.DefectMask2d)} == {origin}
        dcn.verify(loaded, IMAGES)
    with pytest.raises(CheckpointError, match=r"written by hand.*Fix: .*load_checkpoint"):
        read_spec(path)


def test_a_network_by_hand_does_not_go_into_one_without_its_layers(path: Path) -> None:
    dcn.save_checkpoint(ByHand(), path)
    with pytest.raises(CheckpointError, match=r"placed by hand \(conv1.drop, conv2.drop\).*Fix: .*DefectiveConv2d"):
        dcn.load_checkpoint(path, SmallNet())
    with pytest.raises(CheckpointError, match=r"other places.*only in the file: .*conv1.drop.*16, 16.*Got: .*8, 8"):
        dcn.load_checkpoint(path, ByHand(size=8))


# -------------------------------------------------------------------------------------- memory and dtype


def test_tied_weights_are_stored_once_and_stay_tied(path: Path) -> None:
    model = defective("MixedNorms")
    dcn.save_checkpoint(model, path)
    assert "two.weight" not in safetensors.torch.load_file(path)
    loaded: Any = dcn.load_checkpoint(path, MixedNorms())
    assert loaded.two.weight is loaded.one.weight
    untied: Any = MixedNorms()
    untied.two.weight = nn.Parameter(untied.two.weight.clone())
    assert torch.equal(dcn.load_checkpoint(path, untied).eval()(IMAGES), model(IMAGES))


def test_untied_weights_do_not_go_into_a_model_that_ties_them(path: Path) -> None:
    model: Any = MixedNorms()
    model.two.weight = nn.Parameter(model.two.weight + 1)
    dcn.save_checkpoint(dcn.defectify(model, "all", input_size=SIZE), path)
    with pytest.raises(CheckpointError, match=r"ties entries that have different values.*two.weight"):
        dcn.load_checkpoint(path, MixedNorms())


def test_channels_last_is_saved_right_and_stays_the_models_own(path: Path) -> None:
    model = defective().to(memory_format=torch.channels_last)
    dcn.save_checkpoint(model, path)
    last: Any = dcn.load_checkpoint(path, SmallNet().to(memory_format=torch.channels_last)).eval()
    assert last.layer1.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    images = IMAGES.to(memory_format=torch.channels_last)
    assert torch.equal(last(images), model(images))
    first: Any = dcn.load_checkpoint(path, SmallNet()).eval()
    assert first.layer1.conv1.weight.is_contiguous()
    assert torch.allclose(first(IMAGES), model(images), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_file_is_kept_and_never_cast(path: Path, dtype: torch.dtype) -> None:
    model = dcn.defectify(SmallNet(), "all", input_size=SIZE).to(dtype).eval()  # shaken, it would overflow in half
    dcn.save_checkpoint(model, path)
    loaded = dcn.load_checkpoint(path, SmallNet().to(dtype)).eval()
    assert torch.equal(loaded(IMAGES.to(dtype)), model(IMAGES.to(dtype)))
    with pytest.raises(CheckpointError, match=f"another dtype.*{dtype} in the file and torch.float32 in the model"):
        dcn.load_checkpoint(path, SmallNet())


@pytest.mark.gpu
def test_a_model_on_a_gpu_stays_there(saved: nn.Module, path: Path) -> None:
    loaded = dcn.load_checkpoint(path, SmallNet().cuda())
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cuda"}
    dcn.verify(loaded)
    dcn.save_checkpoint(loaded, path)
    assert torch.equal(dcn.load_checkpoint(path, SmallNet()).eval()(IMAGES), saved(IMAGES))


def test_meta_models_are_refused_until_they_are_materialised(saved: nn.Module, path: Path) -> None:
    ghost = copy.deepcopy(saved).to("meta")
    with pytest.raises(CheckpointError, match=r"'conv1.weight' cannot be stored.*meta"):
        dcn.save_checkpoint(ghost, path.with_name("ghost"))
    for target in (ghost, SmallNet().to("meta")):
        with pytest.raises(CheckpointError, match=r"on the meta device.*Fix: call to_empty"):
            dcn.load_checkpoint(path, target)
    there = dcn.load_checkpoint(path, ghost.to_empty(device="cpu"))
    assert torch.equal(there(IMAGES), saved(IMAGES))
    dcn.verify(there)


# ---------------------------------------------------------------------------------------------- wrappers

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Normalized": lambda model: dcn.Normalized(model, MEAN, STD),
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "DataParallel": nn.DataParallel,
    "all three": lambda model: nn.DataParallel(torch.compile(dcn.Normalized(model, MEAN, STD), backend="eager")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_looked_through_on_both_sides(saved: nn.Module, path: Path, wrapper: str) -> None:
    wrap = WRAPPERS[wrapper]
    again = path.with_name("again")
    dcn.save_checkpoint(wrap(copy.deepcopy(saved)), again)
    assert read_archive(again)[0].keys() == read_archive(path)[0].keys()
    assert torch.equal(dcn.load_checkpoint(again, SmallNet()).eval()(IMAGES), saved(IMAGES))
    network = SmallNet()
    outer = wrap(network)
    assert dcn.load_checkpoint(path, outer, inplace=True) is outer
    assert torch.equal(network.eval()(IMAGES), saved(IMAGES))
    inner = dcn.load_checkpoint(path, wrap(SmallNet()))
    assert type(inner) is type(outer)
    assert torch.equal(inner.eval()(IMAGES), wrap(saved)(IMAGES))


def test_an_inner_module_may_be_compiled(saved: nn.Module, path: Path) -> None:
    def compiled(model: Any) -> nn.Module:
        model.layer1 = torch.compile(model.layer1, backend="eager")
        return model  # type: ignore[no-any-return]

    again = path.with_name("again")
    dcn.save_checkpoint(compiled(copy.deepcopy(saved)), again)
    assert again.read_bytes() == path.read_bytes()
    for target in (SmallNet(), defective(seed=8)):
        loaded = dcn.load_checkpoint(path, compiled(target)).eval()
        assert torch.equal(loaded(IMAGES), saved(IMAGES))


def test_the_constants_of_normalized_are_recorded_and_held_against_others(saved: nn.Module, path: Path) -> None:
    assert read_info(path).normalization is None
    dcn.save_checkpoint(dcn.Normalized(saved, MEAN, STD), path)
    recorded = read_info(path).normalization
    assert recorded is not None and recorded["mean"] == pytest.approx(MEAN) and recorded["std"] == pytest.approx(STD)
    dcn.load_checkpoint(path, dcn.Normalized(SmallNet(), MEAN, STD))
    dcn.load_checkpoint(path, SmallNet())
    with pytest.raises(CheckpointError, match="Normalized with other constants"):
        dcn.load_checkpoint(path, dcn.Normalized(SmallNet(), MEAN, (0.2, 0.3, 0.5)))


def test_a_network_with_several_defective_parts_comes_back_whole(path: Path) -> None:
    model = nn.ModuleDict(
        {"a": defective(seed=1), "b": defective("NoNorm", seed=2), "c": ByHand(), "d": nn.Linear(2, 2)}
    )
    dcn.save_checkpoint(model, path)
    assert set(read_info(path).parts) == {"a", "b"}
    target = nn.ModuleDict(
        {"a": defective(seed=3), "b": defective("NoNorm"), "c": ByHand(seed=3), "d": nn.Linear(2, 2)}
    )
    loaded = dcn.load_checkpoint(path, target).eval()
    for name in "abc":
        assert torch.equal(loaded[name](IMAGES), model.eval()[name](IMAGES))  # type: ignore[index]
    assert torch.equal(loaded["d"].weight, model["d"].weight)  # type: ignore[index]
    model.pop("c")
    dcn.save_checkpoint(model, path)
    plain = nn.ModuleDict({"a": SmallNet(), "b": NoNorm(), "d": nn.Linear(2, 2)})
    loaded = dcn.load_checkpoint(path, plain).eval()
    assert torch.equal(loaded["b"](IMAGES), model["b"](IMAGES))  # type: ignore[index]


def test_a_mask_behind_a_drop_layer_comes_back(path: Path) -> None:
    def with_drop() -> Any:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout))

    model = dcn.defectify(with_drop(), "all", input_size=SIZE)
    dcn.save_checkpoint(model, path)
    assert set(read_info(path).masks) == {"1.drop.1"}
    assert torch.equal(dcn.load_checkpoint(path, with_drop()).eval()(IMAGES), model.eval()(IMAGES))
    without = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), timm.layers.BatchNormAct2d(4))
    with pytest.raises(CheckpointError, match=r"not in the file \(1.drop.mask\)"):
        dcn.load_checkpoint(path, without)


# ------------------------------------------------------------------------------------------ bad input


class OtherNet(SmallNet):
    """SmallNet with one module more."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class OddNorm(nn.BatchNorm2d):
    """A batch norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class RenamedNorm(SmallNet):
    """SmallNet with a norm that cannot carry a mask, under the same state-dict keys."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = OddNorm(8)


def smaller() -> nn.Module:
    return dcn.defectify(SmallNet(), "all", input_size=(3, 12, 12))


def bottom() -> nn.Module:
    return dcn.defectify(SmallNet(), "bottom", input_size=SIZE)


MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another architecture": (NoNorm, "no place for a mask at 'bn1'"),
    "a module more": (OtherNet, "2 entries of the model are not in the file .*extra.bias"),
    "other classes": (lambda: SmallNet(6), "another shape, 'fc.weight' .*5, 16.* in the file and .*6, 16"),
    "a norm without a slot": (RenamedNorm, "no place for a mask at 'bn1'.*OddNorm"),
    "masks of another size": (smaller, "other places or have other shapes.*16, 16.*Got: .*12, 12"),
    "other sites": (bottom, "only in the file: .*layer3"),
    "masks by hand": (ByHand, "other places"),
    "another dtype": (lambda: defective().half(), "another dtype"),
    "a defective part in the wrong place": (lambda: nn.Sequential(SmallNet()), "no place for a mask"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_does_not_fit_is_refused_and_nothing_changes(
    saved: nn.Module, path: Path, case: str, inplace: bool
) -> None:
    make, message = MISFITS[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=f"does not fit this model: .*{message}") as caught:
        dcn.load_checkpoint(path, model, inplace=inplace)
    assert "Got: " in str(caught.value) and "Allowed: " in str(caught.value) and "Fix: " in str(caught.value)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "header", "tensor", "spec"])
def test_a_damaged_file_changes_nothing(saved: nn.Module, path: Path, damage: str, plain: bool) -> None:
    blob = bytearray(path.read_bytes())
    if damage == "truncated":
        del blob[len(blob) // 2 :]
    else:
        place = {"header": 4, "tensor": len(blob) - 9, "spec": blob.index(b"bernoulli")}[damage]
        blob[place] ^= 0x01
    path.write_bytes(blob)
    model = SmallNet() if plain else defective(seed=6)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="damaged"):
        dcn.load_checkpoint(path, model, inplace=True)
    assert same(before, snapshot(model))
    for reader in (read_spec, read_info):
        with pytest.raises(CheckpointError, match="damaged"):
            reader(path)


def _reseal(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    state, text = read_archive(path)
    record = json.loads(text["dcn_plugin.record"])
    edit(record, state)
    write_archive(path, state, {**text, "dcn_plugin.record": json.dumps(record)})


def _flip_masks(_: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["bn1.drop.mask"] = ~state["bn1.drop.mask"]


FORGERIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "other bits": (_flip_masks, "contradicts itself: 1 masks.*bn1.drop"),
    "another seed": (lambda r, _: [s["mask"].update(seed=9) for s in r["parts"][""]["sites"]], "contradicts itself"),
    "a huge site": (lambda r, _: r["parts"][""]["sites"][0].update(shape=[2**20] * 3), "contradicts itself"),
    "an unknown scheme": (lambda r, _: r["parts"][""].update(mask_scheme=2), "cannot be read.*scheme"),
    "no spec": (lambda r, _: r.pop("parts"), "cannot be read.*'parts'"),
    "a broken spec": (lambda r, _: r["parts"][""].pop("sites"), "cannot be read.*DefectSpec"),
    "a mask less": (lambda _, s: s.pop("bn1.drop.mask"), "cannot be read.*bn1.drop.mask"),
    "no list": (lambda r, _: r.update(masks=3), "cannot be read"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_well_sealed_file_that_contradicts_itself_is_refused(saved: nn.Module, path: Path, forgery: str) -> None:
    edit, message = FORGERIES[forgery]
    _reseal(path, lambda record, state: None)
    read_spec(path)  # sealing again is no forgery
    _reseal(path, edit)
    model = SmallNet()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        dcn.load_checkpoint(path, model, inplace=True)
    assert same(before, snapshot(model))


def test_plain_weights_are_refused_with_the_way_to_load_them(path: Path) -> None:
    plain = shaken(SmallNet())
    safetensors.torch.save_file(plain.state_dict(), path)
    model = defective()
    with pytest.raises(CheckpointError, match=r"plain weights.*Fix: make the model defective and load"):
        dcn.load_checkpoint(path, model)
    model.load_state_dict(safetensors.torch.load_file(path))
    dcn.verify(model)
    assert torch.equal(dcn.undefectify(model)(IMAGES), plain(IMAGES))


def test_a_plain_model_is_not_saved(path: Path) -> None:
    with pytest.raises(NotDefectiveError, match=r"SmallNet carries no defect masks.*Fix: .*defectify"):
        dcn.save_checkpoint(SmallNet(), path)
    assert not path.exists()


def test_a_model_that_lost_a_mask_is_not_saved(path: Path) -> None:
    model: Any = defective()
    model.bn1.drop = nn.Identity()
    with pytest.raises(MaskLostError, match=r"1 of .* sites .* no mask any more.*bn1"):
        dcn.save_checkpoint(model, path)
    assert not path.exists()


def test_a_model_with_bits_from_nowhere_is_not_saved(path: Path) -> None:
    model: Any = defective()
    model.bn1.drop.mask.logical_not_()
    with pytest.raises(MaskStateError, match=r"1 masks have other bits.*bn1.drop.*Fix: .*load_state_dict"):
        dcn.save_checkpoint(model, path)
    assert not path.exists()


def test_a_state_that_is_no_tensor_is_refused_by_name(path: Path) -> None:
    class Talkative(SmallNet):
        def get_extra_state(self) -> str:
            return "hello"

    with pytest.raises(CheckpointError, match=r"'_extra_state' cannot be stored.*Got: 'str'"):
        dcn.save_checkpoint(dcn.defectify(Talkative(), input_size=SIZE), path)


@pytest.mark.parametrize("metadata", [{"epoch": 3}, {1: "a"}, {"format": "pt"}, {"dcn_plugin.record": "{}"}])
def test_metadata_that_is_no_text_or_is_reserved_is_refused(path: Path, metadata: dict[Any, Any]) -> None:
    with pytest.raises(SpecError, match=r"text to text.*Got: .*Allowed: .*Fix: "):
        dcn.save_checkpoint(defective(), path, metadata=metadata)
    assert not path.exists()


def test_saving_changes_nothing_in_the_model(path: Path) -> None:
    model = defective()
    before = snapshot(model)
    dcn.save_checkpoint(model, path)
    assert same(before, snapshot(model))


def test_the_hook_of_a_loaded_copy_watches_the_copy(saved: nn.Module, path: Path) -> None:
    loaded = dcn.load_checkpoint(path, SmallNet())
    twin = copy.deepcopy(loaded)
    twin.load_state_dict({k: ~v if v.dtype == torch.bool else v for k, v in loaded.state_dict().items()})
    assert dcn.defect_spec(twin) == dataclasses.replace(dcn.defect_spec(loaded), mask_origin="loaded")
    assert isinstance(dcn.defect_spec(loaded), DefectSpec) and dcn.defect_spec(loaded).mask_origin == "sampled"
