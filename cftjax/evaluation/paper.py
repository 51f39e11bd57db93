"""The table that papers print, as Markdown: a row per model, a column per category, and their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cftjax.evaluation.tables import with_interval
from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.text import for_markdown

# Categories beyond which nobody prints such a table.
MOST = 30


def markdown(out: Mapping[str, Any]) -> str:
    """Scores in %, the mean with its interval, and how many readers lie below the curves where there are any.

    Args:
        out: the contents of metrics.json; of more than thirty categories the mean alone is printed.
    """
    metric, categories = out["metric"], out["categories"]
    shown = range(len(categories)) if len(categories) <= MOST else range(0)
    below = out["readers"]["below"] if out["readers"] else None
    header = [f"{metric} in %", *(for_markdown(categories[c]) for c in shown), f"{MEAN[metric]} [95 % interval]"]
    rows = [header + (["readers below"] if below else []), ["---", *["---:"] * (len(header) - (not below))]]
    for model in out["models"]:
        each = [printing.percent(model["each"][metric][c]) for c in shown]
        row = [for_markdown(model["name"]), *each, with_interval(model["intervals"][MEAN[metric]])]
        if below:
            mean = below[model["name"]]["mean"]
            row.append(printing.UNDEFINED if mean is None else f"{mean:.1f} of {len(out['readers']['each'])}")
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
