from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.engine.export import ExportModel, for_export
from dcn_plugin.errors import InputSizeError, MaskLostError, NotDefectiveError
from tests.engine.export.nets import SIZE, images, mobile
from tests.interop.probe import IMAGES, make

aten: Any = torch.ops.aten


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return mobile()


@pytest.fixture(scope="module")
def shown(net: nn.Module) -> ExportModel:
    return for_export(net, show_masked=True)


def targets(model: ExportModel) -> list[Any]:
    return [node.target for node in model.network.graph.nodes if node.op == "call_function"]


def test_the_copy_computes_what_the_network_computes_at_any_batch_size(net: nn.Module, shown: ExportModel) -> None:
    for count in (1, 3):
        expected = net(images(count)).detach()
        assert torch.allclose(shown(images(count))[0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_masked_neurons_are_exactly_zero_behind_every_site(net: nn.Module, shown: ExportModel) -> None:
    outputs = shown(images(2))
    sites = dcn.defect_spec(net).sites
    assert list(shown.dead) == [site.name for site in sites]
    for site, values in zip(sites, outputs[1:], strict=True):
        dead = ~dcn.sample_mask(site.mask, site.shape, site=site.ordinal)
        assert torch.equal(shown.dead[site.name], dead)
        assert (values[:, dead] == 0).all() and (values[:, ~dead] != 0).any()
    assert shown.leaks(outputs) == {}


def test_a_neuron_that_is_not_zero_is_counted_at_its_site(shown: ExportModel) -> None:
    outputs: list[Tensor] = [values.clone() for values in shown(images(2))]
    name = list(shown.dead)[1]
    outputs[2][1, shown.dead[name]] = torch.nan  # NaN is not zero
    assert shown.leaks(outputs) == {name: int(shown.dead[name].sum())}
    assert shown.leaks([values.numpy() for values in outputs]) == shown.leaks(outputs)


def test_outputs_of_something_else_are_refused(shown: ExportModel) -> None:
    outputs = list(shown(images(1)))
    with pytest.raises(MaskLostError, match="Not every site"):
        shown.leaks(outputs[:-1])
    with pytest.raises(MaskLostError, match="another shape"):
        shown.leaks([*outputs[:-1], outputs[-1][:, :, 1:]])


def test_masks_are_floating_point_constants_and_nothing_computes_them(shown: ExportModel) -> None:
    assert {value.dtype for value in shown.network.buffers()} == {torch.float32}
    assert all(value.is_contiguous() for value in shown.network.buffers())
    assert aten.to.dtype not in targets(shown) and aten._to_copy.default not in targets(shown)


@pytest.mark.parametrize("name", ["no norm", pytest.param("every slot", marks=pytest.mark.slow)])
def test_every_kind_of_site_is_known_by_its_name(name: str) -> None:
    model = make(name)
    shown = for_export(model, show_masked=True)
    outputs = shown(IMAGES)
    expected = model(IMAGES)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert shown.outputs == len(expected) and shown.leaks(outputs) == {}
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs[: shown.outputs], expected, strict=True))
    assert len(shown.dead) == len(dcn.defect_spec(model).sites)


def test_the_network_stays_as_it_is(net: nn.Module) -> None:
    model = copy.deepcopy(net).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported = for_export(model)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.allclose(exported(images(1)), net(images(1)), rtol=1e-4, atol=1e-3)


def test_two_layers_with_the_same_bits_are_two_sites() -> None:
    conv = [dcn.DefectiveConv2d(3, 3, 3, padding=1, output_size=12, site=0, p=0.5) for _ in range(2)]
    model = nn.Sequential(conv[0], nn.ReLU(), conv[1]).eval()
    shown = for_export(model, input_size=SIZE, show_masked=True)
    assert list(shown.dead) == ["0", "2"] and shown.leaks(shown(images(1))) == {}


def test_a_network_without_masks_is_refused() -> None:
    with pytest.raises(NotDefectiveError, match="no masks to export"):
        for_export(nn.Conv2d(3, 4, 3))


def test_a_network_written_by_hand_needs_the_size_of_its_images() -> None:
    with pytest.raises(InputSizeError):
        for_export(nn.Sequential(dcn.DefectiveConv2d(3, 4, 3, padding=1, output_size=12, site=0)))


def test_a_mask_that_is_no_longer_called_is_no_mask_of_an_export(net: nn.Module) -> None:
    class Deaf(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.silenced = model, dcn.DefectMask2d((64, 12, 12), dcn.MaskSpec(p=0.5))

        def forward(self, x: Tensor) -> Any:
            return self.model(x)

    with pytest.raises(MaskLostError, match=r"1 of 4 masks act nowhere.*silenced"):
        for_export(Deaf(copy.deepcopy(net)), input_size=SIZE)
