"""What can be wrong before the first step, and what is worth a warning then."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from interptrain.readings import KNOWN_METERS
from interptrain.sites import Site
from interptrain.sites.sharding import whole
from interptrain.views import Views
from interptrain.warn import warn


def check_options(
    sites: Sequence[Site],
    *,
    where: str,
    cadences: Mapping[str, int],
    meters: Collection[str],
    bounds: Mapping[str, float | None],
) -> None:
    """Raise for options that have no meaning.

    Raises:
        ValueError: an unknown `where` or meter, a cadence below 1, a bound that is not above 0, no sites, or LoRA
            readers in gradient mode.
    """
    if where not in ("gradient", "update"):
        raise ValueError(f'where must be "gradient" or "update", found {where!r}')
    for name, value in cadences.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    for name, bound in bounds.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be above 0, or None for no bound; found {bound}")
    if isinstance(meters, str) or not set(meters) <= set(KNOWN_METERS):
        raise ValueError(f"meters must be among {', '.join(KNOWN_METERS)}, found {meters!r}")
    if not sites:
        raise ValueError("no sites to read or steer; find_sites(model, bank) lists them and says what it left out")
    readers = [site.name for site in sites if site.lora and site.role == "reader"]
    if readers and where == "gradient":
        raise ValueError(
            f"LoRA readers cannot be steered through the gradient: with B = 0 the step is s dB A, and editing A's "
            f'gradient changes nothing of it. Take where="update", or leave out {", ".join(readers)}'
        )


def check_examples(kept: int, meters: Collection[str]) -> None:
    """Raise where examples cannot be kept.

    Raises:
        ValueError: a number below 0, or no meter that sees what they ask for.
    """
    if kept < 0:
        raise ValueError(f"keep_examples is a number of measured steps, 0 or more; found {kept}")
    if kept and "demand" not in meters:
        found = ", ".join(sorted(meters)) or "none"
        raise ValueError(f"keep_examples keeps what the meter 'demand' sees, which is not among the meters: {found}")


@torch.no_grad()
def warn_of_leaks(sites: Sequence[Site], views: Views, names: Sequence[str]) -> None:
    """Say which LoRA writers start where steering `B`'s gradient alone misses part of the product's step."""
    leaking = []
    for site in sites:
        steered = views.frame(site, names, site.parameter.device) if site.partner is not None else None
        if steered is not None and bool((steered.frame.basis @ whole(site.parameter).float()).abs().amax() > 0):
            leaking.append(site.name)
    if leaking:
        warn(
            f"{len(leaking)} LoRA writers start with B already inside the steered concepts ({leaking[0]}, ...): "
            "the step s (dB A + B dA) leaks through dA, and the achieved gain will differ from the requested one; "
            'where="update" edits both factors',
        )


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise where a saved steering state is of another run than this one.

    Args:
        state: what was saved.
        own: what this run would save: `concepts`, `directions`, `where`, `sites` and `seed`.

    Raises:
        ValueError: they differ, or what was saved is no steering state; says in what.

    Example:
        >>> check_state({"concepts": ["pirate"]}, {"concepts": ["royal"]})
        Traceback (most recent call last):
        ...
        ValueError: the saved steering state is of concepts pirate; this run has royal
    """
    if not isinstance(state, Mapping) or "concepts" not in state:
        found = f"one with {', '.join(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"expected a steering state, as state_dict() or interptrain.checkpoint.load_state gives it; found {found}"
        )
    if state["concepts"] != own["concepts"]:
        raise ValueError(
            f"the saved steering state is of concepts {', '.join(state['concepts'])}; "
            f"this run has {', '.join(own['concepts'])}"
        )
    if state.get("directions") != own.get("directions"):
        raise ValueError(
            "the saved steering state is of a bank with the same concepts but other directions; resume with the bank "
            "that the run began with (bank.save, ConceptBank.load)"
        )
    for key in ("where", "seed"):
        if state.get(key) != own.get(key):
            raise ValueError(f"the saved steering state has {key}={state.get(key)!r}; this run has {own.get(key)!r}")
    if state.get("sites") != own.get("sites"):
        gone, new = (
            sorted(set(a) - set(b)) for a, b in ((state["sites"], own["sites"]), (own["sites"], state["sites"]))
        )
        differ = "; ".join(
            f"{len(names)} sites {what} ({names[0]}, ...)" for what, names in (("gone", gone), ("new", new)) if names
        )
        raise ValueError(f"the saved steering state is of other sites: {differ or 'their order differs'}")


def warn_of_unowned(sites: Sequence[Site], owned: Collection[Site]) -> None:
    """Say which sites no attached optimizer trains: they are neither read nor steered."""
    alone = [site.name for site in sites if site not in owned]
    if alone:
        warn(
            f"{len(alone)} sites belong to no attached optimizer ({alone[0]}, ...): they are neither read nor steered; "
            "give every optimizer that trains the model",
        )
