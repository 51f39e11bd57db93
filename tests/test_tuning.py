import dataclasses

import numpy as np
import pytest
import toy

import cftjax
from cftjax import metrics
from cftjax.cft import rules, tuning
from cftjax.config import ChooseConfig, GAConfig, PolishConfig, TuningConfig
from cftjax.types import Embeddings

TRAIN, VALIDATION, TEST = (
    toy.embeddings(n=240, seed=seed, known=known) for seed, known in ((0, 0.7), (1, 0.9), (2, 1.0))
)
SMALL = TuningConfig(
    ga=GAConfig(population_size=12, num_generations=20, dimensions=4),
    polish=PolishConfig(num_steps=40, dimensions=5, l2=(0.001, 0.01)),
    choose=ChooseConfig(rule="cross_validated"),
    order="polish_search",
)


def ap(heads, split=TEST):
    return np.asarray(metrics.average_precision(np.asarray(heads(split.z)), split.labels, split.known))


@pytest.fixture(scope="module")
def cross_validated():
    return cftjax.fine_tune(TRAIN, None, toy.heads(), config=SMALL)


def test_heads_improve_with_a_validation_split_in_either_order():
    before = ap(toy.heads())
    for order in ("polish_search", "search_polish"):
        chosen = cftjax.fine_tune(TRAIN, VALIDATION, toy.heads(), config=dataclasses.replace(SMALL, order=order))
        assert set(chosen.names) <= {"backbone", "polish", "ga"}
        assert (ap(chosen.heads) > before).all()


def test_without_a_validation_split_the_known_training_labels_are_cross_validated(cross_validated):
    assert (ap(cross_validated.heads) > ap(toy.heads())).all()
    assert set(cross_validated.names) <= {"polish", "ga"}
    assert not cross_validated.untuned
    # The old heads may not be compared: they have seen the labels that judge.
    assert set(cross_validated.scores) == {"polish", "ga"}


def test_every_known_label_judges_in_exactly_one_fold_and_teaches_in_the_others():
    parts = tuning.parts(TRAIN, None, toy.heads(), SMALL)
    assert len(parts) == rules.FOLDS
    np.testing.assert_array_equal(sum(part.validation.known.astype(int) for part in parts), TRAIN.known)
    for part in parts:
        np.testing.assert_array_equal(part.train.known | part.validation.known, TRAIN.known)
        assert not (part.train.known & part.validation.known).any()
        assert not part.start.kernel.any()


def test_a_category_too_rare_to_cross_validate_keeps_its_head_and_is_named():
    labels = TRAIN.labels.copy()
    labels[:, 1] = False
    train = Embeddings(TRAIN.z, labels, TRAIN.known)
    chosen = cftjax.fine_tune(train, None, toy.heads(), config=SMALL)
    assert list(chosen.untuned) == [1]
    assert chosen.names[1] == "backbone"
    np.testing.assert_array_equal(chosen.heads.kernel[1], toy.heads().kernel[1])
    assert all(np.isnan(scores[1]) for scores in chosen.scores.values())


def test_a_search_from_nothing_is_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"carve a validation split \(--split\.validation-share 0\.1\)"):
        cftjax.fine_tune(TRAIN, None, toy.heads(), config=dataclasses.replace(SMALL, order="search_polish"))
