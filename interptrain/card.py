"""The model card of an export: its facts in Markdown, every text of which is escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 600  # characters of a text in the card
SHOWN = ("suppress", "amplify", "gate", "retain", "where")  # of the settings: what acted
Facts = Mapping[str, Any]


def model_card(facts: Facts) -> str:
    """The card: where the model came from, what acted on its training, what was measured and what was not.

    Args:
        facts: those of `interptrain.json`.
    """
    sections = (
        _front_matter(facts), f"# {text(facts['title'])}\n", _introduction(facts), _what_acted(facts),
        _effect(facts), _meters(facts), _relearning(facts), _verdicts(facts), _provenance(facts), _limits(facts),
    )  # fmt: skip
    return "\n".join(section for section in sections if section)


def text(value: Any) -> str:
    r"""A text as Markdown that shows it and does nothing else: one line, no control characters, no markup.

    Example:
        >>> text("a|b\n---\n</script> [x](y)")
        'a\\|b --- &lt;/script&gt; \\[x\\](y)'
    """
    one_line = " ".join(str(value).split())
    plain = "".join(sign for sign in one_line if unicodedata.category(sign)[0] != "C")
    plain = f"{plain[:LONGEST]}…" if len(plain) > LONGEST else plain
    escaped = re.sub(r"([\\`*_\[\]#|~$@]|:(?=//))", r"\\\1", plain)
    escaped = re.sub(r"^([-+=])", r"\\\1", escaped).replace("www.", "www\\.")  # no list, rule or link either
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _front_matter(facts: Facts) -> str:
    """YAML of constants, and of a base model's name only where it can be nothing else."""
    lines = [f"library_name: {'peft' if facts['library'] == 'peft' else 'transformers'}", "tags:", "- interptrain"]
    lines += ["- lora"] if facts["library"] == "peft" else []
    if facts["on_hub"]:
        lines.insert(0, f'base_model: "{facts["base_model"]}"')
    return "---\n" + "\n".join(lines) + "\n---\n"


def _introduction(facts: Facts) -> str:
    kind = "A LoRA adapter for" if facts["library"] == "peft" else "A fine-tuned copy of"
    arm = facts["arm"]
    lines = [
        f"{kind} {text(facts['base_model'])}, written by interptrain's recipe {text(facts['recipe'])} "
        f"({text(facts['created'])}): arm {text(arm['name'])}, seed {text(arm['seed'])}, one of {arm['seeds']}.",
        *(["The adapter's base is a model that the recipe made first; it lies in the run's folder `start` and is not "
           "part of this export."] if facts["start_in_run"] else
          [] if facts["on_hub"] else
          ["The base model ships with interptrain: `interptrain.tiny_world.load_base()`."]
          if facts["base_model"] == "tiny-world" else ["The base model is not known to be on a hub."]),
        *([] if facts["tokenizer"] else ["The tokenizer is the base model's."]),
        "No license was chosen; the base model's and the data's apply.",
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def _what_acted(facts: Facts) -> str:
    found = {name: facts["config"][name] for name in SHOWN if facts["config"].get(name)}
    lines = (
        [f"- {text(name)}: {text(_listed(value))}" for name, value in found.items()]
        if len(found) > ("where" in found)
        else []
    )
    return "\n".join(["## What acted on the training\n", text(facts["arm"]["says"]), "", *lines, ""])


def _listed(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _effect(facts: Facts) -> str:
    """Scores of this run beside those of the others of its seed, and what was not measured."""
    own, measures = facts["scores"][1], facts["measures"]
    kinds = {each["kind"] for each in facts["scores"]}
    missing = []
    if own["kind"] == "unsteered":
        missing.append("This is the unsteered run: nothing was prevented in it.")
    elif "unsteered" not in kinds:
        missing.append("No unsteered run was made: what the steering prevented, and what it cost, was not measured.")
    if own["kind"] != "unsteered" and "random" not in kinds:
        missing.append(
            "No control along random directions was run: whether these directions did more than any others was not "
            "measured."
        )
    if facts["arm"]["seeds"] == 1:
        missing.append("One seed: a lead, not a result.")
    if all(measure["key"].endswith("loss") for measure in measures):
        missing.append("What the model says was not scored: these are losses and activations.")
    realised = [name for name in own["realised"] if not name.startswith("random")]
    heads = ("", *(text(measure["label"]) for measure in measures),
             *(f"{text(name)} on neutral texts" for name in realised))  # fmt: skip
    rows = [
        (text(each["name"]) + (" (this model)" if each is own else ""),
         *(_figure(each["scores"].get(measure["key"])) for measure in measures),
         *(_figure(each["realised"].get(name)) for name in realised))
        for each in facts["scores"]
    ]  # fmt: skip
    says = [f"- {text(measure['label'])}: {text(measure['says'])}" for measure in measures]
    if realised:
        says.append("- on neutral texts: how far those have moved along the concept; 1 is as far as texts that show it")
    heading = "## What was prevented, and what it cost\n"
    return "\n".join([heading, *(f"{each}\n" for each in missing), table(heads, rows), *says, ""])


def _meters(facts: Facts) -> str:
    """The last readings, each beside its null."""
    rows = []
    for concept, found in facts["meters"].items():
        rows += [(text(concept), "demand", _figure(found.get("demand")), _figure(found.get("demand/null")))]
        rows += [(text(concept), "write", _figure(found.get("write")), _figure(found.get("write/null")))]
        rows += [(text(concept), "gain asked for", _figure(found.get("gain")), "1")]
        rows += [(text(concept), "gain achieved", _figure(found.get("achieved")), "1")]
        rows += [
            (text(concept), text(key), _figure(value), _z(found.get(f"{key.removesuffix('/fraction')}/z")))
            for key, value in found.items()
            if key.startswith("realised/") and key.endswith("/fraction")
        ]
    rows += [(text(name), "tokens dropped or scaled, mean of the run", _figure(share), "-")
             for name, share in facts["tokens_dropped"].items()]  # fmt: skip
    after = (
        "Demand and write are shares of energy beside those of as many other directions; a realised fraction is 0 as "
        "before training and 1 as much as in texts that show the concept; its z is against as many other directions. A "
        "dash: not measured.\n"
    )
    return "\n".join(["## Meters at the end\n", table(("concept", "meter", "value", "null"), rows), after])


def _relearning(facts: Facts) -> str:
    if not facts["relearning"]:
        return ""
    looks = [look["step"] for look in facts["relearning"][0]["runs"][0]["checkpoints"]]
    rows = [
        (text(each["name"]), text(run["seed"]), *(_figure(*look["scores"].values()) for look in run["checkpoints"]))
        for each in facts["relearning"]
        for run in each["runs"]
    ]
    return "\n".join([
        "## How soon it comes back\n", "The rate of the topic after so many steps on a few of its examples.\n",
        table(("start", "seed", *map(text, looks)), rows),
    ])  # fmt: skip


def _verdicts(facts: Facts) -> str:
    lines = [
        f"- **{text(each['status'])}**: {text(each['question'])} {text(each['answer'])} (Rule: {text(each['rule'])}.)"
        for each in facts["verdicts"]
    ]
    return "\n".join(["## What was found\n", *(lines or ["No question was answered."]), ""])


def _provenance(facts: Facts) -> str:
    data = [
        f"- data: {text(each['name'])}, {text(each['says'])}; sha256 {text(each['sha256'])}, {text(each['examples'])} "
        "examples"
        for each in facts["data"]
    ] or ["- data: the run does not say which file; see `config` in `interptrain.json`"]
    concepts = [
        f"- concept {text(each['name'])}: {text(each['says'])}; {text(each['directions'])} "
        f"direction{'' if each['directions'] == 1 else 's'} at "
        f"{text(each['hook'])}{_latents(each)}{_release(each)}"
        for each in facts["concepts"]
    ]
    bank = facts["bank"]
    return "\n".join([
        "## Where it came from\n", f"- base model: {text(facts['base_model'])}", *data, *concepts,
        f"- bank: digest {bank['digest']}, in `{bank['folder']}`, without the SAE" if bank
        else "- bank: the run kept none",
        "- versions: " + ", ".join(f"{text(name)} {text(version)}" for name, version in facts["versions"].items()),
        "- everything else: `interptrain.json`",
        *([f"- left out of the export: {', '.join(map(text, facts['left_out']))}"] if facts["left_out"] else []),
        "",
    ])  # fmt: skip


def _limits(facts: Facts) -> str:
    return "\n".join(["## Limits\n", *(f"- {text(limit)}" for limit in facts["limits"]), ""])


def _latents(concept: Facts) -> str:
    return f", latents {', '.join(map(text, concept['latents']))}" if concept["latents"] else ""


def _release(concept: Facts) -> str:
    source = concept["sources"][0] if concept["sources"] else {}
    known = [f"{name} {text(source[name])}" for name in ("release", "sae_id") if source.get(name)]
    return f" ({', '.join(known)})" if known else ""


def _z(value: float | None) -> str:
    return "-" if value is None else f"z {value:.1f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
