"""Where a run stands: the last figures of each concept, every share beside its null."""

from __future__ import annotations

from dataclasses import dataclass

from interptrain.recorders.document import Curves

PREFIX = "concept/"


@dataclass(frozen=True)
class Standing:
    """The last figures of a concept; None where one was never measured.

    Args:
        demand: the share of the loss gradient's energy in the concept.
        null: the same of as many other latents, a mean.
        spread: its standard deviation, `(demand - null) / z`.
        z: `(demand - null) / spread`.
        write: the share of what the optimizer changed.
        realised: how far the probe set `on` has moved, as a share of the way to the concept's own texts.
        on: the probe set, `neutral` where there is one.
        gain: what the rule asked for.
        achieved: what it got.
    """

    demand: float | None
    null: float | None
    spread: float | None
    z: float | None
    write: float | None
    realised: float | None
    on: str
    gain: float | None
    achieved: float | None


def concepts_of(curves: Curves) -> list[str]:
    """The concepts that curves tell of, in their order.

    Example:
        >>> concepts_of({"step": [0.0], "concept/pirate/demand": [0.5], "concept/pirate/gain": [1.0]})
        ['pirate']
    """
    for quantity in ("/gain", "/demand"):  # every report of a step has a gain
        found = [key for key in curves if key.startswith(PREFIX) and key.endswith(quantity)]
        if found:
            return [key.removeprefix(PREFIX).removesuffix(quantity) for key in found]
    return []


def standing(curves: Curves, concept: str) -> Standing:
    """The last figures of a concept.

    Args:
        curves: of one run.
        concept: its name.

    Example:
        >>> here = standing({"step": [0.0], "concept/pirate/demand": [0.5], "concept/pirate/demand/null": [0.2],
        ...                  "concept/pirate/demand/z": [3.0]}, "pirate")
        >>> here.demand, round(here.spread, 3), here.realised
        (0.5, 0.1, None)
    """
    start, on = f"{PREFIX}{concept}/", probe_set(curves, concept)

    def last(quantity: str) -> float | None:
        return _last(curves, f"{start}{quantity}")

    demand, null, z = (_at_last(curves, f"{start}demand", suffix) for suffix in ("", "/null", "/z"))
    spread = abs((demand - null) / z) if demand is not None and null is not None and z else None
    return Standing(
        demand=demand, null=null, spread=spread, z=z, write=last("write"),
        realised=last(f"realised/{on}/fraction") if on else None, on=on, gain=last("gain"), achieved=last("achieved"),
    )  # fmt: skip


def probe_set(curves: Curves, concept: str) -> str:
    """The probe set on which a concept's realised fraction was read: `neutral`, or else the first; empty for none."""
    start = f"{PREFIX}{concept}/realised/"
    found = [key.removeprefix(start).removesuffix("/fraction") for key in curves
             if key.startswith(start) and key.endswith("/fraction")]  # fmt: skip
    return "neutral" if "neutral" in found else next(iter(found), "")


def loss_of(curves: Curves) -> float | None:
    """The last loss, where a line has one: `loss`, or a name that ends in `/loss`."""
    names = [key for key in curves if key.rpartition("/")[2] == "loss" and not key.startswith(PREFIX)]
    return _last(curves, names[0]) if names else None


def _last(curves: Curves, key: str) -> float | None:
    return next((value for value in reversed(curves.get(key, ())) if value is not None), None)


def _at_last(curves: Curves, key: str, suffix: str) -> float | None:
    """What stands beside the last value of a metric, at the same step."""
    values = curves.get(key, [])
    place = next((at for at in range(len(values) - 1, -1, -1) if values[at] is not None), None)
    beside = curves.get(f"{key}{suffix}")
    return None if place is None or beside is None else beside[place]
