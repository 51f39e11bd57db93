"""The report of a run: metrics.json, a table and figures of what fine-tuning changed, on images kept apart for it.

Scores come from raw logits and known labels only. The split reported is test; without one it is validation, and every
title then says so. Intervals are paired bootstraps over images, or over patients where the images have groups.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cftjax.report import contents, mistakes, page, pictures, printing, tables
from cftjax.report.contents import AFTER, Results
from cftjax.runtime import storage
from cftjax.scores import predictions, reliability
from cftjax.scores.logits import logits
from cftjax.scores.measure import Measured
from cftjax.types import JUDGED_SPLITS


def write(folder: Path, results: Results, console: Console | None = None) -> dict[str, Any]:
    """Measure a run, print its table, and write index.html, metrics.json, table.txt, table.csv and the figures.

    Args:
        folder: where to; made if need be.
        results: what the run has come to.
        console: where the table is printed; None is the terminal.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: where stages, categories or images do not agree in number.
    """
    contents.check(results)
    folder.mkdir(parents=True, exist_ok=True)
    by_split = {split: contents.measured(results, split) for split in results.judged}
    content = contents.of_results(results, by_split)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    storage.write_bytes(folder / "metrics.json", text.encode())
    storage.write_bytes(folder / "table.csv", tables.to_csv(content).encode())
    text = printing.printed(lambda width: [tables.table(content, width=width)], tables.notes(content), console)
    storage.write_bytes(folder / "table.txt", text.encode())
    measured = by_split[results.reported]
    shown = _write_pictures(folder, results, measured)
    text = page.render(
        content,
        title=results.title,
        figures=shown,
        mistakes=worst_mistakes(results, measured),
        settings=results.settings,
        versions=results.versions,
        calibrated=results.decisions is not None,
    )
    storage.write_bytes(folder / "index.html", text.encode())
    return content


def _write_pictures(folder: Path, results: Results, measured: Measured) -> list[page.Figure]:
    """Draw and write all pictures, and return them as the page embeds them."""
    drawn = pictures.drawn(results, measured)
    for split in JUDGED_SPLITS:  # of an older report
        (folder / f"{split}_images.png").unlink(missing_ok=True)
    shown = []
    for name, figure in drawn.items():
        png = pictures.content_of(figure, "png")
        storage.write_bytes(folder / f"{name}.png", png)
        shown.append(pictures.embedded(name, figure, png))
    return shown


def worst_mistakes(results: Results, measured: Measured) -> list[mistakes.Mistakes] | None:
    """The worst mistakes of the categories furthest from perfect; None where the images are not at hand."""
    if results.records is None:
        return None
    embeddings = results.embeddings[results.reported]
    some = mistakes.categories_shown(measured.scores[AFTER].each["AP"])
    out_of_fold = results.out_of_fold.get("final") if results.reported == "validation" else None
    raw = logits({"final": results.heads["final"]}, embeddings, some)["final"]
    raw = raw if out_of_fold is None else out_of_fold[:, some]
    labels, known = (np.asarray(x[:, some], bool) for x in (embeddings.labels, embeddings.known))
    probs = reliability.probabilities(raw)
    if results.decisions is not None:
        # Calibrated a category at a time, for the worst ones do not stand side by side.
        each = [predictions.columns(results.decisions, slice(c, c + 1)) for c in some]
        probs = np.concatenate([own.probabilities(raw[:, i : i + 1]) for i, own in enumerate(each)] or [probs], axis=1)
    return mistakes.find(some, raw, probs, labels, known, results.records, results.heatmaps)
