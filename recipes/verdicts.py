"""Answers that follow from measured numbers by stated rules; no answer follows from what a rule was meant to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from interptrain.recorders.document import Arm, Relearning, Run, Verdict

MARGIN = 0.10  # a smaller difference of two rates is not called one
SLACK = 0.05  # what a rate may lose and still count as kept
READABLE_Z = 5.0
READABLE_STEPS = 20


def readable(arm: Arm, concept: str, beside: Sequence[str] = ()) -> Verdict:
    """Whether a concept's demand stands out from its null early in a run; other concepts' are said beside it.

        z = mean_t (share_t - null_t) / mean_t sd_t      (t: the first 20 steps)

    The mean of the spreads is at least the spread of the groups' means, so this is no larger than the z of the
    share averaged over those steps.
    """
    rule = f"over the first {READABLE_STEPS} steps it lies more than {READABLE_Z:g} sd above its null in every seed"
    question = f"Can {concept} be read in what the data ask for?"
    if not all(_covers(run["curves"]["step"]) for run in arm["runs"]):
        return _verdict(question, None, f"The run is shorter than {READABLE_STEPS} steps.", rule, {})
    early = {name: [_early_z(run, name) for run in arm["runs"]] for name in (concept, *beside)}
    others = ", ".join(f"{name} {_range(early[name])}" for name in beside)
    return _verdict(
        question,
        min(early[concept]) > READABLE_Z,
        f"In {arm['name']} its demand was {_range(early[concept])} sd above the null"
        + (f"; beside it {others}." if others else "."),
        rule,
        {"smallest_z": min(early[concept])},
    )


def suppressed(steered: Arm, unsteered: Arm, control: Arm | None, measure: str, label: str) -> Verdict:
    """Whether steering lowered a behaviour more than doing nothing and more than random directions did.

    Without a control an arm can be found not to have lowered it; that it did is left undecided.
    """
    others = [unsteered] if control is None else [unsteered, control]
    drops = [min(_differences(other, steered, measure)) for other in others]
    lower = min(drops) >= MARGIN
    present = min(_scores(unsteered, measure)) >= MARGIN
    than = " and than in ".join(other["name"] for other in others)
    return _verdict(
        f"Did {steered['name']} lower the {label}?",
        None if not present or (lower and control is None) else lower,
        f"{_means(measure, unsteered, steered, *others[1:])}."
        if present else f"The unsteered arm hardly shows it: {_means(measure, unsteered)}.",
        f"in every seed it is at least {MARGIN:.2f} lower than in {than}"
        + ("; that would not be enough without a control of its own" if control is None else ""),
        dict(zip(("smallest_drop", "smallest_drop_against_random"), drops, strict=False)),
    )  # fmt: skip


def kept(steered: Arm, unsteered: Arm, measure: str, label: str, beside: Sequence[Arm] = ()) -> Verdict:
    """Whether steering cost a behaviour that was wanted; other arms are said beside it."""
    lost = mean(_differences(unsteered, steered, measure))
    present = min(_scores(unsteered, measure)) >= MARGIN
    return _verdict(
        f"Did {steered['name']} keep the {label}?",
        lost <= SLACK if present else None,
        f"{_means(measure, unsteered, steered, *beside)}.",
        f"on average over the seeds it is at most {SLACK:.2f} lower than in {unsteered['name']}",
        {"mean_loss": lost},
    )


def left_alone(
    steered: Arm, before: Mapping[str, float], measure: str, label: str, beside: Sequence[Arm] = ()
) -> Verdict:
    """Whether a rate that was not to change is what it was before training; other arms are said beside it."""
    lost = mean(before[measure] - score for score in _scores(steered, measure))
    return _verdict(
        f"Did {steered['name']} leave the {label} as it was?",
        lost <= SLACK,
        f"{before[measure]:.2f} before training, {_means(measure, steered, *beside)}.",
        f"on average over the seeds the rate is at most {SLACK:.2f} lower than before training",
        {"mean_loss": lost},
    )


def learnt(arm: Arm, before: float, measure: str) -> Verdict:
    """Whether a loss on texts that were not trained on fell."""
    falls = [before - score for score in _scores(arm, measure)]
    return _verdict(
        f"Did {arm['name']} learn what it was taught?",
        min(falls) > 0,
        f"{before:.2f} nats a token on held-out examples before training, {_means(measure, arm)}.",
        "in every seed the held-out loss is below that before training",
        {"smallest_fall": min(falls)},
    )


def cost(steered: Arm, unsteered: Arm, measure: str, beside: Sequence[Arm] = ()) -> Verdict:
    """Whether steering left the loss on texts that were not trained on as it would have been."""
    rises = _differences(steered, unsteered, measure)
    return _verdict(
        f"Did {steered['name']} learn as well as {unsteered['name']}?",
        mean(rises) <= SLACK,
        f"{_means(measure, unsteered, steered, *beside)}.",
        f"on average over the seeds the held-out loss is at most {SLACK:.2f} nats a token higher",
        {"mean_rise": mean(rises)},
    )


def no_rerouting(steered: Arm, unsteered: Arm, measures: Mapping[str, str], sibling: str) -> Verdict:
    """Whether a sibling trait rose where the trait itself was steered; `measures` with a label each."""
    risen = [rise for measure in measures for rise in _differences(steered, unsteered, measure)]
    return _verdict(
        f"Did a sibling, the {sibling} voice, stay away under {steered['name']}?",
        max(risen) <= SLACK,
        "; ".join(f"{label}: {_means(measure, unsteered, steered)}" for measure, label in measures.items()) + ".",
        f"in every seed its rates are at most {SLACK:.2f} higher than in {unsteered['name']}",
        {"largest_rise": max(risen)},
    )


def forgotten(arm: Arm, before: Mapping[str, float], measure: str, label: str) -> Verdict:
    """Whether a rate that was there before training is all but gone."""
    rates = _scores(arm, measure)
    return _verdict(
        f"Did {label} go in {arm['name']}?",
        max(rates) <= SLACK if before[measure] >= MARGIN else None,
        f"{before[measure]:.2f} before training, {_means(measure, arm)}.",
        f"in every seed the rate is at most {SLACK:.2f}",
        {"largest_rate": max(rates)},
    )


def removed(arm: Relearning, never: Relearning, before: Mapping[str, float], measure: str) -> Verdict:
    """Whether a topic comes back no faster than a model learns it that was never taught it.

        mean over looks of (rate - rate of the never taught)        seed by seed

    Of single looks the largest difference is mostly chance: two seeds of the never taught differ by more than that.
    """
    rates, untaught = (
        [mean(look["scores"][measure] for look in run["checkpoints"]) for run in each["runs"]] for each in (arm, never)
    )
    above = [own - other for own, other in zip(rates, untaught, strict=True)]
    last = [mean(run["checkpoints"][-1]["scores"][measure] for run in each["runs"]) for each in (arm, never)]
    return _verdict(
        f"Does the topic come back no faster in {arm['name']} than it is learnt in {never['name']}?",
        max(above) <= MARGIN if before[measure] >= MARGIN else None,
        f"Trained on a few of its examples the rate ends at {last[0]:.2f}, in {never['name']} at {last[1]:.2f}; over "
        f"all looks it is at most {max(above):.2f} above that in any seed.",
        f"in every seed its mean rate over all looks is at most {MARGIN:.2f} above that of {never['name']}",
        {"largest_difference": max(above)},
    )


def returned_later(
    name: str, steps: Sequence[int | None], others: Mapping[str, Sequence[int | None]], limit: int
) -> Verdict:
    """Whether a topic takes longer to come back than in other arms; `None`: it did not within the limit."""
    pairs = [(own, other) for each in others.values() for own, other in zip(steps, each, strict=True)]
    sooner = [own is not None and (other is None or own <= other) for own, other in pairs]
    open_ = [own is None and other is None for own, other in pairs]
    return _verdict(
        f"Does the topic take longer to come back in {name} than in {' and '.join(others)}?",
        False if any(sooner) else None if any(open_) else True,
        "; ".join(f"{each}: {_steps(found, limit)}" for each, found in {name: steps, **others}.items()) + " steps.",
        f"in every seed the rate is back at a half after more steps; left open where neither is within {limit}",
        {"seeds_sooner_or_equal": float(sum(sooner))},
    )


def _steps(steps: Sequence[int | None], limit: int) -> str:
    return ", ".join(f"more than {limit}" if step is None else str(step) for step in steps)


def _verdict(question: str, held: bool | None, answer: str, rule: str, numbers: dict[str, float]) -> Verdict:
    status = {True: "held", False: "did not hold", None: "undecided"}[held]
    return Verdict(question=question, status=status, answer=answer, rule=rule, numbers=numbers)  # type: ignore[typeddict-item]


def _differences(higher: Arm, lower: Arm, measure: str) -> list[float]:
    return [h["scores"][measure] - low["scores"][measure] for h, low in zip(higher["runs"], lower["runs"], strict=True)]


def _scores(arm: Arm, measure: str) -> list[float]:
    return [run["scores"][measure] for run in arm["runs"]]


def _means(measure: str, *arms: Arm) -> str:
    return ", ".join(f"{mean(_scores(arm, measure)):.2f} in {arm['name']}" for arm in arms)


def _covers(steps: Sequence[float | None]) -> bool:
    """Whether measures, every step or every few, go on for the first steps of the rule."""
    known = [step for step in steps if step is not None]
    return len(known) > 1 and 2 * known[-1] - known[-2] >= READABLE_STEPS


def _early_z(run: Run, concept: str) -> float:
    key = f"concept/{concept}/demand"
    early = sum(step < READABLE_STEPS for step in run["curves"]["step"] if step is not None)
    share, null, z = (run["curves"][name][:early] for name in (key, f"{key}/null", f"{key}/z"))
    above = [s - n for s, n in zip(share, null, strict=True) if s is not None and n is not None]
    spread = [a / each for a, each in zip(above, z, strict=True) if each is not None]
    return mean(above) / mean(spread)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
