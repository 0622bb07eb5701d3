"""What is done to a concept: rules in concept space."""

from interptrain.steering.rules import (
    Rule,
    amplify,
    chain,
    keep_only,
    observe,
    one_sided,
    scheduled,
    suppress,
)

__all__ = ["Rule", "amplify", "chain", "keep_only", "observe", "one_sided", "scheduled", "suppress"]
