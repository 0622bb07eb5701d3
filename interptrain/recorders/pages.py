"""What all pages share: one file that opens offline, with no script and no request to anywhere, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

_OURS = b'<meta name="generator" content="interptrain">'
_HEAD = 2000  # bytes of a page that its head is within
_DARKEST = 0.75  # opacity of the deepest shade: the word under it stays readable in light and dark


def write_page(path: Path, template: str, filters: Mapping[str, Any] | None = None, /, **values: Any) -> Path:
    """Write a page; see `page`."""
    path.write_text(page(template, filters, **values), encoding="utf-8")
    return path


def replace_page(path: Path, text: str) -> Path:
    """Write a page over an earlier one of interptrain's, as a whole or not at all; never over another file.

    Args:
        path: of the page.
        text: as `page` makes it.

    Raises:
        ValueError: another file is there, or it cannot be written.
    """
    half = path.with_name(f".{path.name}.half")
    try:
        if path.exists() and not is_ours(path):
            raise ValueError(
                f"'{path}' is no page of interptrain's and is left as it is; move it, or name another file"
            )
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write '{path}': {error.strerror}") from error
    return path


def is_ours(path: Path) -> bool:
    """Whether a file is a page of this package, which a later one may take the place of."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _OURS in file.read(_HEAD)


def page(template: str, filters: Mapping[str, Any] | None = None, /, **values: Any) -> str:
    """A page from a template of this package, which extends `page.html`; every value is escaped.

    Args:
        template: e.g. `report.html`.
        filters: of the template's own.
        values: what the template shows.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    environment.filters |= {"shaded": shaded, **(filters or {})}
    return environment.get_template(template).render(**values)


def shaded(tokens: Sequence[str], values: Sequence[float | None], most: float) -> Markup:
    """A text as it reads, each token shaded by its value: orange above zero, blue below, grey where there is none.

    Args:
        tokens: as they stand in the text, spaces included.
        values: of each; None where it was not measured, such as a prompt's.
        most: the value of the deepest shade.

    Raises:
        ValueError: as many values as tokens are needed.

    Example:
        >>> print(shaded(["<b>"], [None], most=1.0))
        <div class="text"><span class="given">&lt;b&gt;</span></div>
        >>> print(shaded([" arr"], [0.5], most=1.0))
        <div class="text"><span class="t" style="--s:.38" title="0.5"> arr</span></div>
    """
    spans = [_span(token, value, most) for token, value in zip(tokens, values, strict=True)]
    return Markup('<div class="text">{}</div>').format(Markup("").join(spans))


def _span(token: str, value: float | None, most: float) -> Markup:
    if value is None:
        return Markup('<span class="given">{}</span>').format(token)
    depth = f"{min(1.0, abs(value) / most if most > 0 else 0.0) * _DARKEST:.2f}".removeprefix("0")
    kind = Markup("t less") if value < 0 else Markup("t")
    return Markup('<span class="{}" style="--s:{}" title="{}">{}</span>').format(kind, depth, f"{value:.2g}", token)


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
