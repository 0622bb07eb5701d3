"""Links that lead out of docs/: to another page of the site where there is one, else to the repository.

Names of the package in code, `interptrain.steer_`, lead to their place in the API where they have one.
"""

from __future__ import annotations

import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from pymdownx.slugs import slugify

sys.path.insert(0, str(Path(__file__).parent))
import pages

sys.path.pop(0)

ROOT = Path(__file__).parents[2]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"].split("/tree/")[0]
_FENCED = re.compile(r"^(```.*?^```|(?: {4}[^\n]*\n)+)", re.DOTALL | re.MULTILINE)  # code is left as it is
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_NAME = re.compile(r"(?<!\[)`(interptrain(?:\.\w+)+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors_of_readme() -> dict[str, str]:
    """The page that each heading of README.md is on, by its anchor."""
    slug, sections, found = slugify(case="lower"), pages.readme_sections(), {}
    for page, titles in pages.readme_pages().items():
        for title in titles:
            headings = [title, *_HEADING.findall(sections[title])]
            found |= {slug(heading.replace("`", ""), "-"): page for heading in headings if heading}
    return found


def target(link: str, source: str) -> str:
    """Where a link of a file of the repository leads in the site.

    Args:
        link: as it is written, relative to its file.
        source: the file, relative to the repository.
    """
    path, _, anchor = link.partition("#")
    if "://" in link or link.startswith("mailto:"):
        return link
    at = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    behind = f"#{anchor}" if anchor else ""
    if at == "README.md":
        return f"{anchors_of_readme()[anchor]}{behind}" if anchor else "index.md"
    if at in pages.FILES.values():
        return f"{next(page for page, file in pages.FILES.items() if file == at)}{behind}"
    if at.startswith("docs/"):
        return link if source.startswith("docs/") else f"{at.removeprefix('docs/')}{behind}"
    there = ROOT / at
    if not there.exists():
        return link  # which the build then refuses
    return f"{REPOSITORY}/{'tree' if there.is_dir() else 'blob'}/main/{at}{behind}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite a page's links and names, but for those in blocks of code."""
    made, uri = pages.made(), page.file.src_uri
    source = made[uri][1] if uri in made else f"docs/{uri}"
    parts = _FENCED.split(markdown)
    for place in range(0, len(parts), 2):
        linked = _LINK.sub(lambda found: f"{found[1]}{target(found[2], source)}{found[3]}", parts[place])
        parts[place] = _NAME.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', linked)
    return "".join(parts)
