"""The table of timm's models: complete, and true of the names that are registered from it."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import get_arch_pretrained_cfgs

import dcn_plugin as dcn
from dcn_plugin.models.timm_names import BASES, REFUSED
from dcn_plugin.models.timm_table import NAMED, UNNAMED


def test_every_model_of_timm_has_a_name_or_a_reason() -> None:
    """A new release of timm brings new models: the sweep over them, and the table that it leads to, say which it is."""
    ours = {*timm.list_models("defective_*"), *timm.list_models(module="paper_nets")}
    known = {*(name for names in NAMED.values() for name in names), *(n for names in UNNAMED.values() for n in names)}
    unknown = sorted(set(timm.list_models()) - ours - known)
    assert not unknown, "run `python -m recipes.coverage.sweep` and `python -m recipes.coverage.names` for these models"
    assert not set(BASES) & {name for names in UNNAMED.values() for name in names}
    assert set(REFUSED) <= {name for names in UNNAMED.values() for name in names}


@pytest.mark.parametrize("name", ["cpubone_nano", "cspnext_tiny", "efficientvim_m1", "starnet_s050"])
def test_a_model_of_the_table_is_its_base_with_masks_whole_and_truncated(name: str) -> None:
    assert_base_with_masks(name)


@pytest.mark.slow
@pytest.mark.parametrize("module", NAMED)
def test_the_smallest_model_of_every_module_is_its_base_with_masks(module: str) -> None:
    assert_base_with_masks(NAMED[module][0], size=256 if module == "byoanet" else 96 if "inception" in module else 64)


def assert_base_with_masks(name: str, size: int = 64) -> None:
    images = torch.rand(1, 3, size, size)
    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=2).eval()
    torch.manual_seed(0)
    same = timm.create_model(f"defective_{name}", num_classes=2, img_size=size, p=1.0).eval()
    with torch.no_grad():
        assert torch.equal(base(images), same(images))
    dcn.verify(timm.create_model(f"defective_{name}", num_classes=2, img_size=size))
    dcn.verify(timm.create_model(f"defective_{name}", features_only=True, img_size=size))


@pytest.mark.parametrize("module", NAMED)
def test_the_names_of_a_module_have_the_tags_of_their_bases_and_no_weights(module: str) -> None:
    for base in NAMED[module]:
        assert_same_tags_and_no_weights(base)


def assert_same_tags_and_no_weights(base: str) -> None:
    theirs, ours = get_arch_pretrained_cfgs(base), get_arch_pretrained_cfgs(f"defective_{base}")
    assert list(ours) == [f"defective_{name}" for name in theirs]
    assert timm.get_pretrained_cfg(f"defective_{base}").tag == timm.get_pretrained_cfg(base).tag
    for own, other in zip(ours.values(), theirs.values(), strict=True):
        assert own.architecture == f"defective_{base}" and own.tag == other.tag
        assert not any((own.url, own.file, own.hf_hub_id, own.hf_hub_filename, own.state_dict, own.source))
        assert own.input_size == other.input_size and own.num_classes == other.num_classes
        assert own.fixed_input_size and not other.fixed_input_size
