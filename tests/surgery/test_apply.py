"""defectify, undefectify, and what a state dict may do to masks."""

import copy
import math
import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import (
    AlreadyDefectiveError,
    BlockError,
    DcnError,
    DeadSiteWarning,
    InputSizeError,
    MaskStateError,
    NotDefectiveError,
    PlacementWarning,
    SiteError,
    SpecError,
    TraceError,
)
from dcn_plugin.surgery import insert_masks, masks_of, plan_defects
from tests.nets import NoNorm, Residual, SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)


def masked(model: nn.Module) -> list[str]:
    return [site.name for site in dcn.defect_spec(model).sites]


def make(**options: object) -> tuple[nn.Module, nn.Module]:
    plain = shaken(SmallNet())
    return plain, dcn.defectify(plain, **{"input_size": SIZE, **options})


def slow_forward(plain: nn.Module, masks: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """SmallNet written out with its masks between norm and activation: the obvious oracle."""

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return plain.get_submodule(name)(x) * masks.get(name, torch.ones(()))

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        stage = plain.get_submodule(name)
        out = torch.relu(normed(f"{name}.bn1", stage.conv1(x)))
        return torch.relu(normed(f"{name}.bn2", stage.conv2(out)) + normed(f"{name}.shortcut.1", stage.shortcut[0](x)))

    x = torch.relu(normed("bn1", plain.conv1(x)))
    for name in ("layer1", "layer2", "layer3"):
        x = block(name, x)
    return plain.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("mode", "span"), [("neuron", None), ("channel", None), ("shared", None), ("hole", 3), ("nm", 4)]
)
@pytest.mark.parametrize("training", [False, True])
def test_the_defective_network_is_the_plain_one_with_masks_between_norm_and_activation(mode, span, training) -> None:
    plain, net = make(mode=mode, span=span, p=0.5, blocks="all")
    assert (dcn.defect_spec(net).mode, dcn.defect_spec(net).span) == (mode, span)
    masks = {site.name: net.get_submodule(site.name).drop.mask for site in dcn.defect_spec(net).sites}
    assert set(masks) == {"bn1", *(f"layer{i}.{n}" for i in (1, 2, 3) for n in ("bn1", "bn2", "shortcut.1"))}
    x = torch.rand(4, *SIZE)
    expected = slow_forward(plain.train(training), masks, x)
    assert torch.equal(net.train(training)(x), expected)
    assert not torch.equal(expected, plain(x))


def test_bottom_is_the_first_half_of_the_blocks_rounded_up() -> None:
    assert masked(make()[1]) == [
        *("bn1", "layer1.bn1", "layer1.bn2", "layer1.shortcut.1"),
        *("layer2.bn1", "layer2.bn2", "layer2.shortcut.1"),
    ]
    assert masked(make(blocks="top")[1]) == ["layer3.bn1", "layer3.bn2", "layer3.shortcut.1"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("net", [SmallNet, NoNorm, lambda: timm.create_model("test_efficientnet")])
def test_p_one_is_bit_equal_to_the_plain_network(net, training) -> None:
    plain = shaken(net())
    defective = dcn.defectify(plain, blocks="all", p=1, input_size=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(defective.train(training)(x), plain.train(training)(x))
    for name, buffer in plain.named_buffers():
        assert torch.equal(defective.get_buffer(name), buffer)


@pytest.mark.parametrize("net", [SmallNet, NoNorm, lambda: timm.create_model("test_resnet")])
def test_undefectify_is_the_exact_inverse(net) -> None:
    plain = shaken(net())
    before = snapshot(plain)
    defective = dcn.defectify(plain, blocks="all", input_size=(3, 32, 32))
    assert same(before, snapshot(plain)), "defectify changed the model that was passed in"
    again = dcn.undefectify(defective)
    assert dcn.is_defective(defective) and not dcn.is_defective(again)
    after = snapshot(again)
    assert {**after, "ids": before["ids"]}.keys() == before.keys()
    assert repr(again) == before["repr"] and after["hooks"] == before["hooks"]
    assert after["attributes"] == before["attributes"]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), plain(x))


def test_in_place_changes_the_model_itself_and_back() -> None:
    plain = shaken(SmallNet())
    before = snapshot(plain)
    assert dcn.defectify(plain, input_size=SIZE, inplace=True) is plain
    assert dcn.is_defective(plain) and not same(before, snapshot(plain))
    assert dcn.undefectify(plain, inplace=True) is plain
    assert same(before, snapshot(plain))


def test_names_classes_and_parameters_are_the_base_models_own() -> None:
    plain, net = make()
    assert type(net) is SmallNet
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    extra = [key for key in net.state_dict() if key not in plain.state_dict()]
    assert extra == [f"{name}.drop.mask" for name in masked(net)]
    assert isinstance(net.bn1, nn.BatchNorm2d) and type(net.bn1) is BatchNormAct2d


def test_a_fused_layer_masks_before_its_activation_and_keeps_a_drop_layer_it_had() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    fused = BatchNormAct2d(8, act_layer=nn.Sigmoid, act_kwargs={}, inplace=False, drop_layer=Doubling)
    plain = shaken(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), fused))
    net = dcn.defectify(plain, blocks="all", p=0.5, input_size=SIZE)
    mask = next(iter(masks_of(net).values())).mask
    x = torch.rand(2, *SIZE)
    normed = nn.functional.batch_norm(
        plain[0](x), fused.running_mean, fused.running_var, fused.weight, fused.bias, eps=fused.eps
    )
    assert torch.equal(net(x), torch.sigmoid(normed * 2 * mask))
    dcn.verify(net)
    assert repr(dcn.undefectify(net)) == repr(plain)


def test_masks_do_not_depend_on_which_blocks_are_chosen_and_survive_pickle() -> None:
    bottom, everything = make()[1], make(blocks="all")[1]
    for name in masked(bottom):
        assert torch.equal(bottom.get_submodule(name).drop.mask, everything.get_submodule(name).drop.mask)
    again = pickle.loads(pickle.dumps(bottom))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in bottom.state_dict().items())


def test_another_seed_gives_other_masks_and_every_site_its_own() -> None:
    first, second = make(seed=1)[1], make(seed=2)[1]
    bits = [net.get_submodule(name).drop.mask.flatten().tolist() for net in (first, second) for name in masked(net)]
    assert len({tuple(b) for b in bits}) == len(bits)


def test_every_block_can_have_its_own_keep_probability() -> None:
    net = make(blocks="all", p={0: 0.9, "layer2": 0.5, "layer3*": 0.2})[1]
    p = {site.name: site.mask.p for site in dcn.defect_spec(net).sites}
    assert (p["bn1"], p["layer1.bn2"], p["layer2.bn1"], p["layer3.shortcut.1"]) == (0.9, 0.9, 0.5, 0.2)


def test_filter_fn_is_asked_for_every_chosen_norm() -> None:
    net = make(filter_fn=lambda module, name: "shortcut" not in name and isinstance(module, nn.BatchNorm2d))[1]
    assert masked(net) == ["bn1", "layer1.bn1", "layer1.bn2", "layer2.bn1", "layer2.bn2"]


def test_a_channels_last_model_gets_channels_last_masks() -> None:
    net = dcn.defectify(SmallNet().to(memory_format=torch.channels_last), input_size=SIZE)
    assert net.bn1.drop.mask.is_contiguous(memory_format=torch.channels_last)
    assert net(torch.rand(2, *SIZE).to(memory_format=torch.channels_last)).shape == (2, 5)


def test_torchvision_networks_work_as_they_come() -> None:
    net = dcn.defectify(torchvision.models.resnet18(), input_size=(3, 64, 64))
    assert len(masked(net)) == 10 and masked(net)[0] == "bn1" and masked(net)[-1] == "layer2.1.bn2"


# --- bad input: a named error, and the model as it was ---------------------------------------------------------

BAD: dict[str, tuple[dict[str, object], type[DcnError], str]] = {
    "p = 0": ({"p": 0}, SpecError, "keep probability"),
    "p > 1": ({"p": 1.5}, SpecError, "keep probability"),
    "p = NaN": ({"p": math.nan}, SpecError, "keep probability"),
    "mapping without a chosen block": ({"p": {"layer1": 0.5}}, SpecError, "no keep probability for block"),
    "unknown mode": ({"mode": "pixel"}, SpecError, "'neuron', 'channel', 'shared'"),
    "holes of no size": ({"mode": "hole"}, SpecError, "needs a span"),
    "a span where none belongs": ({"span": 3}, SpecError, "takes no span"),
    "exactly counted holes": ({"mode": "hole", "span": 3, "sampling": "exact"}, SpecError, "holes overlap"),
    "p that is no pattern": ({"mode": "nm", "span": 4}, SpecError, "p=1/4"),
    "p of one block that is no pattern": ({"mode": "nm", "span": 4, "p": {0: 0.5, 1: 0.3}}, SpecError, "p=1/4"),
    "unknown sampling": ({"sampling": "random"}, SpecError, "'bernoulli', 'exact'"),
    "bad seed": ({"seed": -1}, SpecError, "seed"),
    "glob without match": ({"blocks": ("layer9",)}, BlockError, "layer9.*available: .*layer2.*layer3"),
    "one glob of two without match": ({"blocks": ("layer1", "x*")}, BlockError, "x\\*"),
    "block number out of range": ({"blocks": (7,)}, BlockError, "available"),
    "no blocks at all": ({"blocks": ()}, BlockError, "empty"),
    "paper placement of an unknown network": ({"blocks": "paper"}, BlockError, "resnet18"),
    "filter leaves nothing": ({"filter_fn": lambda m, n: False}, SiteError, "No site is left"),
    "no input size": ({"input_size": None}, InputSizeError, "input_size=\\(C, H, W\\)"),
    "input size of two numbers": ({"input_size": (16, 16)}, InputSizeError, "\\(C, H, W\\)"),
    "wrong channel count": ({"input_size": (1, 16, 16)}, InputSizeError, "3 channels"),
    "image too small": ({"input_size": (3, 0, 16)}, InputSizeError, "three integers"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("inplace", [False, True])
def test_bad_input_is_a_named_error_and_the_model_stays_bit_equal(case, inplace) -> None:
    options, error, match = BAD[case]
    model = shaken(SmallNet()).train()
    model.layer1.bn1.eval()  # a frozen norm: its flag must come back as it was
    before = snapshot(model)
    with pytest.raises(error, match=match) as caught:
        dcn.defectify(model, **{"input_size": SIZE, "inplace": inplace, **options})  # type: ignore[arg-type]
    assert "Allowed: " in str(caught.value) or "Fix: " in str(caught.value) or "available: " in str(caught.value)
    assert same(before, snapshot(model))


def test_a_network_without_convolution_is_refused_by_name() -> None:
    with pytest.raises(SiteError, match="no convolution"):
        dcn.defectify(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), input_size=(3, 2, 2))


def test_a_defective_network_is_refused_by_name() -> None:
    net = make()[1]
    before = snapshot(net)
    with pytest.raises(AlreadyDefectiveError, match=r"undefectify"):
        dcn.defectify(net, input_size=SIZE)
    assert same(before, snapshot(net))


def test_a_plain_network_cannot_be_undone() -> None:
    for call in (dcn.undefectify, dcn.defect_spec, dcn.summary, dcn.verify):
        with pytest.raises(NotDefectiveError, match="defectify"):
            call(SmallNet())


def test_an_image_of_another_size_is_refused_by_name_when_it_is_fed() -> None:
    with pytest.raises(DcnError, match="8x24x24 but its defect mask is 8x16x16"):
        make()[1](torch.rand(1, 3, 24, 24))


def test_a_network_whose_masks_a_tool_dropped_can_be_made_defective_again() -> None:
    net = make()[1]
    for name in masked(net):
        parent, _, child = name.rpartition(".")
        width = net.get_submodule(name).num_features
        setattr(net.get_submodule(parent), child, nn.BatchNorm2d(width))
    assert not dcn.is_defective(net)
    dcn.verify(dcn.defectify(net, input_size=SIZE))


def test_a_plan_for_another_architecture_is_refused_by_name() -> None:
    spec = plan_defects(SmallNet(), input_size=SIZE)
    other = NoNorm()
    before = snapshot(other)
    with pytest.raises(SiteError, match="no place for a mask at 'bn1'"):
        insert_masks(other, spec)
    assert same(before, snapshot(other))


# --- state dicts -------------------------------------------------------------------------------------------------


def test_standard_weights_load_strictly_and_leave_the_masks_alone() -> None:
    net = make()[1]
    other = shaken(SmallNet(), seed=9)
    before = {key: m.mask.clone() for key, m in masks_of(net).items()}
    result = net.load_state_dict(other.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert all(torch.equal(m.mask, before[key]) for key, m in masks_of(net).items())
    assert torch.equal(net.conv1.weight, other.conv1.weight) and dcn.defect_spec(net).mask_origin == "sampled"
    dcn.verify(net)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: dcn.Normalized(net, (0.5,) * 3, (0.2,) * 3)])
def test_masks_of_a_state_dict_win_and_the_specification_says_so(wrap) -> None:
    net, other = wrap(make(seed=1)[1]), wrap(make(seed=2)[1])
    net.load_state_dict(other.state_dict())
    x = torch.rand(2, *SIZE)
    assert torch.equal(net(x), other(x))
    assert dcn.defect_spec(net).mask_origin == "loaded"
    dcn.verify(net)
    same_seed = wrap(make(seed=2)[1])
    same_seed.load_state_dict(other.state_dict())
    assert dcn.defect_spec(same_seed).mask_origin == "sampled"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("harm", ["one missing", "all but one missing", "other shape", "other numbers"])
def test_a_state_dict_with_half_the_masks_is_refused_before_anything_is_loaded(harm, strict) -> None:
    net, other = make(seed=1)[1], make(seed=2)[1]
    state = dict(other.state_dict())
    keys = [key for key in state if key.endswith(".drop.mask")]
    if harm == "one missing":
        del state[keys[0]]
    elif harm == "all but one missing":
        for key in keys[1:]:
            del state[key]
    elif harm == "other shape":
        state[keys[2]] = state[keys[2]][:, :, :-1]
    else:
        state[keys[2]] = state[keys[2]].float() / 2
    before = snapshot(net)
    said = "other numbers than 0 and 1" if harm == "other numbers" else "does not fit the masks"
    with pytest.raises(MaskStateError, match=said):
        net.load_state_dict(state, strict=strict)
    assert same(before, snapshot(net))


def test_a_defective_checkpoint_does_not_load_into_a_plain_model() -> None:
    plain, net = make()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*drop\.mask"):
        plain.load_state_dict(net.state_dict())


def test_the_load_rules_survive_copy_and_pickle() -> None:
    net = make()[1]
    state = dict(net.state_dict())
    del state["bn1.drop.mask"]
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(MaskStateError):
            again.load_state_dict(state)


def test_after_undefectify_the_plain_load_rules_hold() -> None:
    plain, net = make()
    dcn.undefectify(net).load_state_dict(plain.state_dict())


def test_a_block_is_a_residual_block_like_any_other() -> None:
    """The site finder sees through a user's own module class."""
    net = dcn.defectify(nn.Sequential(Residual(3, 4, 1), Residual(4, 8, 2)), input_size=SIZE)
    assert masked(net) == ["0.bn1", "0.bn2", "0.shortcut.1"]


# --- instance norms ------------------------------------------------------------------------------------------------


def with_instance_norms(**options: object) -> nn.Module:
    def norm(width: int) -> nn.Module:
        return nn.InstanceNorm2d(width, **options)  # type: ignore[arg-type]

    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3), norm(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )


INSTANCE_NORMS = [{}, {"affine": True}, {"track_running_stats": True}, {"affine": True, "track_running_stats": True}]


@pytest.mark.parametrize("options", INSTANCE_NORMS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_instance_norms_carry_masks_behind_them(options, training) -> None:
    plain = shaken(with_instance_norms(**options)).train(training)
    net = dcn.defectify(plain, "all", p=0.5, input_size=SIZE)
    assert masked(net) == ["1", "5"] and set(net.state_dict()) - set(plain.state_dict()) == {
        "1.drop.mask",
        "5.drop.mask",
    }
    x = torch.rand(3, *SIZE)
    expected = x
    for i, layer in enumerate(copy.deepcopy(plain)):
        expected = layer(expected)
        if i in (1, 5):
            expected = expected * net[i].drop.mask
    assert torch.equal(net(x), expected)
    for name, buffer in net.named_buffers():
        if "running" in name and training:
            assert not torch.equal(buffer, plain.get_buffer(name)), "statistics are taken in training"
    dcn.verify(net)


@pytest.mark.parametrize("options", INSTANCE_NORMS, ids=str)
def test_with_instance_norms_p_one_is_bit_equal_and_undefectify_exact(options) -> None:
    plain, x = shaken(with_instance_norms(**options)), torch.rand(3, *SIZE)
    before = snapshot(plain)
    whole = dcn.defectify(plain, "all", p=1, input_size=SIZE)
    for training in (False, True):
        again = dcn.undefectify(whole.train(training))
        a, b = copy.deepcopy(plain).train(training), copy.deepcopy(whole)
        assert torch.equal(a(x), b(x)) and torch.equal(copy.deepcopy(again)(x), copy.deepcopy(plain).train(training)(x))
        for key, value in a.state_dict().items():
            assert torch.equal(b.state_dict()[key], value)
    again = dcn.undefectify(whole.eval())
    assert snapshot(again)["attributes"] == before["attributes"] and repr(again) == before["repr"]
    assert same(before, snapshot(plain))


def test_state_dicts_pickle_and_script_of_instance_norms() -> None:
    plain = with_instance_norms(affine=True, track_running_stats=True)
    net, other = (dcn.defectify(plain, "all", p=0.5, seed=seed, input_size=SIZE).eval() for seed in (0, 1))
    net.load_state_dict(other.state_dict())
    x = torch.rand(2, *SIZE)
    assert torch.equal(net(x), other(x)) and dcn.defect_spec(net).mask_origin == "loaded"
    net.load_state_dict(shaken(plain).state_dict())
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


# --- what a site keeps, and whether this is the method ----------------------------------------------------------------


def test_a_site_that_keeps_nothing_is_warned_of_and_shown() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(
        DeadSiteWarning, match=r"1 of 1 sites keep none of their neurons: '1' \(8x14x14, p=1e-09\)"
    ) as said:
        made = dcn.defectify(net, "all", p=1e-9, input_size=SIZE)
    assert said[0].filename == __file__
    assert dcn.summary(made).rows[0].kept == 0 and str(dcn.summary(made)).splitlines()[1].endswith("none")


@pytest.mark.parametrize("mode", ["channel", "shared"])
def test_a_small_mask_that_happens_to_keep_nothing_is_warned_of_too(mode) -> None:
    seed = next(s for s in range(99) if not dcn.sample_mask(dcn.MaskSpec(0.1, mode, seed=s), (4, 2, 2), site=0).any())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with pytest.warns(DeadSiteWarning, match="p=0.1"):
        dcn.defectify(net, "all", p=0.1, mode=mode, seed=seed, input_size=(3, 4, 4))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1)}),
        ("mixer_s32_224", {}),
    ],
)
def test_a_transformer_or_mixer_with_one_site_gets_a_note(name, options) -> None:
    net = timm.create_model(name, img_size=64, **options)
    with pytest.warns(PlacementWarning, match="here only the patch embedding is masked") as said:
        dcn.defectify(net, "all", input_size=(3, 64, 64))
    assert said[0].filename == __file__


def test_a_cnn_with_one_site_gets_none() -> None:
    dcn.defectify(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 9), nn.Linear(9, 2)),
        0,
        input_size=SIZE,
    )


# --- networks that take more than images ------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.norm, self.late, self.late_norm = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(10, 4)

    def forward(self, image: torch.Tensor, depth: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.image(image) + self.depth(depth)))
        return self.fc(torch.cat([torch.relu(self.late_norm(self.late(x))).mean((2, 3)), meta], 1))


EXAMPLE = (torch.rand(2, *SIZE), torch.rand(2, 1, 16, 16), torch.rand(2, 2))


@pytest.mark.parametrize(
    "example", [EXAMPLE, list(EXAMPLE), dict(zip(("image", "depth", "meta"), EXAMPLE, strict=True))], ids=type
)
def test_a_network_that_takes_more_than_images_is_read_with_example_inputs(example) -> None:
    net = dcn.defectify(TwoInputs(), "all", p=0.5, example_inputs=example)
    spec = dcn.defect_spec(net)
    assert spec.input_size == SIZE
    assert [(site.name, site.conv, site.ordinal) for site in spec.sites] == [
        ("norm", "depth", 1),
        ("late_norm", "late", 2),
    ]
    dcn.verify(net, example_inputs=example)
    with pytest.raises(TraceError, match=r"missing 2 required.*example_inputs="):
        dcn.verify(net)
    assert torch.equal(
        dcn.defectify(TwoInputs(), "all", p=0.5, example_inputs=EXAMPLE).norm.drop.mask, net.norm.drop.mask
    )


def test_one_batch_of_images_is_an_example_too_and_gives_the_input_size() -> None:
    net = dcn.defectify(SmallNet(), p=0.5, example_inputs=torch.rand(2, *SIZE))
    other = dcn.defectify(SmallNet(), p=0.5, input_size=SIZE)
    assert dcn.defect_spec(net) == dcn.defect_spec(other)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"input_size": SIZE}, TraceError, r"missing 2 required.*example_inputs="),
        ({"example_inputs": EXAMPLE, "input_size": (3, 8, 8)}, InputSizeError, "not the size of the images"),
        ({"example_inputs": (1, "x")}, InputSizeError, "no batch of images.*tuple of positional"),
        ({"example_inputs": 5}, InputSizeError, "no batch of images"),
    ],
)
def test_example_inputs_that_do_not_fit_are_refused_by_name(options, error, match) -> None:
    with pytest.raises(error, match=match):
        dcn.defectify(TwoInputs(), **options)


# --- arguments of other types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [[3, 16, 16], np.array(SIZE), torch.tensor(SIZE), torch.Size(SIZE), tuple(map(np.int64, SIZE))]
)
@pytest.mark.parametrize("p", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), np.array(0.5)], ids=repr)
@pytest.mark.parametrize("blocks", [0, np.int64(0), torch.tensor(0), [0], np.array([0]), range(1), {0}], ids=repr)
def test_numbers_of_numpy_and_torch_mean_what_they_say(size, p, blocks) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 196, 2))
    spec = plan_defects(net, blocks, dcn.MaskSpec(p, seed=np.int32(4)), input_size=size)
    assert spec == plan_defects(net, (0,), dcn.MaskSpec(0.5, seed=4), input_size=SIZE)
    assert dcn.DefectSpec.from_json(spec.to_json()) == spec


WRONG: dict[str, tuple[dict[str, object], type[DcnError], str]] = {
    "p as text": ({"p": "0.3"}, SpecError, "keep probability"),
    "p as a list": ({"p": [0.3]}, SpecError, "keep probability"),
    "p for a block that is none": ({"p": {1.5: 0.3}}, SpecError, "block that is none"),
    "p in the place of blocks": ({"blocks": 0.3}, BlockError, "write p=0.3"),
    "blocks as bytes": ({"blocks": b"bottom"}, BlockError, "neither words nor numbers"),
    "blocks in blocks": ({"blocks": [[0]]}, BlockError, "neither words nor numbers"),
    "no blocks": ({"blocks": None}, BlockError, "neither words nor numbers"),
    "mode as a list": ({"mode": ["neuron"]}, SpecError, "Unknown mode"),
    "mode as an array": ({"mode": np.array(["neuron", "channel"])}, SpecError, "Unknown mode"),
    "seed as text": ({"seed": "1"}, SpecError, "seed"),
    "a filter that is no function": ({"filter_fn": "norm"}, SpecError, "filter_fn"),
    "size as text": ({"input_size": "3,16,16"}, InputSizeError, "\\(C, H, W\\)"),
    "size with a batch": ({"input_size": (2, 3, 16, 16)}, InputSizeError, "leave the batch size out: \\(3, 16, 16\\)"),
    "an array of sizes": ({"input_size": np.zeros((9, 9))}, InputSizeError, "ndarray \\(9, 9\\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_of_the_wrong_type_are_refused_by_name(case) -> None:
    options, error, match = WRONG[case]
    with pytest.raises(error, match=match):
        dcn.defectify(SmallNet(), **{"input_size": SIZE, **options})


@pytest.mark.parametrize(
    "call", [dcn.defectify, dcn.undefectify, dcn.is_defective, dcn.defect_spec, dcn.summary, dcn.verify]
)
@pytest.mark.parametrize(
    ("model", "match"), [("resnet18", r"timm.create_model\('resnet18'\)"), ([1], "'list'"), (None, "None")]
)
def test_what_is_no_network_is_refused_by_name(call, model, match) -> None:
    with pytest.raises(SpecError, match=match):
        call(model)


def test_volumes_that_keep_all_their_neurons_are_told_of() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.volume, self.image = nn.Conv3d(1, 2, 3, padding=1), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.image(self.volume(x[:, None]).relu().flatten(1, 2)).relu().mean((2, 3))

    with pytest.warns(PlacementWarning, match="1 3-D convolutions, 'volume'"):
        dcn.defectify(Mixed(), p=0.5, input_size=(3, 8, 8), blocks="all")


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.ConvTranspose3d(3, 4, 3)])
@pytest.mark.parametrize("size", [(3, 16, 16), (3, 8, 16, 16)])
def test_a_network_without_2d_convolutions_is_told_that_only_these_carry_masks(layer, size) -> None:
    with pytest.raises(SiteError, match=f"no 2-D convolution, and only these carry masks.*{type(layer).__name__}"):
        dcn.defectify(nn.Sequential(layer, nn.ReLU()), input_size=size)


def test_reading_a_parametrised_weight_changes_nothing() -> None:
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))  # in training mode a look is a power iteration
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    made = dcn.defectify(net, "all", p=1.0, input_size=(3, 16, 16))
    plain = dcn.undefectify(made)
    for name, value in net.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(net.eval()(x), made.eval()(x))
