"""The models of an evaluation, runs and files of predictions, brought to the same rows and categories."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from cftjax import decisions
from cftjax.data import meaning
from cftjax.data.reading.sheets import Sheet
from cftjax.evaluation import files as prediction_files
from cftjax.evaluation import sources, studies
from cftjax.evaluation.ensemble import NAME
from cftjax.evaluation.files import Rows
from cftjax.evaluation.sources import Source
from cftjax.evaluation.studies import Aggregate
from cftjax.scores import predictions
from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Predictions, Truth
from cftjax.text import few


@dataclasses.dataclass(frozen=True)
class Reading:
    """How rows and categories of different sources find each other.

    Attributes:
        keys: columns that may name the rows of a file, best first.
        categories: the columns of a file of labels that count; none means those that any model gives.
        aggregate: what becomes of the rows of one study; None leaves rows alone.
        study: what of a row's name makes the study.
        group: what of a row's name the bootstrap draws together; None draws rows of files, and what runs say.
        minus_one: what -1 in a file of labels means.
        scores: whether numbers outside of [0, 1] in files of predictions are scores, however few they are.
    """

    keys: tuple[str, ...] = prediction_files.KEYS
    categories: tuple[str, ...] = ()
    aggregate: Aggregate | None = None
    study: re.Pattern[str] = re.compile(r"patient\d+/study\d+")
    group: re.Pattern[str] | None = None
    minus_one: meaning.Answer = prediction_files.MINUS_ONE
    scores: bool = False


def names_of(models: Sequence[Path]) -> list[str]:
    """What tables call each model: its folder, or its file without suffix and `_predictions`, which all may have.

    The whole path where that is not enough.

    Raises:
        ValueError: where a model is named twice.
    """
    for place, model in enumerate(models):
        if model in models[:place]:
            raise ValueError(f"{model} is named twice: name every run or file once")
    short = [Path(model).resolve().name if model.is_dir() else named(model) for model in models]
    return [
        str(model) if short.count(name) > 1 or name == NAME else name for model, name in zip(models, short, strict=True)
    ]


def named(file: Path) -> str:
    """What tables call a file of predictions."""
    return file.stem.removesuffix("_predictions") or file.stem


def split_of(runs: Sequence[Source], wanted: str | None) -> str:
    """The split that is asked for, else test where every run has it, else validation.

    Raises:
        ValueError: where a run does not have it.
    """
    has = {run.folder: sources.embedded(run) for run in runs}
    splits = [wanted] if wanted else ["test", "validation"]
    for split in splits:
        if all(split in own for own in has.values()):
            return split
    folder, own = next((folder, own) for folder, own in has.items() if splits[-1] not in own)
    raise ValueError(
        f"{folder} has no embeddings of {' or '.join(splits)}; it has {few(own) or 'none yet'}: choose with --split"
    )


def of_runs(
    runs: Sequence[Source], names: Sequence[str], split: str, reading: Reading
) -> tuple[Truth, list[Predictions]]:
    """Labels and predictions of runs and kept ensembles, which must be on the same images.

    Raises:
        ValueError: with the first difference.
    """
    first: Truth | None = None
    models = []
    for run, name in zip(runs, names, strict=True):
        truth, model = sources.of_source(run, split, name)
        if first is None:
            first = truth
        else:
            predictions.check_same(first, truth, (names[0], name))
            # An older run may not know what another one says.
            first = dataclasses.replace(first, names=first.names or truth.names)
        models.append(model)
    assert first is not None
    truth = first
    if reading.group is not None:
        groups = studies.studies(truth.names, reading.group, str(runs[0].folder))[1]
        truth = dataclasses.replace(truth, groups=groups)
    if reading.aggregate is not None:
        units, index = studies.studies(truth.names, reading.study, str(runs[0].folder))
        truth = studies.truth_of_studies(truth, units, index)
        models = [studies.predictions_of_studies(m, index, len(units), reading.aggregate) for m in models]
    return truth, models


def of_files(
    files: Sequence[Path], names: Sequence[str], truth: Path | Truth, reading: Reading
) -> tuple[Truth, list[Predictions]]:
    """Labels and predictions of files.

    Args:
        files: of predictions.
        names: of their models.
        truth: the file of the labels, or labels that runs brought.
        reading: how they find each other.

    Raises:
        ValueError: with what is wrong in the first file that has something wrong.
    """
    sheets = [(file, prediction_files.read(file)) for file in files]
    study = reading.study if reading.aggregate is not None else None
    if isinstance(truth, Truth):
        if truth.names is None:
            raise ValueError(
                f"{files[0]} beside runs whose {truth.source} does not say which image is which: delete their folder "
                "embeddings and run their training commands again"
            )
        keys = [prediction_files.common_keys([one], reading.keys, False)[0] for one in sheets]
    else:
        sheet = prediction_files.read(truth)
        key, *keys = prediction_files.common_keys([(truth, sheet), *sheets], reading.keys, study is None)
        truth = _truth(truth, sheet, key, sheets, reading)
    rows = [rows_of(reading, key) for key in keys]
    return truth, [
        prediction_files.read_predictions(file, sheet, one, truth, name)
        for (file, sheet), one, name in zip(sheets, rows, names, strict=True)
    ]


def unlabelled(files: Sequence[Path], reading: Reading) -> Truth:
    """The rows of the first file and the categories of all, of which no label is known.

    Categories are the columns that name no rows and that `cftjax predict` does not write beside probabilities.
    """
    sheets = [(file, prediction_files.read(file)) for file in files]
    (file, sheet), keys = sheets[0], prediction_files.common_keys(sheets, reading.keys, reading.aggregate is None)
    names = prediction_files.read_keys(file, sheet, keys[0])
    unit = "studies" if keys[0].lower() == "study" else "images"
    if reading.aggregate is not None:
        (names, _), unit = studies.studies(names, reading.study, str(file)), "studies"
    columns = dict.fromkeys(column for _, other in sheets for column in other.columns)
    beside = {"error", *(f"{column} decision" for column in columns)}
    categories = [name for name in columns if name not in beside and name.lower() not in reading.keys]
    categories = tuple(reading.categories or categories)
    nothing = np.zeros((len(names), len(categories)), bool)
    return Truth(categories, nothing, nothing, file.name, list(names), unit=unit)


def rows_of(reading: Reading, key: str) -> Rows:
    """How the rows of one file find those of the truth, by its column `key`."""
    study = reading.study if reading.aggregate is not None else None
    return Rows(key, study, reading.aggregate or "mean", reading.scores)


def _truth(file: Path, sheet: Sheet, key: str, others: Sequence[tuple[Path, Sheet]], reading: Reading) -> Truth:
    """The labels of the categories that are asked for, or that any file of predictions gives."""
    columns = [name for name in sheet.columns if name != key]
    theirs = list(dict.fromkeys(name for _, other in others for name in other.columns))
    given = [name for name in columns if name in theirs and name.lower() not in reading.keys]
    categories = list(reading.categories) or given
    if not categories:
        near = prediction_files.near_misses(columns, theirs)
        raise ValueError(
            f"{file}: none of its columns is in {few([str(f) for f, _ in others], 3)}: it has "
            f"{few(columns, 6)}, they have {few(theirs, 6)}{near}; columns must have the same names"
        )
    truth = prediction_files.read_truth(
        file,
        sheet,
        key,
        categories,
        aggregate=reading.aggregate is not None,
        group=reading.group,
        answer=reading.minus_one,
    )
    left = [name for name in columns if name not in categories]
    if left:
        near = prediction_files.near_misses(left, theirs)
        note = f"Columns of {file.name} that no model gives, left out: {few(left)}{near}"
        if not reading.categories:
            truth = dataclasses.replace(truth, notes=(*truth.notes, note if note.endswith("?") else note + "."))
    if reading.aggregate is not None:
        units, index = studies.studies(truth.names, reading.study, str(file))
        truth = studies.truth_of_studies(truth, units, index)
    return truth


def fit_thresholds(
    model: Predictions, truth: Truth, rule: str = "f1", target: float | None = None
) -> Float64[np.ndarray, " c"]:
    """The threshold of each category, fitted on labels; NaN where no positive or no negative is known."""
    found = np.full(len(truth.categories), np.nan)
    if model.only_ranks:
        return found
    for some in category_groups(len(truth), len(found), 1):
        labels, known = truth.block(some)
        probs = np.asarray(model.block(some).probs, np.float64)
        for j in range(probs.shape[1]):
            told = known[:, j]
            positive = int(labels[told, j].sum())
            if model.given[some.start + j] and 0 < positive < told.sum():
                found[some.start + j] = decisions.threshold(probs[told, j], labels[told, j], rule, target or 0.0)
    return found
