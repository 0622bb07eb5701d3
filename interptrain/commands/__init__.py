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
    ("attribute",): Command(
        "interptrain.commands.attribute", "rank the examples of a data set by what they teach; drop or reweight them"
    ),
}
