"""Does this bank belong to this model?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from interptrain.concepts.bank import ConceptBank
from interptrain.sites.site import Site
from interptrain.sites.stack import Stack

ALIASES = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.1"}  # TransformerLens's names in releases of SAEs
VANISHING = 1e-6  # length, behind a norm, of a direction that started at 1


def check_model(bank: ConceptBank, stack: Stack) -> None:
    """Compare the model a bank names with the one at hand, where both are known and not a local folder.

    Raises:
        ValueError: they differ.
    """
    found = _name_or_path(stack)
    if bank.model is None or found is None or _is_local(bank.model) or _is_local(found):
        return
    if _normalise(bank.model) != _normalise(found):
        raise ValueError(
            f"the bank's directions belong to model '{bank.model}' but this one is '{found}'; if both share "
            "their residual stream, say so with dataclasses.replace(bank, model=None), or with other_model: true in a "
            "recipe"
        )


def check_site(site: Site, bank: ConceptBank) -> None:
    """Compare widths, and see that no direction of the bank vanishes in a norm between a site and the stream.

    Raises:
        ValueError: widths differ, or a norm lets nothing of a direction through.
    """
    width = site.parameter.shape[site.axis]
    if width != bank.d_model:
        raise ValueError(
            f"bank directions have width {bank.d_model} but '{site.name}' has {width} on axis {site.axis}; "
            "was the SAE trained on another model?"
        )
    rows = site.rows(bank)
    for side in site.sides:
        if side.norm is not None:
            directions = bank.directions[list(rows)].to(site.parameter.device)
            _refuse_vanishing(side, bank, dict(zip(rows, side.seen(directions).norm(dim=-1).tolist(), strict=True)))


def _refuse_vanishing(site: Site, bank: ConceptBank, lengths: Mapping[int, float]) -> None:
    for row, length in lengths.items():
        if length < VANISHING:
            raise ValueError(
                f"a direction of concept '{bank.concepts[row]}' (row {row}) vanishes in the norm "
                f"{'behind' if site.role == 'writer' else 'in front of'} '{site.name}', which cannot be steered on it; "
                f"leave it out: skip=['{site.name}']"
            )


def _name_or_path(stack: Stack) -> str | None:
    """The name in the configuration nearest to the blocks."""
    for holder in stack.around.values():
        name = getattr(vars(holder).get("config"), "name_or_path", None)
        if isinstance(name, str) and name:
            return name
    return None


def _is_local(name: str) -> bool:
    return name.startswith((".", "~", "/")) or Path(name).exists()


def _normalise(name: str) -> str:
    base = name.rstrip("/").rpartition("/")[2].lower()
    return ALIASES.get(base, base)
