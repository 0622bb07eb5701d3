"""What the steps taught that nobody asked about: the dictionary's latents as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.jupyter import JupyterMixin
from rich.markup import escape
from rich.table import Table

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.dictionary import Discovery


@dataclass(frozen=True, eq=False)
class DiscoveryTable(JupyterMixin):
    """A reading of the whole dictionary with what is known of its latents.

    Args:
        found: the latents that were taught most.
        bank: the concepts; a latent of none of them was not asked about.
        hook: where it was read.
        step: optimizer steps done before the last of the window.
        labels: what each latent is about, where somebody has said.
    """

    found: Discovery
    bank: ConceptBank
    hook: str
    step: int
    labels: Mapping[int, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return Discovery.columns

    def rows(self) -> list[dict[str, Any]]:
        """One row a latent, as JSON takes it; one transfer from the device."""
        return self.found.rows(self.bank, self.hook, self.labels)

    def __rich__(self) -> Table:
        table = Table(
            title=f"taught most at {self.hook}, step {self.step}",
            caption="signed demand of each latent, z against random signs of the tokens; no concept: not asked about",
        )
        for column in ("latent", "concept", "label", "coefficient", "z", "explained"):
            table.add_column(column, justify="left" if column in ("concept", "label") else "right")
        for row in self.rows():
            figures = ("-" if row[key] is None else f"{row[key]:.3g}" for key in ("coefficient", "z", "explained"))
            table.add_row(str(row["latent"]), escape(row["concept"]), escape(row["label"]), *figures)
        return table
