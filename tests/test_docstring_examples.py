"""The examples in docstrings run as they stand, on small networks and a few digits."""

from __future__ import annotations

import copy
import doctest
import inspect
from pathlib import Path
from types import FunctionType

import pytest
import timm
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import attacks, evaluate, training
from dcn_plugin.data import CueConflict, ImageSet, load_digits
from dcn_plugin.experiments.choose import plan_rounds
from dcn_plugin.masks import mask_draws
from dcn_plugin.models import MaskExpectation, cifar_resnet
from tests.image_files import pixels, write_image

OBJECTS = [
    *(getattr(dcn, name) for name in dcn.__all__ if name != "__version__"),
    *(attacks.Attack, attacks.EnsembleSource, attacks.DistilledSource, MaskExpectation),
    *(attacks.PGD, attacks.CW, attacks.BoundaryAttack, attacks.HopSkipJump),
    *(evaluate.transfer, evaluate.tapm, evaluate.whitebox, evaluate.minimal_distance, evaluate.gaussian),
    *(evaluate.shuffle, evaluate.amplitude, evaluate.stylized, evaluate.cue_conflict, evaluate.sanity),
    *(evaluate.RunDirectory, training.train, training.GradualDefects, training.distill_source, mask_draws, plan_rounds),
]


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What examples use without importing it."""
    torch.manual_seed(0)
    plain = cifar_resnet((1, 1, 1, 1), in_chans=1, width=4).eval()
    net = dcn.defectify(plain, p=0.5, input_size=(1, 16, 16))
    digits = load_digits(size=16).test
    data = ImageSet(digits.images[:16], digits.labels[:16], 10, "digits")
    modules = {"dcn": dcn, "timm": timm, "torch": torch, "nn": nn, "CueConflict": CueConflict}
    functions = {name: getattr(module, name) for module in (attacks, evaluate, training) for name in module.__all__}
    return {
        **modules,
        **functions,
        "MaskExpectation": MaskExpectation,
        "mask_draws": mask_draws,
        "plan_rounds": plan_rounds,
        "data": data,
        "images": data.images[:8],
        "labels": data.labels[:8],
        "plain": plain,
        "net": net,
    }


@pytest.mark.parametrize("offered", OBJECTS, ids=lambda offered: offered.__name__)
@pytest.mark.filterwarnings("default")
def test_the_example_of_a_public_name_runs(
    offered: type | FunctionType, names: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "cue-conflict" / "airplane" / "airplane1-bicycle2.png", pixels(40, 40))
    docstring = inspect.getdoc(offered)
    assert docstring is not None and "Example:\n    >>> " in docstring
    mine = names | {name: copy.deepcopy(names[name]) for name in ("net", "plain")}
    parsed = doctest.DocTestParser().get_doctest(docstring, mine, offered.__name__, None, None)
    shown: list[str] = []
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    doctest.DocTestRunner(optionflags=flags).run(parsed, out=shown.append)
    assert not shown, "".join(shown)
