"""Keep what `concepts find` found, or latents of an SAE, as concepts of a bank that training can use.

interptrain concepts save FOUND --method start-means --to my-bank
interptrain concepts save --sae RELEASE --sae-id ID --latents pirate=12,55 --model M --to my-bank
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from interptrain.commands.concepts_found import read_found
from interptrain.commands.concepts_reading import printable
from interptrain.concepts import ConceptBank, Readout
from interptrain.recipes.banks import load_sae
from interptrain.recipes.loading import ModelChoice, load_config, load_model
from interptrain.recipes.settings import add_options, configured, option

NEEDS = ("sae", "hf", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen."""

    to: Path = field(metadata={"help": "folder of the bank; concepts are added to one that is there"})
    found: Path | None = option("a folder that `concepts find` wrote; the same as FOUND")
    method: str | None = option("which of its methods; the one it recommends if not given")
    name: str | None = option("what to call the concept, in place of its own name")
    sae: str | None = option("an SAE whose latents make the concepts: a folder, a release, or tiny-world")
    sae_id: str | None = option("which SAE of a release; of tiny-world, its hook")
    latents: dict[str, tuple[int, ...]] = option("of the SAE, by concept", factory=dict)
    model: str | None = option("the model that the SAE belongs to: its width is checked")

    def __post_init__(self) -> None:
        if bool(self.found) == bool(self.sae):
            raise ValueError("name either a folder that `concepts find` wrote, or an SAE with --sae and --latents")
        if self.sae and not self.latents:
            raise ValueError("latents of the SAE are needed: --latents NAME=NUMBER,NUMBER")
        if self.found and (self.latents or self.sae_id or self.model):
            raise ValueError("latents, sae_id and model belong to an SAE (--sae), not to what was found")
        if self.sae and (self.method or self.name):
            raise ValueError("method and name belong to what was found; latents are named by --latents NAME=NUMBERS")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, or one flag for every field."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOUND", help="a folder that `concepts find` wrote")
    add_options(parser, Config)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A bank that can be written.

    Args:
        bank: everything in it, that which was there included.
        added: the concepts that are new.
        to: its folder.
    """

    bank: ConceptBank
    added: tuple[str, ...]
    to: Path


def prepare(options: argparse.Namespace) -> Prepared:
    """Read everything, and see that nothing of the user's is replaced.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    given = {name: value for name, value in vars(options).items() if name != "folder"}
    if options.folder is not None:
        given["found"] = options.folder
    config = configured(Config, given)
    there = bank_there(config.to)
    new = _from_found(config) if config.found else _from_latents(config)
    return Prepared(new if there is None else merged(there, new, config.to), new.names, config.to)


def run(prepared: Prepared, console: Console) -> int:
    """Write the bank."""
    prepared.bank.save(prepared.to)
    said = (
        f"{', '.join(prepared.added)} written to {prepared.to}, which has {', '.join(prepared.bank.names)}\n"
        f"interptrain recipe run sft --concepts {prepared.to} ... watches and steers them in training"
    )
    console.print(printable(said), markup=False, highlight=False, soft_wrap=True)
    return 0


def bank_there(folder: Path) -> ConceptBank | None:
    """The bank in a folder, or None where there is nothing yet.

    Raises:
        ValueError: the folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, expected a folder; name another (--to)")
    if not any(folder.iterdir()):
        return None
    if not (folder / "bank.json").is_file():
        raise ValueError(f"'{folder}' holds something that is no bank; name a bank, or a new folder (--to)")
    return ConceptBank.load(folder)


def merged(bank: ConceptBank, new: ConceptBank, folder: Path) -> ConceptBank:
    """Both banks' concepts in one.

    Where both read one hook with the same SAE, it is kept once, and a latent counts as alive if it does in either.

    Raises:
        ValueError: a concept is in both, or the banks belong to different models or SAEs.
    """
    if both := [name for name in new.names if name in bank.names]:
        raise ValueError(
            f"'{folder}' has {', '.join(both)} already, and nothing in it is replaced; choose another name, or another "
            "folder (--to)"
        )
    shared = {
        hook: replace(bank.readouts[hook], alive=bank.readouts[hook].alive | new.readouts[hook].alive)
        for hook in bank.readouts.keys() & new.readouts.keys()
        if _same(bank.readouts[hook], new.readouts[hook])
    }
    first, second = (replace(each, readouts={**each.readouts, **shared}) for each in (bank, new))
    try:
        return first.merge(second)
    except ValueError as error:
        raise ValueError(f"cannot add {', '.join(new.names)} to '{folder}': {error}") from error


def _same(one: Readout, other: Readout) -> bool:
    """Whether two read-outs are the same SAE."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def _from_found(config: Config) -> ConceptBank:
    assert config.found is not None
    document = read_found(config.found)
    there = [name for name, each in document["methods"].items() if (config.found / name / "bank.json").is_file()]
    method = config.method or document["recommended"]
    if method is None:
        raise ValueError(
            f"none of the methods in '{config.found}' does what its name says when it is added, so none is "
            f"recommended; name the one you want with --method: {', '.join(there)}"
        )
    if method not in there:
        raise ValueError(f"'{config.found}' has no method '{method}'; it has {', '.join(there) or 'none'}")
    bank = ConceptBank.load(config.found / method)
    return replace(bank, concepts=(config.name,) * len(bank.concepts)) if config.name else bank


def _from_latents(config: Config) -> ConceptBank:
    from interptrain.concepts.saelens import from_saelens, places_of

    assert config.sae is not None
    sae = load_sae(config.sae, config.sae_id)
    needed = places_of(sae).layer_of_heads is not None  # its rows are behind the heads' output map
    model = load_model(ModelChoice(config.model, tuning="full")) if config.model and needed else None
    bank = from_saelens(sae, config.latents, model=model)
    if config.model:
        width = load_config(ModelChoice(config.model)).get_text_config().hidden_size
        if width != bank.d_model:
            raise ValueError(
                f"the SAE's directions have width {bank.d_model} but '{config.model}' has a stream of {width}; was it "
                "trained on another model?"
            )
    return bank
