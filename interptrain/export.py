"""A run's adapter or model as a folder for a hub, with a card that says where it came from and what was measured.

    interptrain export RUN --to DIR [--arm NAME] [--seed N]

Only weights (safetensors), JSON and tokenizer files are taken along. `interptrain.json` holds for machines what the
card says. Nothing is written but a folder beside DIR that becomes DIR once it is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from interptrain.card import model_card
from interptrain.concepts import ConceptBank
from interptrain.recorders.document import Arm, Report, Run, read_report

EXPORT_SCHEMA = 1
CARD, FACTS, BANK = "README.md", "interptrain.json", "bank"
WEIGHTS = re.compile(r"adapter_model\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors")
TAKEN = {
    "adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
}  # fmt: skip
EDITED = ("adapter_config.json", "config.json", "tokenizer_config.json")  # they may name folders of this machine
NAMES = ("base_model_name_or_path", "_name_or_path", "name_or_path")
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
NEUTRAL = "realised/neutral/fraction"
CONTROLS = ("random",)  # what the names of control arms begin with
UNSTEERED = ("observed", "unsteered", "answers")  # as the recipes call the arm that others are compared with


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: where it lies.
        files: everything in it, relative.
        left_out: files of the run's weights that were not taken along.
    """

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]


def export(run: Path, to: Path, *, arm: str | None = None, seed: int | None = None) -> Exported:
    """Write a run's model, its card, its facts and its bank to a folder.

    Args:
        run: a folder that a recipe wrote.
        to: a folder that is not there yet, or empty.
        arm: which arm; the steered one, or the only one, if not given.
        seed: which of its runs; the first if not given.

    Raises:
        ValueError: the report is missing, not whole or of another schema; there is no such arm or seed; its weights are
            missing, lie outside of the run or are no safetensors; the target is not empty or cannot be written.
    """
    report = read_report(run / "report.json")
    chosen, one = _chosen(report, arm, seed)
    weights = _weights(run, one)
    taken, left_out = _sorted(weights)
    if to.is_symlink() or (to.exists() and not (to.is_dir() and not any(to.iterdir()))):
        raise ValueError(f"'{to}' is there already; name a folder that is new or empty")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as holder:
            staged = Path(holder) / "export"
            staged.mkdir()
            _write(staged, run, report, chosen, one, taken, left_out)
            files = tuple(sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()))
            if to.exists():
                to.rmdir()  # empty
            staged.rename(to)
    except OSError as error:
        raise ValueError(f"cannot write to '{to}': {error}") from error
    return Exported(to, files, tuple(left_out))


def _write(staged: Path, run: Path, report: Report, arm: Arm, one: Run, taken: list[Path], left_out: list[str]) -> None:
    base = str(report["config"].get("model", "tiny-world"))
    for path in taken:
        if path.name in EDITED:
            (staged / path.name).write_text(_without_places(path, base), encoding="utf-8")
        else:
            shutil.copyfile(path, staged / path.name)
    bank = None
    if (run / BANK).is_dir():
        bank = _public(ConceptBank.load(run / BANK))
        bank.save(staged / BANK)
    files = {str(path.relative_to(staged)): _sha256(path) for path in sorted(staged.rglob("*")) if path.is_file()}
    facts = _facts(run, report, arm, one, bank, base, files, left_out)
    text = json.dumps(facts, indent=1, allow_nan=False)
    for sign in "<>&":  # harmless inside a page too
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    (staged / FACTS).write_text(text + "\n", encoding="utf-8")
    (staged / CARD).write_text(model_card(facts), encoding="utf-8")


def _facts(
    run: Path, report: Report, arm: Arm, one: Run, bank: ConceptBank | None, base: str, files: Mapping[str, str],
    left_out: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Everything that the card says, as JSON."""
    adapter = "adapter_config.json" in files
    own_start = adapter and _base_of(run / one["weights"]).is_relative_to(run.resolve())
    others = [each for each in report["arms"] if each is not arm]
    return unplaced({
        "schema": EXPORT_SCHEMA,
        "recipe": report["recipe"],
        "title": report["title"],
        "created": report["created"],
        "base_model": base,
        "on_hub": not own_start and HUB_NAME.fullmatch(base) is not None and base != "tiny-world"
        and not Path(base).exists(),
        "start_in_run": own_start,
        "library": "peft" if adapter else "transformers",
        "tokenizer": "tokenizer.json" in files or "tokenizer.model" in files,
        "data": report.get("data", []),
        "config": report["config"],
        "versions": report["versions"],
        "arm": {"name": arm["name"], "says": arm["says"], "seed": one["seed"], "seeds": len(arm["runs"])},
        "concepts": [
            {**concept, "sources": [] if bank is None else _sources(bank, concept["name"])}
            for concept in report["concepts"]
        ],
        "bank": None if bank is None else {"digest": bank.digest(), "folder": BANK},
        "meters": meters_at_end(one, [concept["name"] for concept in report["concepts"]]),
        "tokens_dropped": tokens_dropped(one),
        "measures": report["measures"],
        "scores": [
            {"name": "before training", "kind": "before", "says": "", "scores": report["before"]["scores"],
             "realised": {}},
            *({"name": each["name"], "kind": _kind(each), "says": each["says"], "scores": paired["scores"],
               "realised": _realised(paired, [concept["name"] for concept in report["concepts"]])}
              for each in (arm, *others) if (paired := _run_of(each, one["seed"])) is not None),
        ],
        "relearning": report.get("relearning", []),
        "verdicts": report["verdicts"],
        "limits": report["limits"],
        "files": dict(files),
        "left_out": left_out,
    })  # fmt: skip


def meters_at_end(one: Run, concepts: list[str]) -> dict[str, dict[str, float]]:
    """The last value of every meter of each concept, nulls included.

    Example:
        >>> run = {"curves": {"step": [0, 1], "concept/pirate/demand": [0.5, 0.4], "concept/pirate/write": [0.2, None]}}
        >>> meters_at_end(run, ["pirate"])
        {'pirate': {'demand': 0.4, 'write': 0.2}}
    """
    found: dict[str, dict[str, float]] = {}
    for name in concepts:
        prefix = f"concept/{name}/"
        curves = {key.removeprefix(prefix): values for key, values in one["curves"].items() if key.startswith(prefix)}
        known = {key: [value for value in values if value is not None] for key, values in curves.items()}
        found[name] = {key: values[-1] for key, values in known.items() if values}
    return found


def _realised(one: Run, concepts: list[str]) -> dict[str, float]:
    """How far neutral texts have moved along each concept at the end, as a share of the way to texts that show it."""
    found = meters_at_end(one, concepts)
    return {name: found[name][NEUTRAL] for name in concepts if NEUTRAL in found[name]}


def tokens_dropped(one: Run) -> dict[str, float]:
    """By intervention and concept, the share of loss tokens above its threshold: the mean over the run.

    Example:
        >>> tokens_dropped({"curves": {"step": [0, 1], "interptrain/gate/pirate/tokens": [0.1, 0.3]}})
        {'gate/pirate': 0.2}
    """
    means = {}
    for key, values in one["curves"].items():
        known = [value for value in values if value is not None]
        if key.startswith("interptrain/") and key.endswith("/tokens") and known:
            means[key.removeprefix("interptrain/").removesuffix("/tokens")] = sum(known) / len(known)
    return means


def unplaced(value: Any) -> Any:
    """Without folders of this machine: of an absolute path only its last part stays.

    Example:
        >>> unplaced({"out": "/home/me/runs/a", "note": "from ~/data/b.jsonl and org/model"})
        {'out': 'a', 'note': 'from b.jsonl and org/model'}
    """
    match value:
        case str():
            return re.sub(r"(?<![^\s'\"(=])(?:~?/|[A-Za-z]:\\)(?:[^\s'\"]*[/\\])?([^\s/\\'\"]+)[/\\]?", r"\1", value)
        case dict():
            return {unplaced(name): unplaced(each) for name, each in value.items()}
        case list() | tuple():
            return [unplaced(each) for each in value]
        case _:
            return value


def _chosen(report: Report, name: str | None, seed: int | None) -> tuple[Arm, Run]:
    """The arm and its run."""
    try:
        arms = {arm["name"]: arm for arm in report["arms"]}
        if name is None:
            name = "steered" if "steered" in arms else next(iter(arms)) if len(arms) == 1 else None
        if name not in arms:
            asked = "name one with arm" if name is None else f"there is no '{name}'"
            raise ValueError(f"the run has the arms {', '.join(arms)}; {asked}")
        runs = {run["seed"]: run for run in arms[name]["runs"]}
        if not runs or (seed is not None and seed not in runs):
            raise ValueError(f"arm '{name}' has the seeds {', '.join(map(str, runs)) or 'none'}, not {seed}")
        one = runs[min(runs) if seed is None else seed]
        needed = (report["config"], report["versions"], report["before"]["scores"], one["curves"], one["scores"])
        if not all(isinstance(each, dict) for each in needed) or not isinstance(one["weights"], str):
            raise TypeError("a field is of another kind")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"report.json is not what a recipe writes ({error!r}); was it edited?") from error
    return arms[name], one


def _run_of(arm: Arm, seed: int) -> Run | None:
    return next((run for run in arm["runs"] if run["seed"] == seed), None)


def _kind(arm: Arm) -> str:
    if arm["name"] in UNSTEERED:
        return "unsteered"
    return "random" if arm["name"].startswith(CONTROLS) else "other"


def _weights(run: Path, one: Run) -> Path:
    """The folder of the weights, inside the run."""
    folder = (run / one["weights"]).resolve()
    if not one["weights"] or not folder.is_relative_to(run.resolve()) or folder == run.resolve():
        raise ValueError(f"report.json says the weights lie in '{one['weights']}', outside of the run; was it edited?")
    if not folder.is_dir():
        raise ValueError(f"the weights '{folder}' are not there; were they moved?")
    return folder


def _sorted(folder: Path) -> tuple[list[Path], list[str]]:
    """What is taken along, and the names of what is not."""
    taken: list[Path] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        wanted = path.name in TAKEN or WEIGHTS.fullmatch(path.name) is not None
        if wanted and path.is_file() and not path.is_symlink():
            taken.append(path)
        elif path.name != CARD:  # PEFT's empty form of a card
            left_out.append(path.name)
    weights = [path for path in taken if WEIGHTS.fullmatch(path.name)]
    if not weights:
        raise ValueError(
            f"'{folder}' has no adapter_model.safetensors or model.safetensors; found {', '.join(left_out)}"
        )
    for path in weights:
        try:
            with safe_open(path, framework="pt") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise ValueError(f"'{path}' is not a whole safetensors file ({error}); was it truncated?") from error
    return taken, left_out


def _without_places(path: Path, base: str) -> str:
    """A configuration whose base is a public name, without code to be run."""
    config = _json(path)
    public = base if HUB_NAME.fullmatch(base) else Path(base).name
    config = {name: public if name in NAMES and value else unplaced(value) for name, value in config.items()}
    config.pop("auto_map", None)
    return json.dumps(config, indent=2) + "\n"


def _base_of(weights: Path) -> Path:
    return Path(str(_json(weights / "adapter_config.json").get("base_model_name_or_path") or "")).resolve()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); was it truncated?") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' holds a {type(found).__name__}, expected an object")
    return found


def _public(bank: ConceptBank) -> ConceptBank:
    """Directions and sources, without the SAE they were taken from."""
    sources = tuple(unplaced(dict(source)) for source in bank.sources)
    return replace(bank, readouts={}, model=unplaced(bank.model), sources=sources)


def _sources(bank: ConceptBank, name: str) -> list[dict[str, Any]]:
    return [dict(bank.sources[row]) for row in bank.rows(name)] if name in bank.names else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
