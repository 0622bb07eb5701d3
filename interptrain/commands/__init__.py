"""What the command line does with models, texts and runs: one file a command, each shaped like a recipe.

A command is a module with `NEEDS` (the extras it uses), `arguments(parser)` (its options), `prepare(options)`
(everything a user can get wrong, checked before anything is computed or written, and what was loaded on the way; a
mistake is a ValueError) and `run(prepared, console)`, which returns an exit status. Models, texts and settings are
read as recipes read them: `recipes.settings`, `.loading`, `.examples`, `.voice` and `.banks`.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is, and what its line in `interptrain --help` says."""

    module: str
    summary: str


GROUPS = {"concepts": "find concepts, look at them and keep them"}

# By the words that call it; imported only when it is called.
COMMANDS: dict[tuple[str, ...], Command] = {
    ("concepts", "find"): Command(
        "interptrain.commands.concepts_find", "find a concept's directions in two sets of texts, by several methods"
    ),
    ("concepts", "show"): Command(
        "interptrain.commands.concepts_show", "what concepts and latents are active on, promote, and lie near"
    ),
    ("concepts", "save"): Command(
        "interptrain.commands.concepts_save", "keep what was found, or latents of an SAE, as concepts of a bank"
    ),
    ("concepts", "probes"): Command(
        "interptrain.commands.concepts_probes", "fit probes that tell two sets of texts apart, and compare them"
    ),
    ("concepts", "explain"): Command(
        "interptrain.commands.concepts_explain", "ask a model what its own directions mean, against random ones"
    ),
    ("attribute",): Command(
        "interptrain.commands.attribute", "rank the examples of a data set by what they teach; drop or reweight them"
    ),
    ("similar",): Command(
        "interptrain.commands.similar", "rank a corpus by how much it would teach what a few examples teach"
    ),
    ("watch",): Command("interptrain.commands.watch", "follow a run's concept curves in the terminal and as a page"),
    ("compare",): Command("interptrain.commands.compare", "two runs side by side: settings, scores, curves, alarms"),
    ("wandb-dashboard",): Command("interptrain.commands.wandb_dashboard", "a W&B workspace with a section a concept"),
}
