"""Experiments that read top to bottom: model, bank, sites, rule, train, score.

A recipe is a module with `SUMMARY` (one line), `NEEDS` (the extras it uses), a frozen dataclass `Config`
(its settings), `prepare(config)` (everything a user can get wrong, checked before training, and what was loaded on
the way) and `run(prepared, console)`.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "sft": "interptrain.recipes.sft",
    "unlearn": "interptrain.recipes.unlearn",
    "style-vs-skill": "interptrain.recipes.style_vs_skill",
    "narrow-finetune-monitor": "interptrain.recipes.narrow_finetune_monitor",
    "pirate-arithmetic": "interptrain.recipes.pirate_arithmetic",
}
