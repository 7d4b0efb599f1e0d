from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dcn_plugin.errors import MissingExtraError
from dcn_plugin.report import Report, write_report
from tests.report.test_plots import RESULTS, example_images
from tests.toy_records import noise_record


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
    assert all(value is not None and value.startswith("data:") for value in addresses)
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
