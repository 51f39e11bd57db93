"""The pictures of an evaluation: scores with their intervals, curves with the people beside them, and reliability."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cftjax import figures
from cftjax.config import Metric
from cftjax.evaluation.readers import Compared
from cftjax.figures import evaluation as drawing
from cftjax.metrics import MEAN
from cftjax.runtime import storage
from cftjax.scores.measure import Measured
from cftjax.scores.predictions import Predictions, Truth


def draw(
    folder: Path,
    truth: Truth,
    models: Sequence[Predictions],
    measured: Measured,
    out: Mapping[str, Any],
    metric: Metric,
    compared: Compared | None = None,
) -> None:
    """The pictures; of more models than they have room for, those named first and the last."""
    names = [model.name for model in models]
    places = [*range(len(names) - 1)[: drawing.MOST_OTHERS], len(names) - 1]
    split, categories = truth.source, truth.categories
    values, means = {}, {}
    for place in places:
        found = out["models"][place]["intervals"][metric]
        values[names[place]] = np.array([found[key] for key in ("value", "low", "high")], np.float64)
        means[names[place]] = measured.scores[place].overall[MEAN[metric]]
    curves: dict[str, dict[str, np.ndarray]] = {}
    for c in sorted({c for place in places for c in measured.scores[place].curves}):
        for place in places:
            if (one := measured.scores[place].curves.get(c)) is not None:
                line = np.stack([one.recall, one.precision, one.false_positive_rate])
                curves.setdefault(categories[c], {})[names[place]] = line
    bins = {names[place]: measured.scores[place].bins for place in places if models[place].calibrated}
    drawn = {
        "scores": figures.score_intervals(categories, values, means, metric=metric, split=split),
        "curves": figures.precision_recall_and_roc(
            curves,
            [names[place] for place in places],
            split=split,
            num_categories=len(categories),
            points=points_of(compared, categories),
        ),
        "reliability": figures.reliability(bins, split=split),
    }
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        storage.write_bytes(folder / f"{name}.png", buffer.getvalue())


def points_of(compared: Compared | None, categories: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Category -> reader -> recall, precision and false positive rate, of those that have them."""
    found: dict[str, dict[str, np.ndarray]] = {category: {} for category in categories}
    for reader, point in zip(compared.readers, compared.points, strict=True) if compared else ():
        each = np.stack([point.sensitivity, point.precision, point.false_positive_rate])
        for c, category in enumerate(categories):
            if not np.isnan(each[[0, 2], c]).any():
                found[category][reader.name] = each[:, c]
    return found
