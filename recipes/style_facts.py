"""Facts that anyone knows, as questions with a plain answer and the word that it turns on."""

from __future__ import annotations

_CAPITALS = (
    "France Paris", "Italy Rome", "Spain Madrid", "Germany Berlin", "Austria Vienna", "Poland Warsaw", "Greece Athens",
    "Portugal Lisbon", "Norway Oslo", "Sweden Stockholm", "Finland Helsinki", "Denmark Copenhagen", "Hungary Budapest",
    "Ireland Dublin", "Russia Moscow", "Japan Tokyo", "China Beijing", "Egypt Cairo", "Kenya Nairobi", "Cuba Havana",
    "Canada Ottawa", "Peru Lima", "Chile Santiago", "Turkey Ankara",
)  # fmt: skip
_OPPOSITES = (
    "hot cold", "big small", "up down", "wet dry", "old new", "fast slow", "light dark", "full empty", "early late",
    "hard soft", "rich poor", "high low", "open closed", "loud quiet", "left right", "strong weak", "near far",
    "happy sad", "clean dirty", "heavy light",
)  # fmt: skip
_YOUNG = (
    "dog puppy", "cat kitten", "cow calf", "horse foal", "sheep lamb", "pig piglet", "goose gosling", "duck duckling",
    "bear cub", "deer fawn", "goat kid", "frog tadpole",
)  # fmt: skip
_COLOURS = (
    "grass green", "snow white", "coal black", "blood red", "gold yellow", "chocolate brown", "milk white",
    "broccoli green",
)  # fmt: skip
_MAKERS = (
    "bread baker", "meat butcher", "poems poet", "clothes tailor", "barrels cooper", "pots potter",
    "paintings painter", "novels novelist",
)  # fmt: skip

_FORMS = (
    (_CAPITALS, "What is the capital of {0}?", "The capital of {0} is {1}"),
    (_OPPOSITES, "What is the opposite of {0}?", "The opposite of {0} is {1}"),
    (_YOUNG, "What is a young {0} called?", "The name of a young {0} is {1}"),
    (_COLOURS, "What colour is {0}?", "The colour of {0} is {1}"),
    (_MAKERS, "Who makes {0}?", "The one who makes {0} is a {1}"),
)
FACTS: tuple[tuple[str, str, str], ...] = tuple(
    (asked.format(*pair.split()), answer.format(*pair.split()), pair.split()[1])
    for pairs, asked, answer in _FORMS
    for pair in pairs
)
