"""Experiments that read top to bottom: model, bank, sites, rule, train, score.

A recipe is a module with `SUMMARY` (one line), `NEEDS` (the extras it uses), a frozen dataclass `Config`
(its command-line options), `prepare(config)` (everything a user can get wrong, checked before training) and
`run(config)`.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "pirate-arithmetic": "interptrain.recipes.pirate_arithmetic",
}
