"""The picture above the paper map: every effect is drawn where it stands, with the word of its verdict."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dcn_plugin.experiments import Verdict
from dcn_plugin.experiments.effects import Effect
from dcn_plugin.experiments.verdict import Word
from docs._build.effects_picture import COLOURS, MARGIN, WIDTH, effects_picture
from docs._build.paper_map import paper_pages

RECIPES = Path(__file__).parents[2] / "recipes"
SVG = "{http://www.w3.org/2000/svg}"


def effect(row: str, ours: float, low: float, high: float, paper: float | None, unit: str = "points") -> Effect:
    return Effect(row, "Standard", "pgd<16>", unit, ours, low, high, paper)  # type: ignore[arg-type]


def drawn(verdicts: dict[str, Verdict]) -> ET.Element:
    figure = ET.fromstring(effects_picture(verdicts))
    svg = figure.find(f"{SVG}svg")
    assert svg is not None
    return svg


def verdict(words: dict[Effect, Word], *others: Effect) -> Verdict:
    return Verdict("mixed", "", (*words, *others), words)


def test_dot_interval_and_diamond_stand_at_their_values() -> None:
    one = effect("0.5-Bottom", 10.0, 5.0, 20.0, 40.0)
    two = effect("0.1-Bottom", -10.0, -10.0, 0.0, 0.0)
    svg = drawn({"Table 5": verdict({one: "weaker", two: "contradicts"})})

    def place(value: float) -> float:  # from -10 to 40
        return MARGIN + (value + 10) / 50 * (WIDTH - 2 * MARGIN)

    groups = svg.findall(f"{SVG}g")
    assert len(groups) == 2
    for group, shown, word in zip(groups, (one, two), ("weaker", "contradicts"), strict=True):
        circle = group.find(f"{SVG}circle")
        line = group.find(f"{SVG}line")
        diamond = group.find(f"{SVG}polygon")
        assert circle is not None and line is not None and diamond is not None and shown.paper is not None
        assert float(circle.attrib["cx"]) == pytest.approx(place(shown.ours), abs=0.1)
        assert circle.attrib["fill"] == COLOURS[word]  # type: ignore[index]
        ends = [float(line.attrib[name]) for name in ("x1", "x2")]
        assert ends == pytest.approx([place(shown.low), place(shown.high)], abs=0.1)
        corners = [float(corner.split(",")[0]) for corner in diamond.attrib["points"].split()]
        assert sum(corners) / 4 == pytest.approx(place(shown.paper), abs=0.1)
        assert [text.text for text in group.findall(f"{SVG}text")] == [f"{shown.row}, pgd<16>", word]


def test_an_effect_without_an_end_or_without_a_number_of_the_paper() -> None:
    endless = effect("0.5-Bottom", math.log(2), -math.inf, math.inf, math.log(4), "factor")
    svg = drawn({"Table 6": verdict({endless: "undecided"}, effect("alone", 1.0, 0.0, 2.0, None))})
    (group,) = svg.findall(f"{SVG}g")
    assert group.find(f"{SVG}line") is None
    assert "x 1.00" in ET.tostring(svg, "unicode") and "x 4.00" in ET.tostring(svg, "unicode")
    assert effects_picture({"Figure 4": verdict({effect("claim", 1.0, 0.0, 2.0, None): "agrees"})}) == ""


def test_all_effects_of_the_committed_records_are_in_the_map_and_nothing_is_wider_than_the_picture() -> None:
    page = paper_pages(RECIPES)["map.md"]
    picture = page[page.index("<figure>") : page.index("</figure>") + len("</figure>")]
    assert "\n\n" not in picture  # a blank line would end the block of HTML
    assert page.index("<figure>") < page.index("| of the paper |")
    assert picture in paper_pages(RECIPES)["map.md"]  # the same bytes each time
    svg = ET.fromstring(picture).find(f"{SVG}svg")
    assert svg is not None
    pages = {name: text for name, text in paper_pages(RECIPES).items() if name != "map.md"}
    words = "|".join(COLOURS)
    told = sum(len(re.findall(rf"paper [^)|]*\): (?:{words})", text)) for text in pages.values())
    assert len(svg.findall(f"{SVG}g")) == told > 20
    for line in [*svg.findall(f"{SVG}g"), *([text] for text in svg.findall(f"{SVG}text"))]:
        texts = [text for text in line if text.tag == f"{SVG}text"]
        # Label and word of an effect share a line.
        assert sum(len(text.text or "") * 0.6 * float(text.attrib.get("font-size", 11)) for text in texts) <= WIDTH
    for circle in svg.iter(f"{SVG}circle"):
        assert MARGIN <= float(circle.attrib["cx"]) <= WIDTH - MARGIN
