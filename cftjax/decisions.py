"""From logits to decisions: calibrated probabilities and one threshold per category, fitted on known labels.

Fitted on the known labels of validation. Where there is no such split, on the known training labels, which is
optimistic and recorded as such.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression

from cftjax.config import DecideConfig
from cftjax.runtime import storage
from cftjax.types import Array, Matrix

# What decides where no threshold could be fitted.
UNFITTED = 0.5
# Above every probability: where no threshold has the precision asked for, nothing is decided positive.
NEVER = float(np.nextafter(1.0, 2.0))
# Least slope of a probability over its logit: heads that rank worse than chance are flattened, not turned round.
LEAST_SCALE = 1e-3
OUT_OF_FOLD = "each logit is of heads that have not learned from the label it is compared with (out of fold)"
OPTIMISTIC = (
    "there is no validation split; the model has seen these training labels, so that probabilities and thresholds are "
    "optimistic"
)


@dataclasses.dataclass(frozen=True)
class FittedOn:
    """The labels behind probabilities and thresholds.

    Attributes:
        split: `validation`, or `train` where there is no such split.
        positive: [c] known positives of it.
        negative: [c] known negatives of it.
        note: what a reader must know of them; mostly empty.
    """

    split: str
    positive: Int[np.ndarray, " c"]
    negative: Int[np.ndarray, " c"]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Decisions:
    """How a model's logits become probabilities and decisions.

    Attributes:
        categories: names, length c.
        thresholds: [c] on calibrated probabilities; NaN where none could be fitted.
        rule: that thresholds were fitted by: see `DecideConfig`.
        target: the precision or sensitivity asked for; None for other rules.
        calibration: the method of it: see `DecideConfig`.
        scale: [c] a probability is the sigmoid of scale * logit + offset, but for isotonic.
        offset: [c].
        knots: of isotonic, per category [2 k] logits and their probabilities, linear in between; without any where it
            could not be fitted. Empty for other methods.
        fitted_on: the labels.
        notes: category -> why it has no threshold, or one that nothing reaches.
    """

    categories: tuple[str, ...]
    thresholds: Float[np.ndarray, " c"]
    rule: str
    target: float | None
    calibration: str
    scale: Float[np.ndarray, " c"]
    offset: Float[np.ndarray, " c"]
    knots: tuple[Float[np.ndarray, "2 _"], ...]
    fitted_on: FittedOn
    notes: Mapping[str, str]

    def probabilities(self, logits: Num[Array, "n c"]) -> Float[np.ndarray, "n c"]:
        """Calibrated probabilities, float64; a higher logit never has a lower one.

        Raises:
            ValueError: where the logits are not those of these categories.
        """
        raw = self._checked("logits", logits)
        probs = special.expit(raw * self.scale[None, :] + self.offset[None, :])
        for c, knots in enumerate(self.knots):
            if knots.size:
                probs[:, c] = np.interp(raw[:, c], knots[0], knots[1])
        return probs

    def decide(self, probs: Num[Array, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Which categories are decided present: probability at or above the threshold, 0.5 where there is none.

        Raises:
            ValueError: where the probabilities are not those of these categories.
        """
        thresholds = np.where(np.isnan(self.thresholds), UNFITTED, self.thresholds)
        return self._checked("probs", probs) >= thresholds[None, :]

    def _checked(self, name: str, values: Num[Array, "n c"]) -> Float[np.ndarray, "n c"]:
        found = np.asarray(values, np.float64)
        if found.shape[1] != len(self.categories):
            raise ValueError(f"{name} {found.shape} must have {len(self.categories)} columns, one per category")
        return found


def fit(
    logits: Num[Array, "n c"],
    labels: Shaped[Matrix, "n c"],
    known: Bool[Matrix, "n c"],
    config: DecideConfig,
    *,
    categories: Sequence[str],
    split: str,
    out_of_fold: bool = False,
) -> Decisions:
    """Calibrate every category on its known labels, then find its threshold among the calibrated probabilities.

    Args:
        logits: [n c] raw.
        labels: [n c], read where known.
        known: [n c].
        config: rule and calibration.
        categories: names, length c.
        split: what the labels are called.
        out_of_fold: whether the logits are those of heads that have not learned from these labels, though others have.
    """
    logits, labels, known = np.asarray(logits, np.float64), np.asarray(labels, bool), np.asarray(known, bool)
    c = len(categories)
    thresholds, scale, offset = np.full(c, np.nan), np.ones(c), np.zeros(c)
    knots = [np.empty((2, 0)) for _ in categories]
    notes: dict[str, str] = {}
    target = {"precision": config.precision, "sensitivity": config.sensitivity}.get(config.rule)
    for j, category in enumerate(categories):
        x, y = logits[known[:, j], j], labels[known[:, j], j]
        if missing := "positive" if not y.any() else "negative" if y.all() else "":
            notes[category] = f"no known {missing} in {split}: not calibrated, decided at {UNFITTED}"
            continue
        if not np.isfinite(x).all():
            notes[category] = f"a logit of {split} is not finite: not calibrated, decided at {UNFITTED}"
            continue
        if config.calibration == "isotonic":
            knots[j] = isotonic(x, y)
            probs = np.interp(x, knots[j][0], knots[j][1])
        else:
            if config.calibration != "none":
                scale[j], offset[j] = sigmoid_fit(x, y, with_offset=config.calibration == "platt")
            probs = special.expit(scale[j] * x + offset[j])
        thresholds[j] = threshold(probs, y, config.rule, target or 0.0)
        if thresholds[j] == NEVER:
            notes[category] = f"no threshold reaches precision {target:g} in {split}: never decided positive"
    # Of training labels the backbone has seen all, whatever the heads have.
    note = OPTIMISTIC if split != "validation" else OUT_OF_FOLD if out_of_fold else ""
    fitted_on = FittedOn(split, (labels & known).sum(0), (~labels & known).sum(0), note)
    isotonic_knots = tuple(knots) if config.calibration == "isotonic" else ()
    return Decisions(
        tuple(categories),
        thresholds,
        config.rule,
        target,
        config.calibration,
        scale,
        offset,
        isotonic_knots,
        fitted_on,
        notes,
    )


def threshold(probs: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], rule: str, target: float = 0.0) -> float:
    """The threshold that a rule picks among all that decide these labels differently; of equals the highest.

    It lies half-way between the scores on both sides of it, so that rounding elsewhere does not turn a decision.

    Args:
        probs: in [0, 1].
        labels: with a positive and a negative among them.
        rule: see `DecideConfig.rule`.
        target: of `precision` and `sensitivity`; other rules do not read it.

    Returns:
        The threshold; `NEVER` where none has the precision.
    """
    scores, place = np.unique(-probs, return_inverse=True)
    scores = -scores  # descending, distinct
    # At the k-th cut, everything with scores[k] and above is decided positive.
    tp = np.cumsum(np.bincount(place[labels], minlength=len(scores)))
    fp = np.cumsum(np.bincount(place[~labels], minlength=len(scores)))
    positive, negative = int(tp[-1]), int(fp[-1])
    if rule == "f1":
        cut = int(np.argmax(2 * tp / (tp + fp + positive)))
    elif rule == "youden":
        cut = int(np.argmax(tp * negative - fp * positive))  # in integers: equals are equal
    elif rule == "precision":
        enough = np.flatnonzero(tp / (tp + fp) >= target)
        if not len(enough):
            return NEVER
        cut = int(enough[-1])
    elif rule == "sensitivity":
        cut = int(np.argmax(tp / positive >= target))
    else:
        raise ValueError(f"rule {rule!r} is not one of f1, youden, precision, sensitivity")
    above, below = float(scores[cut]), float(scores[cut + 1]) if cut + 1 < len(scores) else 0.0
    middle = below + (above - below) / 2
    # Between neighbouring floats there is nothing.
    return middle if middle > below else above


def sigmoid_fit(
    logits: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], *, with_offset: bool
) -> tuple[float, float]:
    """(scale, offset) of the logistic regression of labels on their logits; without an offset it is a temperature.

    Targets are smoothed as if one more positive and one more negative had been seen, so that separable labels have a
    finite fit. Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999), sec. 2.2.
    """
    positive = int(labels.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2)
    targets = np.where(labels, high, low)
    centre = logits.mean() if with_offset else 0.0
    spread = float(np.sqrt(np.mean((logits - centre) ** 2))) or 1.0
    x = (logits - centre) / spread

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        s = line[0] * x + line[1]
        error = special.expit(s) - targets
        return float(np.mean(np.logaddexp(0, s) - targets * s)), np.array([np.mean(error * x), np.mean(error)])

    bounds = [(LEAST_SCALE * spread, None), (None, None) if with_offset else (0.0, 0.0)]
    start = np.array([spread, centre])  # the logits as they are
    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9}
    )
    scale = float(found.x[0]) / spread
    return scale, float(found.x[1]) - scale * float(centre)


def isotonic(logits: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "2 k"]:
    """Knots of the non-decreasing fit of labels on their logits: logits, ascending, and probabilities."""
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels.astype(np.float64))
    return np.stack([fitted.X_thresholds_, fitted.y_thresholds_]).astype(np.float64)


def joined(parts: Sequence[Decisions]) -> Decisions:
    """Decisions over groups of categories as those over all of them, in order."""
    first = parts[0]

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    fitted_on = dataclasses.replace(
        first.fitted_on,
        positive=np.concatenate([part.fitted_on.positive for part in parts]),
        negative=np.concatenate([part.fitted_on.negative for part in parts]),
    )
    return dataclasses.replace(
        first,
        categories=tuple(category for part in parts for category in part.categories),
        thresholds=all_of("thresholds"),
        scale=all_of("scale"),
        offset=all_of("offset"),
        knots=tuple(knots for part in parts for knots in part.knots),
        fitted_on=fitted_on,
        notes={category: note for part in parts for category, note in part.notes.items()},
    )


def write(path: Path, decisions: Decisions) -> None:
    """One object per category, for a person as well; null where there is no threshold."""
    each = []
    for c, category in enumerate(decisions.categories):
        value = float(decisions.thresholds[c])
        one: dict[str, Any] = {"category": category, "threshold": None if np.isnan(value) else value}
        one |= {"scale": float(decisions.scale[c]), "offset": float(decisions.offset[c])}
        if decisions.knots:
            one["knots"] = decisions.knots[c].tolist()
        one["known_positive"] = int(decisions.fitted_on.positive[c])
        one["known_negative"] = int(decisions.fitted_on.negative[c])
        one["note"] = decisions.notes.get(category, "")
        each.append(one)
    storage.write_json(
        path,
        {
            "rule": decisions.rule,
            "target": decisions.target,
            "calibration": decisions.calibration,
            "fitted_on": {"split": decisions.fitted_on.split, "note": decisions.fitted_on.note},
            "categories": each,
        },
    )


def read(path: Path) -> Decisions:
    """What `write` wrote.

    Raises:
        ValueError: where it is something else.
    """
    stored = storage.read_json(path)
    try:
        each = stored["categories"]

        def column(name: str) -> np.ndarray:
            return np.array([np.nan if one[name] is None else one[name] for one in each], np.float64)

        positive, negative = (column(name).astype(np.int64) for name in ("known_positive", "known_negative"))
        return Decisions(
            tuple(one["category"] for one in each),
            column("threshold"),
            stored["rule"],
            stored["target"],
            stored["calibration"],
            column("scale"),
            column("offset"),
            tuple(np.array(one["knots"], np.float64).reshape(2, -1) for one in each if "knots" in one),
            FittedOn(stored["fitted_on"]["split"], positive, negative, stored["fitted_on"]["note"]),
            {one["category"]: one["note"] for one in each if one["note"]},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold decisions ({error!r}): run the command that made the run again"
        ) from error
