"""The finder against site lists written by hand from the models' source code (see golden/README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from dcn_plugin.surgery.blocks import find_blocks
from dcn_plugin.surgery.norm_slots import is_norm
from dcn_plugin.surgery.sites import find_sites
from dcn_plugin.surgery.trace import trace_model

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
FAMILIES = 12


def expand(line: str) -> Iterator[str]:
    """`a{0..2}.b{8..4}` -> a0.b8, a1.b6, a2.b4."""
    ranges = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+)\.\.(\d+)\}", line)]
    steps = abs(ranges[0][1] - ranges[0][0]) + 1 if ranges else 1
    for i in range(steps):
        values = iter(a + (b - a) * i // max(steps - 1, 1) for a, b in ranges)
        yield re.sub(r"\{\d+\.\.\d+\}", lambda _, v=values: str(next(v)), line)


def read(path: Path) -> tuple[str, int, dict[str, tuple[str, str, str]], list[str]]:
    """Model name, image size, site -> (convolution, shape, block), block names."""
    name, size, sites, blocks = "", 0, {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("model "):
            _, name, _, text = line.split()
            size = int(text)
        elif line.startswith("["):
            assert line.startswith(f"[{len(blocks)}] ")
            blocks.append(line.split()[1])
        elif line and not line.startswith("#"):
            for single in expand(line):
                where, _, shape = single.rpartition(" ")
                owner, _, conv = where.partition(" <- ")
                assert owner not in sites, f"{owner} is listed twice"
                sites[owner] = (conv or owner, shape, blocks[-1])
    return name, size, sites, blocks


def build(name: str) -> nn.Module:
    """The model with all weights zero: its structure is what counts, and drawing weights takes long."""
    library, _, short = name.partition("/")
    small_head = {"mlp_ratio": 0.01} if short.startswith("vgg") else {}
    with torch.device("meta"):
        if library == "timm":
            model = timm.create_model(short, pretrained=False, **small_head)
        else:
            model = torchvision.models.get_model(short, weights=None)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_finder_agrees_with_the_list_written_by_hand(path: Path) -> None:
    name, size, expected, names = read(path)
    model = build(name)
    trace = trace_model(model, (3, size, size), is_norm=is_norm)
    blocks = find_blocks(model, trace)
    found = {
        site.owner: (site.conv, "x".join(map(str, site.shape)), blocks.of(site).name)
        for site in find_sites(model, trace)
    }
    assert found == expected
    assert [block.name for block in blocks.items] == names


def test_there_are_lists_for_at_least_twelve_families() -> None:
    assert len({read(path)[0] for path in GOLDEN}) >= FAMILIES


def test_ranges_of_a_golden_line_run_together() -> None:
    assert list(expand("a{0..2} <- b{1..3} {64..128}x8x8")) == [
        "a0 <- b1 64x8x8",
        "a1 <- b2 96x8x8",
        "a2 <- b3 128x8x8",
    ]
