"""`taught.html`: the table of what a run taught besides its task; one file, no script, no request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from interptrain.recipes.taught import Taught
from interptrain.recorders.document import Report

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ report.title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #8886; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
.named { font-weight: 650; }
dt { color: #888; font-size: .85rem; } dd { margin: 0 0 .5rem; white-space: pre-wrap; }
</style></head><body>
<h1>{{ report.title }}</h1>
<p>{{ report.summary }}</p>
{% for hook in hooks %}
<h2>{{ hook.name }}</h2>
<p>{{ hook.verdict.answer }}</p>
<table><thead><tr><th>latent</th><th>about</th><th>demand z</th><th>shift z</th><th>explained</th><th>random</th>
<th>picked</th></tr></thead><tbody>
{% for row in hook.rows %}
<tr{% if row.named %} class="named"{% endif %}><td>{{ row.latent }}</td><td>{{ row.label }}</td>
<td>{{ "%.2f" | format(row.demand_z) }}</td><td>{{ "%.2f" | format(row.shift_z) }}</td>
<td>{{ "%.2f" | format(row.explained) }}</td><td>{{ "%.2f" | format(row.explained_null) }}</td>
<td>{{ "%.2f" | format(row.picked) }}</td></tr>
{% endfor %}
</tbody></table>
<p>The model moved {{ "%.2f" | format(hook.moved) }} of the spread that the texts had, {{ "%.2f" | format(hook.task) }}
of it along the task; these latents leave {{ "%.2f" | format(hook.left) }} of the rest unexplained, as many random ones
{{ "%.2f" | format(hook.left_null) }}.</p>
{% endfor %}
<p>Bold: named. Demand z: what the training texts asked of the model before training, outside the task, against the
other latents. Shift z: how far it moved along the latent on its own earlier answers to other questions. Explained: the
share of that shift outside the task in the span of this and the latents above it; random: of as many others. Picked: in
what share of the run's readings of the whole dictionary the latent was among those asked for most.</p>
<h2>In its own words</h2>
{% for prompt, first, then in samples %}
<h3>{{ prompt }}</h3><dl><dt>before</dt><dd>{{ first }}</dd><dt>after</dt><dd>{{ then }}</dd></dl>
{% endfor %}
<h2>Limits</h2><ul>{% for limit in report.limits %}<li>{{ limit }}</li>{% endfor %}</ul>
</body></html>
"""


def write_page(report: Report, found: Sequence[Taught], rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page; every text is escaped.

    Args:
        report: of the run; its last verdicts are those of the hooks.
        found: by hook.
        rows: of all hooks.
        path: the file.
    """
    hooks = []
    for each, verdict in zip(found, report["verdicts"][-len(found) :], strict=True):
        own = [row for row in rows if row["hook"] == each.hook]
        explained, null = each.explained(len(own))
        hooks.append({
            "name": each.hook, "verdict": verdict, "rows": own, "moved": each.moved, "task": each.task_share,
            "left": 1 - explained, "left_null": 1 - float(null.mean()),
        })  # fmt: skip
    then = report["arms"][0]["runs"][0]["samples"]
    samples = [(a["prompt"], a["answer"], b["answer"]) for a, b in zip(report["before"]["samples"], then, strict=True)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path.write_text(environment.from_string(_PAGE).render(report=report, hooks=hooks, samples=samples), "utf-8")
    return path
