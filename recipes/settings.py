"""A recipe's configuration: a frozen dataclass, set by a YAML file, by flags, or by both; flags win."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
_KEY = "recipe"  # in a file: which recipe it configures
_EXPECTED = {  # in YAML's words rather than Python's
    "tuple_type": "expected a list, such as [a, b]",
    "dict_type": "expected a mapping, such as {name: value}",
}


def option(says: str, default: Any = None, *, factory: Any = None) -> Any:
    """A field of a configuration with what its flag's help says."""
    metadata = {"help": says}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """One flag for every field of a configuration; its help and default come from the field.

    A tuple takes several values, a mapping `NAME=VALUE` pairs, a mapping of tuples `NAME=VALUE,VALUE`. A flag that is
    not given is not set.
    """
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        default = _default(field)
        shown = (
            "none" if default in (None, (), {}) else "yes" if default is True else "no" if default is False else default
        )
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{field.metadata['help']} (default: {shown})".replace("%", "%%"),
            **_form(hints[field.name], field.name.upper()),
        )


def configured(config: type[Config], *given: Mapping[str, Any]) -> Config:
    """A configuration from mappings, of which the later ones win.

    Raises:
        ValueError: a setting is unknown, missing, of the wrong type or out of range; each is named.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     steps: int = 3
        >>> configured(Small, {"steps": 4}, {"steps": "5"})
        Small(steps=5)
        >>> configured(Small, {"stepps": 4})
        Traceback (most recent call last):
        ValueError: unknown setting 'stepps'; did you mean 'steps'?
    """
    from difflib import get_close_matches

    from pydantic import TypeAdapter, ValidationError

    merged: dict[str, Any] = {}
    for settings in given:
        merged |= {name.replace("-", "_"): value for name, value in settings.items()}
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in merged:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"unknown setting '{name}'; {hint}")
    try:
        return TypeAdapter(config).validate_python(merged)
    except ValidationError as error:
        raise ValueError("; ".join(_complaint(each) for each in error.errors())) from None


def read_settings(path: Path, recipe: str) -> dict[str, Any]:
    """The settings of a YAML file, as `interptrain recipe init` writes them.

    Raises:
        ValueError: the file is missing, no YAML mapping, or made for another recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the configuration '{path}': {error}") from None
    return _parsed(text, str(path), recipe)


def ready_configurations(recipe: str) -> dict[str, Traversable]:
    """The configurations that ship for a recipe, by name."""
    folder = resources.files("interptrain.recipes") / "configurations" / recipe
    if not folder.is_dir():
        return {}
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in found if file.name.endswith(".yaml")}


def ready_settings(recipe: str, name: str) -> dict[str, Any]:
    """The settings of a configuration that ships.

    Raises:
        ValueError: there is none of that name.
    """
    return _parsed(ready_text(recipe, name), f"{recipe}/{name}", recipe)


def ready_text(recipe: str, name: str) -> str:
    """A configuration that ships, as it is to be shown and copied.

    Raises:
        ValueError: there is none of that name.
    """
    ready = ready_configurations(recipe)
    if name not in ready:
        raise ValueError(f"recipe '{recipe}' has no configuration '{name}'; there are: {', '.join(ready) or 'none'}")
    return ready[name].read_text(encoding="utf-8")


def default_text(recipe: str, config: type, summary: str) -> str:
    """A recipe's defaults as a commented YAML file."""
    import yaml

    lines = [f"# {summary}", f"# interptrain recipe run {recipe} --config THIS_FILE", f"{_KEY}: {recipe}"]
    for field in dataclasses.fields(config):
        value = _plain(_default(field))
        lines += ["", f"# {field.metadata['help']}", yaml.safe_dump({field.name: value}, default_flow_style=True)[1:-2]]
    return "\n".join(lines) + "\n"


def _parsed(text: str, where: str, recipe: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"'{where}' is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"'{where}' holds no settings; expected lines such as 'model: gpt2'")
    made_for = found.pop(_KEY, recipe)
    if made_for != recipe:
        raise ValueError(f"'{where}' configures the recipe '{made_for}', not '{recipe}'")
    return found


def _complaint(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # of the configuration's own checks
        return str(error["ctx"]["error"])
    if error["type"] == "missing" and len(error["loc"]) > 1:  # of a tuple
        *names, place = error["loc"]
        return f"{'.'.join(map(str, names))}: expected {place + 1} values or more, found {list(error['input'])}"
    if error["type"] == "missing":
        return f"{where} is needed: --{where.replace('_', '-')}"
    said = _EXPECTED.get(error["type"], f"{error['msg'][0].lower()}{error['msg'][1:]}")
    return f"{where}: {said}, found {error['input']!r}"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    """As YAML writes it."""
    match value:
        case Path():
            return str(value)
        case tuple():
            return [_plain(each) for each in value]
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case _:
            return value


def _form(hint: Any, name: str) -> dict[str, Any]:
    """How argparse reads a type; what argparse leaves as text, `configured` converts."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    origin = get_origin(hint)
    if origin is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is tuple:
        return {"nargs": "+", "metavar": name}
    if origin is dict:
        several = get_origin(get_args(hint)[1]) is tuple
        form = "NAME=VALUE,..." if several else "NAME=VALUE"
        return {"nargs": "+", "metavar": form, "action": _Pairs, "several": several}
    return {"type": hint, "metavar": name}


class _Pairs(argparse.Action):
    """Gathers `NAME=VALUE` into a mapping."""

    def __init__(self, *given: Any, several: bool, **options: Any) -> None:
        super().__init__(*given, **options)
        self._several = several

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        pairs = dict(getattr(namespace, self.dest, None) or {})
        for value in values:
            name, equals, rest = value.partition("=")
            if not (name and equals and rest):
                parser.error(f"argument {option}: expected {self.metavar}, found '{value}'")
            pairs[name] = rest.split(",") if self._several else rest
        setattr(namespace, self.dest, pairs)
