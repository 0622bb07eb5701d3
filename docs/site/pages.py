"""Pages that are made and not written: README's sections, the project's own files, the examples and the API.

README.md          one page a section, or several sections on one: `SECTIONS`; what has no page is on the first
CONTRIBUTING.md..  a page each: `FILES`
examples/*.py      one page of them all
interptrain/**     one page a package, from its docstrings; the first lists `interptrain.__all__`
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "interptrain"

SECTIONS = {  # sections of README.md that have a page of their own
    "start.md": ("Add it to your Trainer",),
    "demo.md": ("What the demo shows",),
    "find.md": ("Find a concept, and who teaches it",),
    "meters.md": ("What each meter means, and does not", "Watch it"),
    "limits.md": ("Limits", "What it costs"),
    "built.md": ("How it is built",),
}
FILES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
}
API = {  # packages and modules whose public names are documented, a page each
    "concepts": ("Concepts", ("concepts",)),
    "rules": ("Rules", ("steering",)),
    "interventions": ("Interventions", ("interventions",)),
    "callbacks": ("Callbacks", ("callbacks", "session")),
    "steerer": ("Steerer and reports", ("steerer", "step", "report", "readings", "effects", "plan", "checkpoint")),
    "checks": ("Alarms and checks", ("alarm", "discovery", "sae_fit", "gain_check")),
    "teaches": ("Who teaches what", ("attribution", "attribution_said", "attribution_rules", "similarity")),
    "meters": ("Meters", ("meters",)),
    "recorders": ("Recorders", ("recorders",)),
    "sites": ("Sites", ("sites",)),
    "projection": ("Projection", ("projection",)),
    "tiny_world": ("The embedded world", ("tiny_world",)),
}


def readme_sections() -> dict[str, str]:
    """README.md by the titles of its sections; what comes before the first is under the empty title."""
    parts = re.split(r"^## (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def readme_pages() -> dict[str, list[str]]:
    """Which sections of README.md are on which page.

    Raises:
        ValueError: a section that is to have a page is not there.
    """
    there = list(readme_sections())
    named = [title for titles in SECTIONS.values() for title in titles]
    if missing := [title for title in named if title not in there]:
        raise ValueError(f"README.md has no section {', '.join(map(repr, missing))}; mend SECTIONS in {__file__}")
    return {"index.md": [title for title in there if title not in named], **{k: list(v) for k, v in SECTIONS.items()}}


def _readme_page(titles: list[str]) -> str:
    """The sections, the first one's title as the page's."""
    sections = readme_sections()
    text = "".join(f"## {title}\n{sections[title]}" if title else sections[title] for title in titles)
    return text if titles[0] == "" else _raised(text, titles[0])


def _raised(text: str, first: str) -> str:
    """Headings one level up, below a page's title, which is the first of them."""
    text = text.removeprefix(f"## {first}\n")
    if "\n## " not in text:  # alone on its page
        text = re.sub(r"^##(#+ )", r"#\1", text, flags=re.MULTILINE)
    return f"# {first}\n{text}"


def _examples_page() -> str:
    parts = ["# Whole scripts\n\nEach runs as it is, on the embedded model, and is one of the project's tests.\n"]
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        code = "\n".join(source.splitlines()[tree.body[0].end_lineno or 0 :]).strip()
        parts.append(f"## {file.name}\n\n{ast.get_docstring(tree)}\n\n```python\n{code}\n```\n")
    return "\n".join(parts)


def _commands_page() -> str:
    """The help of every command, and the defaults of every recipe: the package is imported for these alone."""
    sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed
    os.environ["COLUMNS"] = "100"  # of what commands say of themselves
    from interptrain.recipes import RECIPES
    from interptrain.recipes.settings import default_text

    parts = ["# Commands\n\n`interptrain doctor` says what of it can run here.\n"]
    parts += [f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in _parsers()]
    parts.append(
        "## Settings of the recipes\n\nWhat `interptrain recipe show NAME` prints. Each is also a flag of `interptrain "
        "recipe run NAME`, with dashes.\n"
    )
    for name, module in RECIPES.items():
        recipe = importlib.import_module(module)
        parts.append(f"### {name}\n\n```yaml\n{default_text(name, recipe.Config, recipe.SUMMARY)}```\n")
    return "\n".join(parts)


def _parsers() -> Iterator[argparse.ArgumentParser]:
    """Every command's own, as the command line makes them."""
    from interptrain import cli
    from interptrain.commands import COMMANDS

    for words, (module, summary) in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"interptrain {' '.join(words)}", description=summary)
        importlib.import_module(module).arguments(parser)
        yield parser
    own = {f"interptrain {' '.join(words)}" for words in COMMANDS}
    yield from (parser for parser in _inside(cli._parser()) if parser.prog not in own)


def _inside(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for each in action.choices.values():
            yield from _inside(each)


def modules(name: str) -> list[str]:
    """A module, or a package and its public modules, by their full names."""
    folder = PACKAGE / name
    if not folder.is_dir():
        return [f"interptrain.{name}"]
    inside = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return [f"interptrain.{name}", *(f"interptrain.{name}.{module}" for module in inside)]


def _api_page(title: str, names: tuple[str, ...]) -> str:
    parts = [f"# {title}"]
    for name in names:
        for module in modules(name):
            package = (PACKAGE.parent / module.replace(".", "/")).is_dir()
            members = "\n        members: false" if package else ""
            parts.append(f"::: {module}\n    options:\n        show_root_full_path: true{members}")
    return "\n\n".join(parts) + "\n"


def exported() -> list[str]:
    """`interptrain.__all__`, read and not imported."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    return [name for name in ast.literal_eval(names) if not name.startswith("__")]


def _api_index() -> str:
    """Every name that `interptrain` has, and every page of what its packages have."""
    names = "\n".join(f"- [`{name}`][interptrain.{name}]" for name in exported())
    pages = "\n".join(f"- [{title}]({page}.md)" for page, (title, _) in API.items())
    return f"# API\n\nWhat `interptrain` has at its top:\n\n{names}\n\nAnd by package:\n\n{pages}\n"


def made() -> dict[str, tuple[Callable[[], str], str]]:
    """Every page that is made: what makes its text, and the file that its relative links start from."""
    found: dict[str, tuple[Callable[[], str], str]] = {
        page: (partial(_readme_page, titles), "README.md") for page, titles in readme_pages().items()
    }
    found |= {page: (partial((ROOT / file).read_text, encoding="utf-8"), file) for page, file in FILES.items()}
    found["examples.md"] = _examples_page, "examples/README.md"
    found["commands.md"] = _commands_page, "docs/commands.md"
    found |= {f"api/{page}.md": (partial(_api_page, *what), f"docs/api/{page}.md") for page, what in API.items()}
    found["api/index.md"] = _api_index, "docs/api/index.md"
    return found


def _kept(entry: Any, there: set[str]) -> Any:
    """An entry of the navigation without pages that are not there; None where nothing is left."""
    if isinstance(entry, str):
        return entry if entry in there else None
    if isinstance(entry, list):
        return [kept for each in entry if (kept := _kept(each, there))]
    ((title, inside),) = entry.items()
    if inside == "api/":
        inside = ["api/index.md", *(f"api/{page}.md" for page in API)]
    kept = _kept(inside, there)
    return {title: kept} if kept else None


def _pages_of(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inside = entry if isinstance(entry, list) else list(entry.values())
    return [page for each in inside for page in _pages_of(each)]


def on_config(config: Any) -> Any:
    """Fit the navigation to the pages that are there; those it does not name come last."""
    written = {file.name for file in Path(config.docs_dir).glob("*.md")}
    there = written | made().keys()
    config.nav = _kept(config.nav, there)
    if more := sorted(there - set(_pages_of(config.nav))):
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for page, (text, _) in made().items():
        files.append(File.generated(config, page, content=text()))
    return files
