"""Weights, calibration and thresholds of an ensemble that is to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cftjax import decisions
from cftjax.config import DecideConfig, Metric
from cftjax.decisions import Decisions
from cftjax.evaluation import content, ensemble
from cftjax.evaluation import models as members
from cftjax.evaluation.ensemble import Combine, Weights
from cftjax.evaluation.models import Reading
from cftjax.inference.ensemble import log_odds
from cftjax.runs import Run
from cftjax.scores.logits import category_groups


class Fitted(NamedTuple):
    """What an ensemble is, beside its members.

    Attributes:
        weights: of the members.
        decisions: log-odds of their mean probability to probabilities and decisions.
        judged: what validation said of fitted weights, as metrics.json holds it; None for equal ones.
    """

    weights: Weights
    decisions: Decisions
    judged: dict[str, Any] | None


def fit(runs: Sequence[Run], names: Sequence[str], combine: Combine, metric: Metric, config: DecideConfig) -> Fitted:
    """Weights of the members, calibration of the log-odds of their mean, and thresholds, all on the same labels.

    These are known labels of validation, of which each member says what it says out of fold; without such a split
    those of train, as for a single run.

    Args:
        runs: of m members.
        names: what messages call them.
        combine: `mean`, `weighted` or `greedy`.
        metric: of greedy selection.
        config: rule and calibration.

    Raises:
        ValueError: where the runs are not on the same data, or weights have no validation to be fitted on.
    """
    split = "validation" if all("validation" in run.splits for run in runs) else "train"
    if combine != "mean" and split == "train":
        raise ValueError(f"--combine {combine} fits weights on validation, which {runs[0].folder} lacks: use mean")
    truth, each = members.of_runs(runs, names, split, Reading())
    weights = Weights(ensemble.equal(np.stack([model.given for model in each])), {})
    if combine == "weighted" or combine == "greedy":
        weights = ensemble.fit(each, truth, combine, metric)
    whole, parts = ensemble.combined(each, weights.values, of_ranks=False), []
    judged = None if combine == "mean" else content.on_validation((truth, each), whole, weights, metric)
    unseen = split == "validation" and any(run.out_of_fold() is not None for run in runs)
    for some in category_groups(len(truth), len(truth.categories), len(runs)):
        labels, known = truth.block(some)
        raw, own = log_odds(whole.block(some).probs), truth.categories[some]
        parts.append(decisions.fit(raw, labels, known, config, categories=own, split=split, out_of_fold=unseen))
    return Fitted(weights, decisions.joined(parts), judged)
