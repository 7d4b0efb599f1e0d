"""The paper's six networks: sizes, arithmetic against plain functions from the page on the authors' code, and timm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import PretrainedError, SpecError
from dcn_plugin.models import cifar_densenet, cifar_senet, cifar_vgg, paper_nets
from tests.models.timm_checks import seeded
from tests.nets import shaken

PARAMETERS = {
    "resnet18_cifar": 11_173_962,
    "resnet50_cifar": 23_520_842,
    "densenet121_cifar": 6_956_298,
    "senet18_cifar": 11_260_354,
    "vgg19_cifar": 20_040_522,
    "wrn32_4_cifar": 7_400_026,
}
# Enough layers to have one of each kind; all that are left out repeat those.
SHORT = {
    "resnet18_cifar": {},
    "resnet50_cifar": {"layers": (2, 1, 1, 2)},
    "densenet121_cifar": {"layers": (2, 1, 1, 2)},
    "senet18_cifar": {},
    "vgg19_cifar": {},
    "wrn32_4_cifar": {"layers": (2, 1, 2)},
}


def create(name: str, **options: object) -> nn.Module:
    with seeded():
        return timm.create_model(
            name, **{"width": 8, **SHORT[name.split(".")[0].removeprefix("defective_")], **options}
        )


def images(model: nn.Module, count: int = 2) -> Tensor:
    size = model.pretrained_cfg["input_size"]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(3))


# Sizes


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_a_network_has_exactly_the_papers_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = getattr(paper_nets, name)()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("name", PARAMETERS)
def test_width_scales_every_layer(name: str) -> None:
    with torch.device("meta"):
        full, half = timm.create_model(name), timm.create_model(name, width=32)
    norms = {n: m.num_features for n, m in full.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms and {n: m.num_features for n, m in half.named_modules() if isinstance(m, nn.BatchNorm2d)} == {
        n: width // 2 for n, width in norms.items()
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_last_map_has_the_size_that_the_description_states_and_the_logits_follow(name: str) -> None:
    for tag, classes in (("cifar10", 10), ("mnist", 3)):
        model = create(f"{name}.{tag}", num_classes=classes).eval()
        assert tuple(model.forward_features(images(model)).shape[2:]) == model.pretrained_cfg["pool_size"]
        assert model(images(model)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_cifar", {"width": 3}),
        ("densenet121_cifar", {"width": 5}),
        ("densenet121_cifar", {"layers": (1, 0)}),
        ("senet18_cifar", {"width": 12}),
        ("senet18_cifar", {"layers": (1, 1, 1)}),
        ("vgg19_cifar", {"width": 2}),
        ("vgg19_cifar", {"in_chans": 0}),
        ("wrn32_4_cifar", {"width": 6}),
        ("wrn32_4_cifar", {"num_classes": -1}),
    ],
    ids=str,
)
def test_sizes_that_make_no_network_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        timm.create_model(name, **options)


# Arithmetic: what docs/concepts/authors-code.md says, on the weights and masks of a state dict


class Layers:
    """The layers of a network by name. A norm is masked where the state dict has a mask for it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        y = F.batch_norm(x, mean, var, weight, bias, eps=1e-5)
        mask = self.state.get(f"{name}.drop.mask")
        return y if mask is None else torch.where(mask, y, 0.0)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def depth(self, prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in self.state if key.startswith(prefix)})


def resnet(net: Layers, x: Tensor, pool: int = 4) -> Tensor:
    x = F.relu(net.norm(net.conv(x, "conv1"), "bn1"))
    for i in range(1, 1 + sum(f"layer{i}.0.conv1.weight" in net.state for i in range(1, 5))):
        for j in range(net.depth(f"layer{i}.")):
            name, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            if f"{name}.conv3.weight" in net.state:
                y = F.relu(net.norm(net.conv(x, f"{name}.conv1"), f"{name}.bn1"))
                y = F.relu(net.norm(net.conv(y, f"{name}.conv2", stride), f"{name}.bn2"))
                y = net.norm(net.conv(y, f"{name}.conv3"), f"{name}.bn3")
            else:
                y = F.relu(net.norm(net.conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                y = net.norm(net.conv(y, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2 or x.shape[1] != y.shape[1]:
                x = net.norm(net.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = F.relu(y + x)
    return net.linear(F.avg_pool2d(x, pool).flatten(1), "fc")


def wide_resnet(net: Layers, x: Tensor) -> Tensor:
    return resnet(net, x, pool=8 if x.shape[2] == 32 else 7)


def densenet(net: Layers, x: Tensor) -> Tensor:
    x = net.conv(x, "features.conv0")
    for i in range(1, 5):
        for j in range(1, 1 + net.depth(f"features.denseblock{i}.")):
            name = f"features.denseblock{i}.denselayer{j}"
            y = net.conv(F.relu(net.norm(x, f"{name}.norm1")), f"{name}.conv1")
            y = net.conv(F.relu(net.norm(y, f"{name}.norm2")), f"{name}.conv2")
            x = torch.cat([x, y], 1)
        if i < 4:
            name = f"features.transition{i}"
            x = F.avg_pool2d(net.conv(F.relu(net.norm(x, f"{name}.norm")), f"{name}.conv"), 2)
    x = F.relu(net.norm(x, "features.norm5"))
    return net.linear(F.avg_pool2d(x, x.shape[2]).flatten(1), "classifier")


def senet(net: Layers, x: Tensor) -> Tensor:
    x = F.relu(net.norm(net.conv(x, "stem.conv"), "stem.norm"))
    for i in range(4):
        for j in range(2):
            name, stride = f"stages.{i}.blocks.{j}", 2 if i > 0 and j == 0 else 1
            y = F.relu(net.norm(x, f"{name}.norm1"))
            shortcut = net.conv(y, f"{name}.downsample.conv", stride) if stride == 2 else x
            y = net.conv(y, f"{name}.conv1", stride)
            y = net.conv(F.relu(net.norm(y, f"{name}.norm2")), f"{name}.conv2")
            scale = F.relu(net.conv(y.mean((2, 3), keepdim=True), f"{name}.se.fc1"))
            x = y * torch.sigmoid(net.conv(scale, f"{name}.se.fc2")) + shortcut
    return net.linear(F.avg_pool2d(x, 4).flatten(1), "head.fc")


def vgg(net: Layers, x: Tensor) -> Tensor:
    mnist, layer = x.shape[2] == 28, 0
    for stage, convs in enumerate((2, 2, 4, 4, 4)):
        for _ in range(convs):
            x = F.relu(net.norm(net.conv(x, f"features.{layer}"), f"features.{layer + 1}"))
            layer += 3
        if not (mnist and stage == 4):
            x = F.max_pool2d(x, 2)
        layer += 1
    return net.linear(x.flatten(1), "head.fc")


REFERENCES: dict[str, Callable[[Layers, Tensor], Tensor]] = {
    "resnet18_cifar": resnet,
    "resnet50_cifar": resnet,
    "densenet121_cifar": densenet,
    "senet18_cifar": senet,
    "vgg19_cifar": vgg,
    "wrn32_4_cifar": wide_resnet,
}


@pytest.mark.parametrize("tag", ["cifar10", "mnist"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_network_computes_what_the_facts_say_with_and_without_masks(name: str, tag: str) -> None:
    outs = []
    for options in ({}, {"blocks": "paper", "p": 0.3}):
        prefix = "defective_" if options else ""
        model = shaken(create(f"{prefix}{name}.{tag}", dtype=torch.float64, **options), seed=1)
        x = images(model).double()
        with torch.no_grad():
            outs.append(model(x))
        state = model.state_dict()
        torch.testing.assert_close(outs[-1], REFERENCES[name](Layers(state), x), rtol=1e-9, atol=1e-9)
        assert any(key.endswith(".mask") for key in state) == bool(options)
    assert not torch.allclose(*outs)


def test_the_reference_sees_a_mask_that_is_elsewhere() -> None:
    model = shaken(create("defective_senet18_cifar", dtype=torch.float64, blocks="paper"), seed=1)
    x = images(model).double()
    state = dict(model.state_dict())
    state["stem.norm.drop.mask"] = state.pop("stages.0.blocks.0.norm1.drop.mask")
    with torch.no_grad():
        assert not torch.allclose(model(x), senet(Layers(state), x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_start_as_in_the_authors_code(name: str) -> None:
    with seeded():
        model = timm.create_model(name, width=16, **SHORT[name])
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), path
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.numel() < 1000:
            continue
        if name == "wrn32_4_cifar" and isinstance(module, nn.Conv2d):  # N(0, sqrt(2 / (k * k * out)))
            std = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert 0.85 * std < module.weight.std() < 1.15 * std and module.weight.abs().max() > 2.5 * std, path
        else:  # uniform in +-1 / sqrt(fan_in)
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, path


@pytest.mark.parametrize("build", [cifar_densenet, cifar_senet, cifar_vgg])
def test_the_builders_alone_make_the_same_network(build: Callable[..., nn.Module]) -> None:
    name = {"cifar_densenet": "densenet121_cifar", "cifar_senet": "senet18_cifar", "cifar_vgg": "vgg19_cifar"}
    with torch.device("meta"):
        ours, theirs = build(width=8), timm.create_model(name[build.__name__], width=8)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


# timm's registry


def test_the_names_are_in_timms_registry_in_a_module_of_their_own() -> None:
    assert timm.list_models(module="paper_nets") == sorted(PARAMETERS)
    assert set(PARAMETERS) < set(paper_nets.__all__)
    assert not set(PARAMETERS) & set(timm.list_models(module="resnet") + timm.list_models(pretrained=True))
    for name in PARAMETERS:
        assert timm.model_entrypoint(name) is getattr(paper_nets, name)
        assert timm.is_model(f"defective_{name}")


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_description_carries_the_authors_normalisation(name: str) -> None:
    for prefix in ("", "defective_"):
        cifar, mnist = create(prefix + name), create(f"{prefix}{name}.mnist")
        data = resolve_model_data_config(cifar)
        assert data["mean"] == (0.4914, 0.4822, 0.4465) and data["std"] == (0.2023, 0.1994, 0.2010)
        assert data["input_size"] == (3, 32, 32) and cifar.num_classes == 10
        data = resolve_model_data_config(mnist)
        assert (data["mean"], data["std"], data["input_size"]) == ((0.1307,), (0.3081,), (1, 28, 28))
        assert mnist.pretrained_cfg["architecture"] == prefix + name


@pytest.mark.parametrize("name", PARAMETERS)
def test_defectify_needs_no_input_size_and_every_defective_name_verifies(name: str) -> None:
    by_hand = dcn.defectify(create(name), "paper", 0.4, seed=2)
    made = create(f"defective_{name}", blocks="paper", p=0.4, seed=2)
    dcn.verify(made)
    assert dcn.defect_spec(by_hand) == dcn.defect_spec(made)
    plain, state = create(name).state_dict(), made.state_dict()
    assert [key for key in state if not key.endswith("drop.mask")] == list(plain)
    mnist = create(f"defective_{name}.mnist", blocks="paper")
    dcn.verify(mnist)
    assert dcn.defect_spec(mnist).input_size == (1, 28, 28)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_learns_and_a_dead_neuron_sends_no_gradient(name: str) -> None:
    model = create(f"defective_{name}", blocks="paper", p=0.5).train()
    seen: list[tuple[Tensor, Tensor]] = []
    site = dcn.defect_spec(model).sites[0].name
    mask = model.get_submodule(site).drop
    mask.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append((module.mask, out)))[1])
    model.zero_grad()
    F.cross_entropy(model(images(model, 4)), torch.tensor([0, 1, 2, 3])).backward()
    for path, parameter in model.named_parameters():
        # The few hidden units of a narrow gate may all be asleep behind their ReLU.
        assert parameter.grad is not None and (parameter.grad.any() or ".se." in path), path
    ((bits, out),) = seen
    assert (out[~bits.expand_as(out)] == 0).all() and (out != 0).any()


@pytest.mark.parametrize("prefix", ["", "defective_"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_pretrained_is_an_error_that_says_that_there_are_no_weights(name: str, prefix: str) -> None:
    with pytest.raises(PretrainedError, match=r"pretrained_cfg_overlay=dict\(file="):
        create(prefix + name, pretrained=True)


def test_weights_of_a_file_are_loaded_and_adapted(tmp_path: Path) -> None:
    saved, path = create("senet18_cifar"), tmp_path / "weights.safetensors"
    save_file(saved.state_dict(), path)
    overlay = dict(file=str(path))
    loaded = create("senet18_cifar", num_classes=3, in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay)
    key = "stages.1.blocks.0.se.fc1.weight"
    assert torch.equal(loaded.state_dict()[key], saved.state_dict()[key]) and loaded.head.fc.out_features == 3
    summed = saved.state_dict()["stem.conv.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(loaded.state_dict()["stem.conv.weight"], summed)
    defective = create("defective_senet18_cifar", init_from="base", pretrained_cfg_overlay=overlay)
    assert torch.equal(defective.state_dict()[key], saved.state_dict()[key])


@pytest.mark.parametrize("name", ["resnet18_cifar.mnist", "defective_wrn32_4_cifar", "defective_densenet121_cifar"])
def test_a_saved_network_comes_back_bit_equal(name: str, tmp_path: Path) -> None:
    options = {"blocks": "paper", "p": 0.2, "seed": 5} if name.startswith("defective_") else {}
    model = create(name, num_classes=4, **options).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert back.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(back(images(model)), model(images(model)))


@pytest.mark.parametrize("name", PARAMETERS)
def test_truncated_networks_have_the_masks_of_the_full_one(name: str) -> None:
    full = create(f"defective_{name}", blocks="paper")
    features = create(f"defective_{name}", blocks="paper", features_only=True)
    dcn.verify(features)
    masks = {m.site: m.mask for m in full.modules() if isinstance(m, dcn.DefectMask2d)}
    ours = {m.site: m.mask for m in features.modules() if isinstance(m, dcn.DefectMask2d)}
    assert ours.keys() == masks.keys() and all(torch.equal(ours[site], masks[site]) for site in ours)
    maps = features.eval()(images(full))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == features.feature_info.reduction()


@pytest.mark.parametrize("option", ["depth", "image_size", "stem_type"])
def test_a_misspelt_option_is_an_error(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        timm.create_model("resnet18_cifar", **{option: 1})
