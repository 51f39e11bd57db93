import dataclasses

import jax
import numpy as np
import pytest
import toy

import cftjax
from cftjax import metrics, types
from cftjax.cft import discriminant, large, members, pool, spaces
from cftjax.cft.large import Made, Stacked
from cftjax.config import GAConfig, PolishConfig, TuningConfig
from cftjax.data import sparse
from cftjax.types import Embeddings

TRAIN, VALIDATION = (toy.embeddings(n=240, seed=seed, known=known) for seed, known in ((0, 0.3), (1, 0.5)))
HEDGED = dataclasses.replace(TRAIN, uncertain=~TRAIN.known & (np.random.default_rng(5).random((240, 3)) < 0.2))
SMALL = TuningConfig(
    ga=GAConfig(population_size=12, num_generations=20, dimensions=4),
    polish=PolishConfig(
        l2=(0.001, 0.01), strengths=(0.3, 3.0), unknown_weights=(0.0, 0.3), judging_weights=(1.0, 3.0), folds=3
    ),
)


@pytest.fixture
def tiny(monkeypatch):
    """Nothing is small enough to be kept."""
    monkeypatch.setattr(large, "KEPT", 0)


def stored(split):
    return Embeddings.of(split.z, sparse.of(split.given), split.groups)


def gathered():
    return pool.gather(HEDGED, VALIDATION, toy.heads(), dimensions=4, num_folds=3, refit=True, seed=0)


@pytest.mark.parametrize("rows", [slice(90, 150), np.array([3, 200, 99, 100]), np.arange(240) % 7 == 0, slice(0, 0)])
def test_splits_one_after_the_other_are_read_as_one_array(rows, monkeypatch):
    monkeypatch.setattr(large, "ROWS_AT_ONCE", 32)
    together = Stacked(np.split(TRAIN.z, [100, 130]))
    np.testing.assert_array_equal(together[rows], TRAIN.z[rows])
    blocks = list(together.blocks())
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), TRAIN.z)
    assert [rows.stop for rows, _ in blocks] == [32, 64, 96, 100, 130, 162, 194, 226, 240]


@pytest.mark.parametrize(
    "place", [slice(3, 9), np.array([5, 1]), (np.array([5, 1]), 2), (slice(4, 8), slice(1, 3)), (slice(None), [2, 0])]
)
def test_what_is_made_when_it_is_read_is_what_would_be_kept(place, tiny, monkeypatch):
    space = spaces.principal_space(TRAIN, None, white=False)
    made = spaces.see(TRAIN, toy.heads(), space)
    assert isinstance(made.z, Made)
    assert isinstance(made.base, Made)
    monkeypatch.undo()
    kept = spaces.see(TRAIN, toy.heads(), space)
    np.testing.assert_allclose(made.base[place], kept.base[place], atol=1e-5)
    if not isinstance(place, tuple):
        np.testing.assert_allclose(made.z[place], kept.z[place], atol=1e-5)
    np.testing.assert_allclose(np.asarray(made.z), kept.z, atol=1e-5)
    assert made.base.shape == kept.base.shape


def test_sums_and_spread_of_a_large_pool_are_those_of_a_small_one(tiny, monkeypatch):
    made = gathered()
    assert isinstance(made.base, Made)
    sums, spread = discriminant.sums(made), members.spread(made)
    monkeypatch.undo()
    kept = gathered()
    np.testing.assert_array_equal(sums.counts, discriminant.sums(kept).counts)
    np.testing.assert_allclose(sums.totals, discriminant.sums(kept).totals, atol=1e-3)
    for name in ("variance", "covariance", "mean"):
        np.testing.assert_allclose(getattr(spread, name), getattr(members.spread(kept), name), atol=1e-4)


def test_fine_tuning_gives_the_same_to_the_bit_whether_labels_are_dense_or_sparse():
    dense = cftjax.fine_tune(HEDGED, VALIDATION, toy.heads(), config=SMALL)
    few = cftjax.fine_tune(stored(HEDGED), stored(VALIDATION), toy.heads(), config=SMALL)
    np.testing.assert_array_equal(few.heads.kernel, dense.heads.kernel)
    np.testing.assert_array_equal(few.heads.bias, dense.heads.bias)
    np.testing.assert_array_equal(few.out_of_fold, dense.out_of_fold)


def test_fine_tuning_of_what_is_too_large_to_be_kept_finds_the_same_heads(tiny, monkeypatch):
    made = cftjax.fine_tune(stored(HEDGED), stored(VALIDATION), toy.heads(), config=SMALL)
    monkeypatch.undo()
    kept = cftjax.fine_tune(HEDGED, VALIDATION, toy.heads(), config=SMALL)
    np.testing.assert_allclose(made.heads.kernel, kept.heads.kernel, atol=2e-2)
    logits = [np.asarray(chosen.heads(VALIDATION.z)) for chosen in (made, kept)]
    first, second = (metrics.average_precision(x, VALIDATION.labels, VALIDATION.known) for x in logits)
    np.testing.assert_allclose(first, second, atol=0.01)


@pytest.mark.parametrize("rule", ["cross_validated", "shrunken"])
@pytest.mark.parametrize("judged", [True, False], ids=["validation", "cross-validated"])
def test_the_rules_that_pick_take_sparse_labels(rule, judged):
    config = cftjax.TuningConfig(
        ga=SMALL.ga,
        polish=PolishConfig(l2=(0.01,), rule=rule, num_steps=10),
        choose=cftjax.config.ChooseConfig(rule=rule),
        order="polish_search",
    )
    dense = cftjax.fine_tune(TRAIN, VALIDATION if judged else None, toy.heads(), config=config)
    few = cftjax.fine_tune(stored(TRAIN), stored(VALIDATION) if judged else None, toy.heads(), config=config)
    np.testing.assert_array_equal(few.heads.kernel, dense.heads.kernel)
    assert few.names == dense.names


def test_known_rows_alone_have_the_score_of_all_rows_to_the_bit():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3000, 4)).round(2).astype(np.float32)
    labels, known = rng.random((3000, 4)) < 0.3, rng.random((3000, 4)) < [0.001, 0.05, 0.1, 0]
    for metric in metrics.METRICS:
        packed = metrics.score(metric, scores, labels, known)
        # Arrays of JAX are ranked as they come.
        whole = metrics.score(metric, *map(jax.numpy.asarray, (scores, labels, known)))
        np.testing.assert_array_equal(packed, whole)


def test_matrices_of_different_labels_are_not_taken_for_those_of_one():
    first, second = (sparse.of(split.given) for split in (TRAIN, VALIDATION))
    mixed = types.together(first.labels, second.known, None)
    assert type(mixed) is types.Labels
    np.testing.assert_array_equal(mixed.known, VALIDATION.known)
