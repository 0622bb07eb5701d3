"""Probe sets: fixed texts on which a concept's activations can be compared before and after."""

from __future__ import annotations

import random

from interptrain.tiny_world.corpus import Document, document


def probe_sets(count: int = 64, *, seed: int = 0) -> dict[str, list[Document]]:
    """Fixed documents by what they show: `neutral`, `pirate`, `royal` and `arithmetic`.

    Neutral ones are facts asked and answered plainly, pirate and royal ones facts asked and answered in that
    voice, arithmetic ones held-out `plus` and `minus` problems with the right result, in the plain voice.

    Example:
        >>> {name: len(documents) for name, documents in probe_sets(2).items()}
        {'neutral': 2, 'pirate': 2, 'royal': 2, 'arithmetic': 2}
    """
    rng = random.Random(f"probes {seed}")
    return {
        "neutral": [document(rng, "fact") for _ in range(count)],
        "pirate": [document(rng, "fact", "pirate", cued=True) for _ in range(count)],
        "royal": [document(rng, "fact", "royal", cued=True) for _ in range(count)],
        "arithmetic": [document(rng, rng.choice(("plus", "minus")), tested=True) for _ in range(count)],
    }
