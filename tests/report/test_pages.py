from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dcn_plugin.errors import MissingExtraError
from dcn_plugin.report import ImageGrid, Report, write_report
from dcn_plugin.report import pages as build
from dcn_plugin.support.atomic_file import write_atomic
from tests.report.test_plots import RESULTS, example_images
from tests.toy_records import (
    check_record,
    cue_record,
    distance_record,
    matrix_records,
    noise_record,
    record,
    shuffle_record,
    tapm_record,
    whitebox_record,
)


class Page(HTMLParser):
    """Collects tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        title="A <report>",
        results=[*RESULTS, noise_record()],
        baseline="standard",
        intro=["What was done & why."],
        facts={"Seeds": "0, 1"},
        examples=example_images(),
    )


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert write_report(report, out)[0] == out / "report.html"
    return out


def test_every_file_is_there_and_nothing_else(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "tables.md",
        "tables.tex",
        "records.csv",
        "transfer_accuracy.png",
        "transfer_defense.png",
        "gaussian.png",
        "examples.png",
    }


def test_the_page_asks_nothing_of_the_network(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert addresses
    # "#": a place on the page itself.
    assert all(value is not None and value.startswith(("data:", "#")) for value in addresses)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed"}
    assert "url(" not in (folder / "report.html").read_text()
    assert "@import" not in (folder / "report.html").read_text()


def test_the_pictures_on_the_page_are_the_files_beside_it_each_with_an_alternative_text(folder: Path) -> None:
    pictures = [attrs for tag, attrs in Page((folder / "report.html").read_text()).tags if tag == "img"]
    files = [folder / f"{name}.png" for name in ("transfer_accuracy", "transfer_defense", "gaussian", "examples")]
    for attrs, file in zip(pictures, files, strict=True):
        assert base64.b64decode((attrs["src"] or "").partition(",")[2]) == file.read_bytes()
        assert len(attrs["alt"] or "") > 40
        assert int(attrs["width"] or 0) > 100


def test_an_alternative_text_holds_the_numbers_of_its_plot(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    alt = next(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert alt is not None
    assert re.search(r"standard: 47\.5 ± 3\.5 % at 0\.1", alt)


def test_findings_and_tables_are_on_the_page_as_in_the_terminal(folder: Path, report: Report) -> None:
    text = Page((folder / "report.html").read_text()).text
    assert report.findings
    assert all(sentence in text for sentence in report.findings)
    assert all(sentence in report.to_text() for sentence in report.findings)
    assert all(sentence in (folder / "tables.md").read_text() for sentence in report.findings)
    assert "Defence rate (the paper's)" in text


def test_names_are_escaped_and_the_page_fits_a_phone(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "A &lt;report&gt;" in text
    assert "why.</p>" in text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text


def test_figures_of_a_former_report_go_and_files_of_others_stay(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    (tmp_path / "mine.png").write_bytes((tmp_path / "gaussian.png").read_bytes())
    (tmp_path / "examples.png").write_bytes(b"drawn over by hand")
    (tmp_path / "notes.txt").write_text("mine")
    write_report(Report(title="T", results=[noise_record()], baseline="standard"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "tables.md",
        "tables.tex",
        "records.csv",
        "gaussian.png",
        "mine.png",
        "examples.png",
        "notes.txt",
    }


def test_a_report_that_was_stopped_is_cleaned_up_by_the_next(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Report(title="T", results=[noise_record()], baseline="standard")
    write_report(report, tmp_path)

    def stopped(path: Path, *content: str | bytes) -> None:
        if path.suffix == ".html":
            raise KeyboardInterrupt
        write_atomic(path, *content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "write_atomic", stopped)
        write_report(other, tmp_path)
    write_report(other, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["gaussian.png"]


def test_a_report_without_pictures_is_a_report(tmp_path: Path) -> None:
    write_report(Report(title="T", results=[noise_record()], baseline="standard"), tmp_path)
    assert (tmp_path / "gaussian.png").exists()
    assert not (tmp_path / "examples.png").exists()


def test_without_jinja2_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, report: Report, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dcn-plugin\[report\]"'):
        write_report(report, tmp_path)


EVERY_PROTOCOL = [
    *matrix_records(),
    *matrix_records(eps=0.1),
    tapm_record(),
    *(whitebox_record(eps=eps) for eps in (0.1, 0.2)),
    noise_record(),
    *(shuffle_record(k=k) for k in (2, 4)),
    noise_record(protocol="stylized", attack="stylized", eps=None),
    cue_record(20, 60),
    distance_record(),
    check_record("noise", False),
    check_record("radius", True, target="other"),
    noise_record(protocol="blur"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    images = np.linspace(0, 1, 2 * 3 * 16, dtype=np.float32).reshape(2, 3, 4, 4)
    grids = [ImageGrid("PGD on vgg", np.array([3, 8]), images, images[::-1].copy(), np.array([1, 0]))]
    out = tmp_path_factory.mktemp("full")
    write_report(Report(title="T", results=EVERY_PROTOCOL, grids=grids), out)
    return out, (out / "report.html").read_text()


def test_every_protocol_has_its_place_on_the_page_and_in_the_contents(full: tuple[Path, str]) -> None:
    page = Page(full[1])
    links = [(attrs["href"] or "").lstrip("#") for tag, attrs in page.tags if tag == "a"]
    places = [attrs["id"] for tag, attrs in page.tags if tag == "h2" and "id" in attrs]
    assert links == places
    assert places == ["clean", "transfer", "tapm", "whitebox", "distance", "gaussian", "shuffle", "stylized",
                      "cue-conflict", "sanity", "blur", "images"]  # fmt: skip


def test_every_protocol_with_a_strength_or_a_distance_is_drawn(full: tuple[Path, str]) -> None:
    assert {path.stem for path in full[0].glob("*.png")} == {
        "matrix_defense_01", "matrix_accuracy_01", "transfer_accuracy", "transfer_defense", "whitebox", "gaussian",
        "shuffle", "distances", "images_01",
    }  # fmt: skip


def test_the_alternative_text_of_a_heat_map_holds_its_numbers(full: tuple[Path, str]) -> None:
    alt = next(str(attrs["alt"]) for tag, attrs in Page(full[1]).tags if tag == "img")
    assert "PGD, eps 0.2. source vgg: vgg 0.0 %, standard 50.0 %; source resnet: vgg 50.0 %" in alt


def test_matrices_and_long_tables_are_folded_away(full: tuple[Path, str], tmp_path: Path) -> None:
    assert "The figures as tables (4)" in full[1]
    write_report(Report(title="T", results=[record(target=str(i)) for i in range(30)]), tmp_path)
    assert "<summary>Transfer attacks (30 rows)</summary>" in (tmp_path / "report.html").read_text()


def test_a_verdict_is_marked_for_the_eye(full: tuple[Path, str]) -> None:
    classes = [str(attrs.get("class")).split() for tag, attrs in Page(full[1]).tags if tag == "td"]
    assert any("fail" in names for names in classes)
    assert any("pass" in names for names in classes)


def test_without_a_baseline_nothing_is_compared(full: tuple[Path, str]) -> None:
    assert "comparisons with" not in full[1]
    assert "Checks for gradient masking, standard: 0 of 1 pass; failed: noise." in full[1]


def test_a_terminal_is_spared_very_long_tables_and_repeated_notes() -> None:
    report = Report(title="T", results=[record(target=str(i)) for i in range(70)])
    assert "Transfer attacks\n70 rows, in tables.md and report.html" in report.to_text()
    assert "| 69 |" in report.to_markdown()
    text = Report(title="T", results=EVERY_PROTOCOL).to_text()
    assert text.count("rows: attacked sources, columns: targets") == 1


def test_several_attacks_of_one_strength_on_one_source_are_drawn_too(tmp_path: Path) -> None:
    write_report(Report(title="T", results=[record(), record(attack="FGSM")]), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "transfer_accuracy_pgd",
        "transfer_accuracy_fgsm",
        "transfer_defense_pgd",
        "transfer_defense_fgsm",
    }


def test_the_headers_of_wide_tables_wrap_and_what_is_wider_than_the_page_says_so(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    (headers,) = re.findall(r"^thead th \{(.*)\}$", page, flags=re.MULTILINE)
    assert "white-space: normal" in headers
    (scroll,) = re.findall(r"^\.scroll \{(.*)\}$", page, flags=re.MULTILINE)
    assert "overflow-x: auto" in scroll
    assert "scroll" in scroll.rpartition("background:")[2]
    (printed,) = re.findall(r"@media print \{(.*?)\n\}", page, flags=re.DOTALL)
    assert "overflow: visible" in printed
