"""A small report.json by formula, for the tests of what is drawn from it."""

from __future__ import annotations

import math

from interptrain.recorders.document import REPORT_SCHEMA, Arm, Curves, Report

MEASURES = ("skill", "pirate_facts", "kept")


def small_report(*, hostile: str = "", steps: int = 30, seeds: int = 2) -> Report:
    """Two concepts, two arms; `hostile` is put into every text of the document."""
    return Report(
        schema=REPORT_SCHEMA, recipe=f"test{hostile}", title=f"Two arms{hostile}", summary=f"A summary.{hostile}",
        created="2026-01-01 00:00 UTC", seconds=12.0, config={"steps": steps, "note": hostile},
        versions={"interptrain": f"0{hostile}"},
        concepts=[
            {"name": name + hostile, "says": f"says{hostile}", "hook": f"blocks.2.hook_resid_post{hostile}",
             "directions": 2, "latents": [3, 14], "auc": 0.9, "shuffled_auc": None}
            for name in ("pirate", "royal")
        ],
        measures=[{"key": key, "label": key + hostile, "says": f"says{hostile}"} for key in MEASURES],
        headline=list(MEASURES[:2]), pairs=[{"concept": f"pirate{hostile}", "measure": "skill"}],
        before={"scores": _scores(0.0), "samples": [{"prompt": f"who ?{hostile}", "answer": f"me .{hostile}"}]},
        arms=[_arm(name + hostile, steps, seeds, hostile) for name in ("unsteered", "suppress-pirate")],
        verdicts=[
            {"question": f"question{hostile}", "status": status, "answer": f"answer{hostile}", "rule": f"rule{hostile}",
             "numbers": {"difference": 0.1}}
            for status in ("held", "did not hold", "undecided")
        ],
        limits=[f"a limit{hostile}"],
    )  # fmt: skip


def _arm(name: str, steps: int, seeds: int, hostile: str) -> Arm:
    return Arm(
        name=name, says=f"says{hostile}",
        runs=[
            {"seed": seed, "scores": _scores(0.5 + 0.1 * seed),
             "checkpoints": [{"step": step, "scores": _scores(step / steps)} for step in (0, steps // 2, steps)],
             "curves": _curves(steps, hostile), "samples": [{"prompt": f"who ?{hostile}", "answer": f"arr !{hostile}"}],
             "seconds": 1.0, "weights": f"runs/{hostile}", "wandb": f"wandb/{hostile}"}
            for seed in range(seeds)
        ],
    )  # fmt: skip


def _scores(value: float) -> dict[str, float]:
    return dict.fromkeys(MEASURES, value)


def _curves(steps: int, hostile: str) -> Curves:
    curves: Curves = {"step": [float(step) for step in range(steps)]}
    for name in (f"pirate{hostile}", f"royal{hostile}"):
        value = [0.2 + 0.2 * math.exp(-step / 10) for step in range(steps)]
        curves[f"concept/{name}/demand"] = [*value[:-1], None]
        curves[f"concept/{name}/demand/null"] = [0.1] * steps
        curves[f"concept/{name}/demand/z"] = [(each - 0.1) / 0.02 for each in value]
    return curves
