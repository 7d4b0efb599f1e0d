"""The built site, as a reader meets it: pages opened in the system's Chromium, links followed, contrast measured."""

from __future__ import annotations

import functools
import http.server
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

from dcn_plugin.masks import sample_mask
from dcn_plugin.specs import MaskSpec
from docs._build.mask_picture import CHANNELS, SIZE, STEPS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PUBLIC = (
    "dcn_plugin",
    "dcn_plugin.adapters.art",
    "dcn_plugin.adapters.torchattacks",
    "dcn_plugin.attacks",
    "dcn_plugin.data",
    "dcn_plugin.errors",
    "dcn_plugin.evaluate",
    "dcn_plugin.experiments",
    "dcn_plugin.models",
    "dcn_plugin.report",
    "dcn_plugin.training",
)
# axe's rules for WCAG 2.1, levels A and AA. Its further advice concerns the theme's own navigation.
WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
VIEWS = {
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "desktop, light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it. Results of the tutorials are reused where they are still valid."""
    if not MKDOCS.exists():
        pytest.skip("the docs tools are not installed; 'make docs' installs them")
    out = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "docs._build.generate"], cwd=ROOT, check=True)
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run([MKDOCS, "build", "--strict", "--quiet", "--site-dir", out], cwd=ROOT, check=True, env=environment)
    return out


@dataclass
class Parsed:
    """What a page holds that the tests ask about."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    pictures: list[dict[str, str | None]] = field(default_factory=list)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Parsed()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.found.ids.update(filter(None, (known.get("id"), known.get("name") if tag == "a" else None)))
        self.found.links += filter(None, (known.get("href"), known.get("src")))
        if tag == "img":
            self.found.pictures.append(known)


def parsed(page: Path) -> Parsed:
    parser = _Parser()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


def pages_of(site: Path) -> list[Path]:
    """The pages of the site; reports that it links are files of their own kind."""
    return sorted(site.rglob("index.html"))


def test_no_link_and_no_anchor_is_dead(site: Path) -> None:
    known = {page.resolve(): parsed(page) for page in pages_of(site)}
    dead = []
    for page, content in known.items():
        for link in content.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            missing = not target.is_file()
            if missing or (parts.fragment and target in known and unquote(parts.fragment) not in known[target].ids):
                dead.append(f"{page.relative_to(site.resolve())}: {link}")
    assert not dead
    assert len(known) > 50


def test_every_picture_has_alternative_text(site: Path) -> None:
    bare = [(page, p) for page in pages_of(site) for p in parsed(page).pictures if not (p.get("alt") or "").strip()]
    assert not bare
    assert sum(len(parsed(page).pictures) for page in pages_of(site)) >= 4


def test_every_public_name_stands_in_the_api_reference(site: Path) -> None:
    ids = set().union(*(parsed(page).ids for page in pages_of(site / "api")))

    def stands(module: str, name: str) -> bool:
        """By its public path, or by the path of the file that defines it, where a file has the name of its function."""
        return any(one.startswith(f"{module}.") and one.endswith(f".{name}") for one in ids)

    names = [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]
    assert not [name for name in names if not stands(*name)]
    assert not stands("dcn_plugin", "no_such_name")


def test_formulas_and_references_are_written_out(site: Path) -> None:
    texts = {page.parent.name: page.read_text(encoding="utf-8") for page in pages_of(site)}
    assert texts["layer"].count("<math") > 5
    for text in texts.values():
        assert "arithmatex" not in text and ":class:<code>" not in text and "<autoref " not in text


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        # Containers often run as root, where Chromium's sandbox does not start.
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("view", VIEWS)
def test_every_page_opens_without_error_request_to_elsewhere_or_violation(
    view: Literal["phone, dark", "desktop, light"], browser: Any, address: str, site: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(**VIEWS[view], reduced_motion="reduce")
    wrong: list[str] = []
    for file in pages_of(site):
        name = file.parent.relative_to(site).as_posix()
        page = context.new_page()
        page.on("console", lambda said, at=name: said.type == "error" and wrong.append(f"{at}: console: {said.text}"))
        page.on("pageerror", lambda error, at=name: wrong.append(f"{at}: script: {error}"))
        page.on("requestfailed", lambda asked, at=name: wrong.append(f"{at}: failed: {asked.url}"))
        page.on(
            "request",
            lambda asked, at=name: (
                asked.url.startswith((address, "data:", "blob:")) or wrong.append(f"{at}: asks elsewhere: {asked.url}")
            ),
        )
        page.goto(f"{address}{name}/" if name != "." else address, wait_until="networkidle")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > VIEWS[view]["viewport"]["width"]:
            wrong.append(f"{name}: is {width} pixels wide")
        for violation in axe.run(page, options=WCAG).response["violations"]:
            nodes = violation["nodes"]
            wrong.append(f"{name}: {violation['id']}, {len(nodes)} times, e.g. {nodes[0]['html'][:200]}")
        page.close()
    context.close()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", ["defectify", "hopskipjump", "boundary"])
def test_the_search_finds(word: str, browser: Any, address: str) -> None:
    page = browser.new_page(**VIEWS["desktop, light"])
    page.goto(address)
    page.locator(".md-search__input").click()
    page.keyboard.type(word)
    page.wait_for_selector(".md-search-result__item a")
    assert word in page.locator(".md-search-result__item").first.inner_text().lower()
    page.close()


def test_the_interactive_picture_shows_the_masks_of_sample_mask(browser: Any, address: str) -> None:
    page = browser.new_page(**VIEWS["desktop, light"])
    page.goto(f"{address}concepts/layer/")
    for mode, level in itertools.product(("neuron", "channel", "shared"), (1, 6, STEPS)):
        page.locator(f"input[value={mode}]").check()
        page.locator("#mask-p").fill(str(level))
        shown = page.evaluate("document.getElementById('mask-picture').mask()")
        mask = sample_mask(MaskSpec(p=level / STEPS, mode=mode), (CHANNELS, SIZE, SIZE), site=0)
        assert shown == "".join(map(str, mask.int().flatten().tolist()))
        page.locator("#mask-run").click()
        assert page.evaluate("document.getElementById('mask-picture').mask()") == shown
        assert "the same as in every run" in page.locator("#mask-status").inner_text()
    page.close()


def test_dropout_is_drawn_anew_in_the_interactive_picture(browser: Any, address: str) -> None:
    page = browser.new_page(**VIEWS["desktop, light"])
    page.goto(f"{address}concepts/layer/")
    page.locator("input[value=dropout]").check()
    seen = set()
    for _ in range(3):
        seen.add(page.evaluate("document.getElementById('mask-picture').mask()"))
        page.locator("#mask-run").click()
    assert len(seen) == 3
    page.close()
