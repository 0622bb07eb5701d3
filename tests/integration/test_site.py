"""The documentation's site: built without a warning, whole, and asking nothing of the network."""

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from interptrain.commands import COMMANDS
from interptrain.recipes import RECIPES

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
pytest.importorskip("mkdocs", reason="pip install 'interptrain[docs]'")


LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page loads, what it links to, and its places that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.titles = text, 0
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in LOADS and given.get(LOADS[tag]) is not None:
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.places.update(value for name in ("id", "name") if (value := given.get(name)))
        self.titles += tag == "h1"


def build(folder: Path, config: Path = CONFIG) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page but 404.html, which a server shows at any place."""
    files = (file for file in site.rglob("*.html") if file.name != "404.html")
    return {file: Page(file.read_text(encoding="utf-8")) for file in files}


def test_every_document_is_a_page_with_one_title(site, pages):
    documents = sorted((ROOT / "docs").glob("*.md"))
    assert documents
    for file in documents:
        assert pages[site / f"{file.stem}.html"].titles == 1, file.name


def test_every_section_of_the_readme_is_on_one_page(pages):
    sections = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    headings = [
        heading for file, page in pages.items() if not (ROOT / "docs" / f"{file.stem}.md").exists()
        for heading in re.findall(r"<h[12] id=\"[^\"]*\">(.*?)<a", page.text)
    ]  # fmt: skip
    for section in sections:
        assert headings.count(html.escape(section, quote=False)) == 1, section


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for file, page in pages.items():
        assert any(name.endswith(".js") for name in page.loads)
        for name in page.loads:
            assert not re.match(r"[a-z]+:|//", name), f"{file.name} loads {name}"
            assert (file.parent / unquote(urlsplit(name).path)).exists(), f"{file.name} loads {name}"
        assert not re.search(r"url\(\s*[\"']?https?:|@import", page.text), file.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_what_the_themes_script_would_fetch_is_on_no_page(pages):
    """A repository's stars, a CDN's diagrams, and a server's list of versions."""
    for file, page in pages.items():
        for asked in ('data-md-component="source"', 'class="mermaid"', '"provider":'):
            assert asked not in page.text, f"{file.name} has {asked}"


def test_every_link_inside_leads_to_a_place_that_is_there(pages):
    followed = 0
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{file.name} links to {link}"
            if parts.fragment:
                assert unquote(parts.fragment) in pages[there].places, f"{file.name} links to {link}"
            followed += 1
    assert followed > 1000


def test_links_to_the_repository_lead_to_files_that_are_there(pages):
    found = {link for page in pages.values() for link in page.links if "github.com/interptrain" in link}
    assert found
    for link in found:
        assert (ROOT / re.sub(r".*?/(tree|blob)/main/", "", link)).exists(), link


def places_in_the_api(pages):
    return {place for file, page in pages.items() if file.parent.name == "api" for place in page.places}


PACKAGES = ("concepts", "interventions", "meters", "projection", "recorders", "sites", "steering", "tiny_world")


@pytest.mark.parametrize("name", ["interptrain", *(f"interptrain.{package}" for package in PACKAGES)])
def test_every_exported_class_and_function_has_its_place_in_the_api(name, pages):
    module = importlib.import_module(name)
    values = [getattr(module, exported) for exported in module.__all__]
    ours = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    assert ours
    assert {f"{value.__module__}.{value.__qualname__}" for value in ours} <= places_in_the_api(pages)


@pytest.mark.parametrize("loop", ["lightning", "torch", "transformers"])
def test_every_callback_has_its_place_in_the_api(loop, pages):
    source = (ROOT / "callbacks" / f"{loop}.py").read_text(encoding="utf-8")
    defined = re.findall(r"^(?:class|def) ([A-Za-z]\w*)", source, re.MULTILINE)
    assert defined
    assert {f"interptrain.callbacks.{loop}.{name}" for name in defined} <= places_in_the_api(pages)


def test_a_docstring_is_shown_with_its_formula_arguments_errors_and_example(pages):
    (page,) = (page for file, page in pages.items() if file.match("api/projection.html"))
    entry = page.text.split('id="interptrain.projection.reference.steer_"')[1].split("<h3")[0]
    for shown in ("Parameters:", "Raises:", "Examples:", "<pre", "&gt;&gt;&gt;"):
        assert shown in entry
    assert "Example:" not in re.sub(r"<[^>]+>", "", page.text)


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    """The same settings, over one page."""
    docs = tmp_path / "docs"
    (docs / "site").mkdir(parents=True)
    (docs / "evidence.md").write_text("# Evidence\n")
    links = ["[a](gone.md)", "[b](evidence.md#no-such-place)", "[c](../benchmarks/gone.py)", "[d][interptrain.gone]"]
    (docs / "index.md").write_text("# A page\n\n" + "\n".join(links))
    settings = CONFIG.read_text(encoding="utf-8").split("\n# A page that is not there")[0]
    settings = settings.replace("  - pages.py\n  - links.py", f"  - {CONFIG.parent / 'links.py'}")
    (docs / "site" / "mkdocs.yml").write_text(settings)
    done = build(tmp_path / "out", docs / "site" / "mkdocs.yml")
    assert done.returncode != 0
    for said in ("gone.md", "no-such-place", "gone.py", "interptrain.gone"):
        assert re.search(rf"WARNING.*{re.escape(said)}", done.stderr), done.stderr


def test_every_name_in_the_maths_leads_to_its_place_in_the_api(site, pages):
    named = re.findall(r"`(interptrain(?:\.\w+)+)`", (ROOT / "docs" / "maths.md").read_text(encoding="utf-8"))
    links = [link for link in pages[site / "maths.html"].links if re.match(r"api/.*#", link)]
    assert len(links) == len(named) > 5


def test_every_command_and_every_recipes_settings_are_on_the_page_of_commands(site, pages):
    page = pages[site / "commands.html"]
    for command in ("doctor", "recipe run", "export", "tiny-world build", *map(" ".join, COMMANDS)):
        assert f"interptrain-{command.replace(' ', '-')}" in page.places
    assert set(RECIPES) <= page.places
    assert "learning_rate" in page.text
