"""Gradual defects in the loops of others, as the page on them shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dcn_plugin as dcn
from dcn_plugin.surgery import masks_of
from dcn_plugin.training import GradualDefects
from tests.nets import SmallNet

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "gradual.md"
IMAGES = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LOADER = DataLoader(TensorDataset(IMAGES, torch.arange(24) % 5), batch_size=4)


def fine_tuning() -> Any:
    """The class that the page shows."""
    (block,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {"torch": torch, "GradualDefects": GradualDefects}
    exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace["FineTuning"]


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return dcn.defectify(SmallNet(), p=0.3, input_size=(3, 16, 16))


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about loggers, workers and the number of batches
def test_a_lightning_module_loses_its_neurons_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "enable_checkpointing": False,
    }
    alone, stopped, resumed = (fine_tuning()(net(), steps=15) for _ in range(3))
    lightning.Trainer(max_epochs=3, **options).fit(alone, LOADER)
    assert alone.gradual.done
    assert all(torch.equal(mask.mask, mask.seeded()) for mask in masks_of(alone.net).values())
    assert dcn.defect_spec(alone.net) == dcn.defect_spec(net())
    first = lightning.Trainer(max_epochs=2, **options)
    first.fit(stopped, LOADER)
    assert not stopped.gradual.done
    first.save_checkpoint(tmp_path / "last.ckpt")
    lightning.Trainer(max_epochs=3, **options).fit(
        resumed, LOADER, ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    ours, theirs = resumed.net.state_dict(), alone.net.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert dcn.defect_spec(resumed.net).mask_origin == "sampled"
