"""What a run is going to do, before it does it; and what it did, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.markup import escape
from rich.table import Table
from torch import nn

from interptrain.sites import LeftOut, Site, find_sites

if TYPE_CHECKING:
    from interptrain.steerer import Steerer


APPROXIMATE = (
    "approximate: a norm stands between these writers and the stream. Its gain is reckoned with, its data-dependent "
    "part is not, so gains hold along the direction in front of the norm, and nearly so in the stream"
)


@dataclass(frozen=True, eq=False)
class Plan(JupyterMixin):
    """A dry run: the sites, what they cost, and what was left out and why.

    Args:
        sites: what will be read and steered.
        directions: for each site, how many of the bank's directions it touches.
        left_out: trainable parameters that are no site, and the reason.
        extra_bytes: what is held on the device beside the model: directions, null groups and one copy of the sites.
        concepts: the bank's, by name.
    """

    sites: tuple[Site, ...]
    directions: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    extra_bytes: int
    concepts: tuple[str, ...]

    @classmethod
    def of(cls, steerer: Steerer, model: nn.Module, *, skip: Sequence[str] = ()) -> Plan:
        """The plan of a steerer on a model."""
        chosen = {id(site.parameter) for site in steerer.sites}
        found = find_sites(model, steerer.bank, skip=skip, where=steerer.where)
        passed_over = tuple(
            LeftOut(site.name, "not among the sites that were given")
            for site in found.sites
            if id(site.parameter) not in chosen
        )
        return cls(
            sites=steerer.sites,
            directions=tuple(len(site.rows(steerer.bank)) for site in steerer.sites),
            left_out=(*passed_over, *found.left_out),
            extra_bytes=steerer.held_bytes(),
            concepts=steerer.bank.names,
        )

    def __rich__(self) -> RenderableType:
        steered = sum(site.parameter.numel() for site in self.sites)
        table = Table(
            title=f"{len(self.sites)} sites, {steered:,} parameters; concepts: {escape(', '.join(self.concepts))}"
        )
        for column in ("site", "role", "axis", "directions", "elements"):
            table.add_column(column, justify="left" if column in ("site", "role") else "right")
        for site, count in zip(self.sites, self.directions, strict=True):
            role = f"{site.role}, approximate" if site.approximate else site.role
            table.add_row(escape(site.name), role, str(site.axis), str(count), f"{site.parameter.numel():,}")
        rest = Table(title=f"left out: {len(self.left_out)} trainable parameters")
        rest.add_column("parameter")
        rest.add_column("why")
        for left in self.left_out:
            rest.add_row(escape(left.name), escape(left.reason))
        if any(site.approximate for site in self.sites):
            table.caption = APPROXIMATE
        cost = f"memory beside the model: {self.extra_bytes / 2**20:.1f} MiB of directions, null groups and one copy"
        return Group(table, *((rest,) if self.left_out else ()), cost)


def summary_table(concepts: Sequence[str], metrics: Mapping[str, float]) -> Table:
    """The last figures of a run, a row a concept, every share beside its null."""
    table = Table(
        title="interptrain: what the last steps asked for",
        caption="energy share in the concept (null: as many other latents) and z against it; gain: asked for, "
        "achieved: got; no claim on behaviour",
    )
    table.add_column("concept")
    for column in ("demand", "z", "gradient", "z", "gain", "achieved"):
        table.add_column(column, justify="right")

    def cell(concept: str, key: str) -> str:
        value = metrics.get(f"concept/{concept}/{key}")
        return "-" if value is None else f"{value:.3f}"

    for concept in concepts:
        share = {key: f"{cell(concept, key)} ({cell(concept, f'{key}/null')})" for key in ("demand", "gradient")}
        table.add_row(
            escape(concept), share["demand"], cell(concept, "demand/z"), share["gradient"], cell(concept, "gradient/z"),
            cell(concept, "gain"), cell(concept, "achieved"),
        )  # fmt: skip
    return table
