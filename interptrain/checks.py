"""What can be wrong before the first step, and what is worth a warning then."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch

from interptrain.readings import KNOWN_METERS
from interptrain.sites import Site
from interptrain.views import Views


def check_options(sites: Sequence[Site], *, where: str, cadences: Mapping[str, int], meters: Collection[str]) -> None:
    """Raise for options that have no meaning.

    Raises:
        ValueError: an unknown `where` or meter, a cadence below 1, no sites, or LoRA readers in gradient mode.
    """
    if where not in ("gradient", "update"):
        raise ValueError(f'where must be "gradient" or "update", found {where!r}')
    for name, value in cadences.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
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


@torch.no_grad()
def warn_of_leaks(sites: Sequence[Site], views: Views, names: Sequence[str]) -> None:
    """Say which LoRA writers start where steering `B`'s gradient alone misses part of the product's step."""
    leaking = []
    for site in sites:
        steered = views.frame(site, names, site.parameter.device) if site.partner is not None else None
        if steered is not None and bool((steered.frame.basis @ site.parameter.float()).abs().amax() > 0):
            leaking.append(site.name)
    if leaking:
        warnings.warn(
            f"{len(leaking)} LoRA writers start with B already inside the steered concepts ({leaking[0]}, ...): "
            "the step s (dB A + B dA) leaks through dA, and the achieved gain will differ from the requested one; "
            'where="update" edits both factors',
            stacklevel=4,
        )
