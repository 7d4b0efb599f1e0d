from __future__ import annotations

import io

import pytest
from PIL import Image

from dcn_plugin.report import Figure, Section, Table, render_html


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def page(*sections: Section) -> str:
    return render_html(title="T", intro=[], findings=[], cautions=[], sections=sections, facts={})


def table(title: str, rows: int = 1, *, detail: bool = False) -> Table:
    return Table(title, ("network", "verdict"), (("net", "FAIL"),) * rows, detail=detail)


def test_a_picture_knows_its_size_before_it_is_loaded() -> None:
    assert Figure("f", png(300, 200), "alt", "caption").size == (300, 200)
    assert 'width="300" height="200"' in page(Section("s", "S", [Figure("f", png(300, 200), "alt", "caption")]))


def test_short_tables_come_before_long_ones_and_those_of_a_figure_stand_apart() -> None:
    section = Section("s", "S", tables=[table("long", 50), table("detail", detail=True), table("short")])
    assert [table.title for table in section.main_tables] == ["short", "long"]
    assert [table.title for table in section.detail_tables] == ["detail"]


def test_folded_figures_are_apart_from_those_seen_at_once() -> None:
    seen, folded = (Figure(name, png(2, 2), "alt", "caption", folded=name == "b") for name in "ab")
    section = Section("s", "S", [folded, seen])
    assert (section.open_figures, section.folded_figures) == ([seen], [folded])


@pytest.mark.parametrize(("verdict", "mark"), [("pass", "pass"), ("FAIL", "fail"), ("unknown", "unknown")])
def test_a_verdict_has_a_colour(verdict: str, mark: str) -> None:
    text = page(Section("s", "S", tables=[Table("T", ("network", "verdict"), (("net", verdict),))]))
    assert mark in text[: text.index(f">{verdict}</td>")].rpartition("<td")[2]


def test_text_is_escaped() -> None:
    assert "&lt;b&gt;" in page(Section("s", "<b>", tables=[table("T")]))
