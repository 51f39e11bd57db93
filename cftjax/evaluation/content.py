"""An evaluation: models and their ensemble measured on the same images, compared, and written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from cftjax import decisions
from cftjax.config import Metric
from cftjax.evaluation import ensemble, files, paper, pictures, readers, readers_table, tables
from cftjax.evaluation import models as members
from cftjax.evaluation.ensemble import Weights
from cftjax.evaluation.readers import Reader
from cftjax.figures import evaluation as drawing
from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.report.printing import defined
from cftjax.runtime import storage
from cftjax.scores import measure
from cftjax.scores.measure import Asked, Measured
from cftjax.scores.predictions import Predictions, Truth
from cftjax.text import few

Combining = Literal["mean", "rank", "weighted", "greedy", "none"]


@dataclasses.dataclass(frozen=True)
class Models:
    """What is measured, and what was fitted for it.

    Attributes:
        truth: the labels.
        each: the models, and last their ensemble where there is one.
        combine: how the ensemble was made; "none" where there is none.
        weights: of its members; None without one.
        fitted: what validation said of weights and ensemble; None where nothing was asked of it.
        notes: what one must know of thresholds and of categories that are not given.
        readers: people who decided on the same rows.
    """

    truth: Truth
    each: list[Predictions]
    combine: Combining
    weights: Weights | None = None
    fitted: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    readers: tuple[Reader, ...] = ()


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where thresholds come from: the first of these that there is, at last 0.5.

    Attributes:
        everywhere: one for all.
        file: of some by category.
        rule: that others are fitted by on validation, where a model brings none: see `DecideConfig.rule`.
        target: the precision or sensitivity that the rule asks for.
        refit: fit even those of models that bring some, which were for images and not for studies.
        others: categories that the file may name besides, since they are not scored but there.
    """

    everywhere: float | None = None
    file: Path | None = None
    rule: str = "f1"
    target: float | None = None
    refit: bool = False
    others: tuple[str, ...] = ()


Validation = tuple[Truth, Sequence[Predictions]]


def with_thresholds(
    models: Sequence[Predictions], thresholds: Thresholds, categories: Sequence[str], validation: Validation | None
) -> tuple[list[Predictions], str]:
    """Models with a threshold for every category, and a sentence that says where they come from.

    Models that only rank have none.

    Args:
        models: the predictions.
        thresholds: where from.
        categories: names, length c.
        validation: labels and predictions of the same models for other images.
    """
    if thresholds.everywhere is not None:
        each = np.full(len(categories), thresholds.everywhere)
        found = [model if model.only_ranks else dataclasses.replace(model, thresholds=each) for model in models]
        return found, f"Thresholds: {thresholds.everywhere:g} everywhere."
    found, sources = [], dict[str, None]()
    for place, model in enumerate(models):
        own = model.thresholds
        if model.only_ranks:
            sources[f"none for {model.name}, which gives scores"] = None
            found.append(model)
            continue
        if validation is not None and (thresholds.refit or np.isnan(own).all()):
            truth, there = validation
            own = members.fit_thresholds(there[place], truth, thresholds.rule, thresholds.target)
            sources[f"fitted on {truth.source} by the rule {thresholds.rule}"] = None
        else:
            sources[f"{decisions.UNFITTED:g}" if np.isnan(own).all() else "each run's own"] = None
        found.append(dataclasses.replace(model, thresholds=np.where(np.isnan(own), decisions.UNFITTED, own)))
    said = " and ".join(sources)
    if thresholds.file is not None:
        given = files.read_thresholds(thresholds.file, categories, thresholds.others)
        found = [
            m if m.only_ranks else dataclasses.replace(m, thresholds=np.where(np.isnan(given), m.thresholds, given))
            for m in found
        ]
        said = f"those of {thresholds.file.name}" + (f", and where it has none {said}" if np.isnan(given).any() else "")
    return found, f"Thresholds: {said}."


def with_ensemble(
    truth: Truth,
    models: Sequence[Predictions],
    combine: Combining,
    *,
    metric: Metric,
    thresholds: Thresholds = Thresholds(),
    validation: Validation | None = None,
) -> Models:
    """Models with thresholds, and last their ensemble, whose weights and thresholds are fitted on validation.

    Without validation the ensemble's threshold is the weighted mean of its members'; ranks then have none.

    Args:
        truth: the labels that are reported on.
        models: predictions for them.
        combine: how the ensemble is made.
        metric: of greedy selection.
        thresholds: where they come from.
        validation: labels and predictions of the same models for other images.
    """
    if combine not in ("none", "rank") and len(models) > 1:
        _refuse_scores([*models, *(validation[1] if validation else ())], combine)
    models, said = with_thresholds(models, thresholds, truth.categories, validation)
    told = tuple(model.note for model in models if model.note)
    if combine == "none" or len(models) < 2:
        return Models(truth, models, "none", notes=(said, *told))
    of_ranks, fitted = combine == "rank", None
    weights = Weights(ensemble.equal(np.stack([model.given for model in models])), {})
    if combine == "weighted" or combine == "greedy":
        if validation is None:
            raise ValueError(f"--combine {combine} fits weights on validation, and there is none")
        weights = ensemble.fit(validation[1], validation[0], combine, metric)
        there = ensemble.combined(validation[1], weights.values, of_ranks=False)
        fitted = on_validation(validation, there, weights, metric)
    whole = ensemble.combined(models, weights.values, of_ranks=of_ranks)
    mean = (np.stack([model.thresholds for model in models]) * weights.values).sum(0)
    found = np.full(len(mean), np.nan) if of_ranks else mean
    if validation is not None and thresholds.everywhere is None and thresholds.file is None:
        there = ensemble.combined(validation[1], weights.values, of_ranks=of_ranks)
        own = members.fit_thresholds(there, validation[0], thresholds.rule, thresholds.target)
        found = np.where(np.isnan(own), found, own)
        said += f" The ensemble's: fitted on {validation[0].source} by the rule {thresholds.rule}."
    elif not of_ranks:
        said += " The ensemble's: the mean of its members'."
    whole = dataclasses.replace(whole, thresholds=np.where(whole.given, found, np.nan))
    return Models(truth, [*models, whole], combine, weights, fitted, (said, *told))


def _refuse_scores(models: Sequence[Predictions], combine: Combining) -> None:
    """Refuse an ensemble of probabilities where a model gives none."""
    if names := [model.name for model in models if model.only_ranks]:
        who = f"{few(names)} {'gives' if len(names) == 1 else 'give'} scores"
        raise ValueError(f"--combine {combine} needs probabilities, and {who}: use --combine rank, or none")


def on_validation(validation: Validation, whole: Predictions, weights: Weights, metric: Metric) -> dict[str, Any]:
    """Scores on validation of the members, of equal weights, and of the weights that were fitted there."""
    truth, models = validation
    even = ensemble.combined(models, ensemble.equal(np.stack([model.given for model in models])), of_ranks=False)
    compared = [*models, dataclasses.replace(even, name="equal weights"), dataclasses.replace(whole, name="fitted")]
    found = measure.measure(truth, compared, Asked(resamples=0, decisions=False))
    return {
        "source": truth.source,
        "metric": metric,
        "models": [
            {"name": one.name, MEAN[metric]: defined(one.overall[MEAN[metric]]), metric: defined(one.each[metric])}
            for one in found.scores
        ],
        "unfitted": weights.unfitted,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [defined(row[key]) for row in rows] for key in rows[0]} if rows else {}


def to_dict(models: Models, measured: Measured, *, metric: Metric, resamples: int, seed: int) -> dict[str, Any]:
    """The contents of metrics.json; scores in [0, 1], None where undefined."""
    truth, c = models.truth, len(models.truth.categories)
    out: dict[str, Any] = {
        "source": truth.source,
        "rows": len(truth),
        "unit": truth.unit,
        "metric": metric,
        "categories": list(truth.categories),
        "known": {"positive": measured.positive.tolist(), "negative": measured.negative.tolist()},
        "bootstrap": {"resamples": resamples, "drawn": truth.unit if truth.groups is None else "groups", "seed": seed},
    }
    out["models"] = []
    for place, (model, found) in enumerate(zip(models.each, measured.scores, strict=True)):
        one: dict[str, Any] = {"name": model.name, "overall": defined(found.overall)}
        one["each"] = defined(found.each) | {"threshold": defined(np.where(model.given, found.thresholds, np.nan))}
        intervals: dict[str, Any] = {}
        for name, mean in MEAN.items():
            intervals[mean] = defined(dataclasses.asdict(measure.interval_of(measured, place, name)))
            each = [dataclasses.asdict(measure.interval_of(measured, place, name, i)) for i in range(c)]
            intervals[name] = _columns(each)
        one["intervals"] = intervals
        one["not_given"] = [truth.categories[i] for i in np.flatnonzero(~model.given).tolist()]
        out["models"].append(one)
    out["differences"] = []
    last = len(models.each) - 1
    pairs = [(a, b) for a in range(last + 1) for b in range(a)]
    # What is asked most comes first: the ensemble, or the model named last, against each other one.
    for first, second in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
        one = {"first": models.each[first].name, "second": models.each[second].name}
        for name, mean in MEAN.items():
            found = measure.difference(measured, first, second, name)
            one[mean] = defined(dataclasses.asdict(found.interval) | {"p": found.p})
            each = [measure.difference(measured, first, second, name, i) for i in range(c)]
            one[name] = _columns([dataclasses.asdict(x.interval) | {"p": x.p} for x in each])
        out["differences"].append(one)
    out["ensemble"] = None
    if models.weights is not None:
        named = [model.name for model in models.each[:-1]]
        out["ensemble"] = {
            "combine": models.combine,
            "weights": {name: row.tolist() for name, row in zip(named, models.weights.values, strict=True)},
            "validation": models.fitted,
        }
        if models.weights.picks is not None:
            out["ensemble"]["picks"] = dict(zip(named, models.weights.picks.tolist(), strict=True))
    out["readers"] = None
    out["notes"] = [*truth.notes, *models.notes]
    return out


def report(
    models: Models,
    *,
    metric: Metric,
    resamples: int = 1000,
    seed: int = 0,
    folder: Path | None = None,
    console: Console | None = None,
    progress: Callable[[int, int], None] | None = None,
    raw: bool = False,
) -> dict[str, Any]:
    """Measure, print the tables, and write metrics.json, table.csv, table.md, table.txt and the pictures.

    Args:
        models: what is measured.
        metric: which score tables and pictures show.
        resamples: of the bootstrap; 0 leaves intervals and p values out.
        seed: of the bootstrap.
        folder: where to; None writes nothing.
        console: where the tables are printed; None is the terminal.
        progress: told the categories done and all of them.
        raw: leave names in table.csv alone that a spreadsheet would take for formulas.

    Returns:
        What metrics.json holds.
    """
    drawn = [] if folder is None else drawing.curves_drawn(*measure.known_counts(models.truth).tolist())
    measured = measure.measure(models.truth, models.each, Asked(resamples, seed, drawn=drawn), progress)
    out = to_dict(models, measured, metric=metric, resamples=resamples, seed=seed)
    compared = readers.compare(models.truth, models.each, models.readers) if models.readers else None
    out["readers"] = readers_table.to_dict(compared) if compared else None
    text = printing.printed(lambda width: tables.tables_of(out, width=width), tables.notes(out), console)
    if folder is not None:
        storage.write_bytes(folder / "table.txt", text.encode())
        storage.write_bytes(folder / "table.csv", tables.to_csv(out, raw=raw).encode())
        storage.write_bytes(folder / "table.md", paper.markdown(out).encode())
        storage.write_json(folder / "metrics.json", out)
        if compared is None:
            (folder / "readers.csv").unlink(missing_ok=True)
        else:
            storage.write_bytes(folder / "readers.csv", readers_table.to_csv(out, raw=raw).encode())
        pictures.draw(folder, models.truth, models.each, measured, out, metric, compared)
    return out
