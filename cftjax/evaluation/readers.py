"""People who looked at the same images, such as radiologists: what they decided, as points beside models' curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64
from sklearn.metrics import roc_curve

from cftjax.data.reading.problems import Problems
from cftjax.evaluation import files
from cftjax.evaluation.files import Rows
from cftjax.evaluation.models import names_of
from cftjax.evaluation.studies import aggregated
from cftjax.scores import decided
from cftjax.scores.logits import category_groups
from cftjax.scores.predictions import Predictions, Truth
from cftjax.text import few

# Of a slope's height, within which a point counts as on it.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Reader:
    """What one person decided of the rows of a truth.

    Attributes:
        name: of the file.
        present: [n c] decided to be there; read where rated.
        rated: [n c] where the person decided at all.
    """

    name: str
    present: Bool[np.ndarray, "n c"]
    rated: Bool[np.ndarray, "n c"]


@dataclasses.dataclass(frozen=True)
class Operating:
    """How a person's decisions score, over the known labels of what the person rated: [c] each, NaN where undefined.

    Attributes:
        sensitivity: the share of the positives that were seen, also called recall and true positive rate.
        false_positive_rate: the share of the negatives that were taken for positives: 1 less the specificity.
        precision: the share of what was decided to be there that is there.
        F1: harmonic mean of precision and sensitivity.
    """

    sensitivity: Float64[np.ndarray, " c"]
    false_positive_rate: Float64[np.ndarray, " c"]
    precision: Float64[np.ndarray, " c"]
    F1: Float64[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Compared:
    """People beside models.

    Attributes:
        readers: of r people.
        points: how each scores.
        below: model -> [r c] 1 where the model is more sensitive at the person's false positive rate, so that the
            person's point lies below the ROC curve, 0 where not, NaN where there is no point or no curve.
    """

    readers: Sequence[Reader]
    points: Sequence[Operating]
    below: dict[str, Float64[np.ndarray, "r c"]]


def read(paths: Sequence[Path], keys: Sequence[str], rows: Rows, truth: Truth) -> list[Reader]:
    """The decisions of people, a file each, in the form of the labels.

    1 is present, 0 absent; where a cell is blank or -1 the person decided nothing. Of the images of one study, the
    study is present where any of them is.

    Args:
        paths: their files.
        keys: columns that may name the rows, best first.
        rows: how rows find those of the truth; its key is not read.
        truth: the labels.

    Raises:
        ValueError: where rows of the truth have no names or are missing, a cell holds no decision, or a file rates no
            category.
    """
    if truth.names is None:
        raise ValueError(
            f"{paths[0]} beside runs whose {truth.source} does not say which image is which: delete their folder "
            "embeddings and run their training commands again"
        )
    return [_read(path, name, keys, rows, truth) for path, name in zip(paths, names_of(paths), strict=True)]


def _read(path: Path, name: str, keys: Sequence[str], rows: Rows, truth: Truth) -> Reader:
    sheet, problems = files.read(path), Problems(path)
    (key,) = files.common_keys([(path, sheet)], keys, alike=False)
    there = [c for c, category in enumerate(truth.categories) if category in sheet.columns]
    if not there:
        missing = files.near_misses(truth.categories, list(sheet.columns))
        raise ValueError(f"{path}: decides none of {few(truth.categories, 5)}{missing}; columns must have these names")
    index = files.places(path, sheet, dataclasses.replace(rows, key=key), truth, problems)
    names = [truth.categories[c] for c in there]
    values = sheet.labels(names, problems, "use 1 for present and 0 for absent, blank for not rated")
    problems.raise_if_any()
    whole = np.full((len(truth), len(truth.categories)), -1.0)
    whole[:, there] = aggregated(np.where(np.isnan(values), -1.0, values), index, len(truth), "max")
    return Reader(name, whole == 1, whole >= 0)


def compare(truth: Truth, models: Sequence[Predictions], readers: Sequence[Reader]) -> Compared:
    """Score people, and find whose points lie below the models' ROC curves.

    A curve is what AUROC is the area of: straight between neighbouring scores, so that equal scores make a slope.

    Args:
        truth: the labels.
        models: predictions for them.
        readers: decisions on the same rows.
    """
    shape = (len(readers), len(truth.categories))
    below = {model.name: np.full(shape, np.nan) for model in models}
    parts: list[list[Operating]] = [[] for _ in readers]
    for some in category_groups(len(truth), shape[1], 2 * len(models)):
        labels, known = truth.block(some)
        for reader, own in zip(readers, parts, strict=True):
            own.append(operating(reader.present[:, some], labels, known & reader.rated[:, some]))
        for model in models:
            scores = model.block(some).scores
            for j in np.flatnonzero(model.given[some]).tolist():
                curve = roc(scores[known[:, j], j], labels[known[:, j], j])
                for r, own in enumerate(parts):
                    at, seen = own[-1].false_positive_rate[j], own[-1].sensitivity[j]
                    if curve is not None and not np.isnan(at + seen):
                        below[model.name][r, some.start + j] = seen < height(curve, at) - ROUNDING
    fields = [field.name for field in dataclasses.fields(Operating)]
    points = [
        Operating(**{name: np.concatenate([getattr(part, name) for part in own]) for name in fields}) for own in parts
    ]
    return Compared(readers, points, below)


def operating(
    present: Bool[np.ndarray, "n g"], labels: Bool[np.ndarray, "n g"], told: Bool[np.ndarray, "n g"]
) -> Operating:
    """How decisions score where they were made and the label is known."""
    true, false = (present & labels & told).sum(0), (present & ~labels & told).sum(0)
    positive, negative = (labels & told).sum(0), (~labels & told).sum(0)
    return Operating(
        sensitivity=decided.ratio(true, positive),
        false_positive_rate=decided.ratio(false, negative),
        precision=decided.ratio(true, true + false),
        F1=decided.ratio(2 * true, np.where(positive > 0, positive + true + false, 0)),
    )


Roc = tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]


def roc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Roc | None:
    """False and true positive rates of every threshold, ascending; None without a positive or a negative."""
    if not labels.any() or labels.all():
        return None
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return false, true


def height(curve: Roc, at: float) -> float:
    """The true positive rate of a curve at a false positive rate: the top where it rises upright."""
    false, true = curve
    # The same counts give the same quotient to the bit, so that a point upright above another one is found.
    last = int(np.searchsorted(false, at, side="right")) - 1
    if false[last] == at:
        return float(true[last])
    share = (at - false[last]) / (false[last + 1] - false[last])
    return float(true[last] + share * (true[last + 1] - true[last]))
