"""CFT as an estimator of scikit-learn: embeddings and labels in, a classifier with `predict_proba` out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cftjax import decisions
from cftjax.cft import tuning
from cftjax.config import TuningConfig
from cftjax.types import Embeddings, Heads


class CategoryWiseFineTuner(ClassifierMixin, BaseEstimator):
    """One logistic regression per category, each fine-tuned alone on its known labels.

    Labels are [n c], 1, 0, or NaN where nobody said; or [n] of two classes (NaN where unknown), a single category.

    Attributes:
        heads_: the last layer, kernel [c d] and bias [c].
        chosen_: what `cftjax.fine_tune` returned: which candidate each category keeps, and those left alone.
        decisions_: calibration and thresholds of every category.
        classes_: the two classes of one category, or the categories' numbers.
        n_features_in_: d.
    """

    def __init__(
        self,
        config: TuningConfig | None = None,
        *,
        threshold: float | Literal["fitted"] = 0.5,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        """Settings.

        Args:
            config: search, polish, choice and calibration; None for the defaults.
            threshold: probability from which `predict` says present; "fitted" takes what `config.decide.rule` finds for
                each category, and `predict` and `predict_proba` then no longer agree at 0.5.
            random_state: of folds and search.
        """
        self.config = config
        self.threshold = threshold
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        heads: Heads | None = None,
        validation: tuple[Any, Any] | None = None,
        groups: Any = None,
    ) -> CategoryWiseFineTuner:
        """Fine-tune every category.

        Args:
            X: embeddings [n d].
            y: labels [n c] or [n], NaN where unknown.
            heads: the last layer to start from; None starts from zero.
            validation: embeddings and labels that judge; None cross-validates on the labels given.
            groups: [n] a mark that rows of one patient share, so that no fold splits them.

        Raises:
            ValueError: where labels are not of two kinds, or shapes do not match.
        """
        X = validate_data(self, X, dtype=np.float32)
        labels, known = self._labels(y, len(X), first=True)
        groups = None if groups is None else np.asarray(groups)
        train = Embeddings(X, labels, known, groups=groups)
        judge, split = None, "train"
        if validation is not None:
            z: Any = validate_data(self, validation[0], dtype=np.float32, reset=False)
            judge, split = Embeddings(z, *self._labels(validation[1], len(z), first=False)), "validation"
        if heads is None:
            heads = Heads(np.zeros((labels.shape[1], X.shape[1]), np.float32), np.zeros(labels.shape[1], np.float32))
        if np.shape(heads.kernel) != (labels.shape[1], X.shape[1]):
            raise ValueError(
                f"heads have a kernel {np.shape(heads.kernel)}, and labels and embeddings ask for "
                f"{(labels.shape[1], X.shape[1])}: [categories, dimensions of X]"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        config = dataclasses.replace(self.config or TuningConfig(), seed=seed)
        self.chosen_ = tuning.fine_tune(train, judge, heads, config=config)
        self.heads_ = self.chosen_.heads
        seen = judge or train
        names = [str(name) for name in range(labels.shape[1])]
        logits = np.asarray(self.heads_(seen.z))
        self.decisions_ = decisions.fit(logits, seen.labels, seen.known, config.decide, categories=names, split=split)
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Calibrated probabilities of every category [n c]; of one category those of both classes [n 2]."""
        present = self._probabilities(X)
        return np.hstack([1 - present, present]) if self._is_single else present

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"] | Float[np.ndarray, "n c"]:
        """How far the log odds are above the threshold: positive where `predict` says present."""
        odds = special.logit(self._probabilities(X)) - special.logit(self._thresholds())[None, :]
        return odds[:, 0] if self._is_single else odds

    def predict(self, X: Any) -> Shaped[np.ndarray, " n"] | Shaped[np.ndarray, "n c"]:
        """Whether each category is present, 1 or 0 [n c]; of one category the class [n]."""
        present = (self._probabilities(X) >= self._thresholds()[None, :]).astype(np.int64)
        return self.classes_[present[:, 0]] if self._is_single else present

    def _probabilities(self, X: Any) -> Float[np.ndarray, "n c"]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return self.decisions_.probabilities(np.asarray(self.heads_(X)))

    def _thresholds(self) -> Float[np.ndarray, " c"]:
        if self.threshold != "fitted":
            return np.full(len(self.decisions_.categories), float(self.threshold))
        fitted = self.decisions_.thresholds
        return np.where(np.isnan(fitted), decisions.UNFITTED, np.minimum(fitted, 1))

    def _labels(self, y: Any, n: int, *, first: bool) -> tuple[Bool[np.ndarray, "n c"], Bool[np.ndarray, "n c"]]:
        """Labels and where they are known; of the training labels (`first`) it learns the classes."""
        if y is None:
            raise ValueError("This CategoryWiseFineTuner estimator requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if len(y) != n:
            raise ValueError(
                f"X has {n} rows and y {len(y)}: Found input variables with inconsistent numbers of samples"
            )
        if y.ndim not in (1, 2):
            raise ValueError(f"y has the shape {y.shape}: use [n c], or [n] for one category")
        if y.dtype.kind == "f" and np.isinf(y).any():
            raise ValueError("Input y contains infinity: use 1, 0, and NaN where a label is unknown")
        known = ~np.isnan(y) if y.dtype.kind == "f" else np.ones(y.shape, bool)
        check_classification_targets(y[known])
        if y.ndim == 2:
            if not np.isin(y[known], (0, 1)).all():
                raise ValueError("labels [n c] are 1, 0, and NaN where unknown; Unknown label type: other values")
            if first:
                self._is_single, self.classes_ = False, np.arange(y.shape[1])
            return known & (y == 1), known
        if first:
            self._is_single, self.classes_ = True, np.unique(y[known])
        if len(self.classes_) != 2 or not np.isin(y[known], self.classes_).all():
            raise ValueError(
                f"Only binary classification is supported, and y has {len(np.unique(y[known]))} class(es): "
                "use labels [n c] with a column of 1 and 0 for each category. Unknown label type: multiclass"
            )
        return (known & (y == self.classes_[1]))[:, None], known[:, None]

    def __sklearn_tags__(self) -> Tags:
        """Labels of several categories; a single one has two classes."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        return tags
