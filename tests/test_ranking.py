import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax.cft import ranking

N, SLOTS = 24, 24
WAYS = {
    "counting": functools.partial(ranking.by_counting, slots=SLOTS),
    "sorting": ranking.by_sorting,
}
COMPILED = {(way, metric): jax.jit(functools.partial(WAYS[way], metric)) for way in WAYS for metric in ("AP", "AUROC")}


def oracle(metric, scores, labels, where):
    scores, labels = scores[where], labels[where]
    if not labels.any() or (metric == "AUROC" and labels.all()):
        return np.nan
    return {"AP": average_precision_score, "AUROC": roc_auc_score}[metric](labels, scores)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-3, 3), min_size=N, max_size=N),
    st.lists(st.floats(-30, 30, width=32).map(lambda x: x if abs(x) > 1e-18 else 0.0), min_size=N, max_size=N),
    st.integers(0, N),
    st.lists(st.booleans(), min_size=N, max_size=N),
)
def test_both_ways_equal_scikit_learn_with_ties_and_unknown_rows(tied, untied, positives, known):
    scores = np.array([tied, untied], np.float32)
    labels, where = np.arange(N) < positives, np.array(known)
    for (_, metric), score in COMPILED.items():
        expected = [oracle(metric, row, labels, where) for row in scores]
        np.testing.assert_allclose(score(scores, labels, where), expected, atol=1e-6)


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 640, 1000])
def test_both_ways_agree_at_any_length(metric, n):
    rng = np.random.default_rng(n)
    scores = rng.normal(size=(3, n)).round(1).astype(np.float32)
    positives = (n + 3) // 4
    labels, where = np.arange(n) < positives, rng.random(n) < 0.9
    found = [
        jax.jit(functools.partial(ranking.by_counting, metric, slots=positives))(scores, labels, where),
        jax.jit(functools.partial(ranking.by_sorting, metric))(scores, labels, where),
    ]
    expected = [oracle(metric, row, labels, where) for row in scores]
    for one in found:
        np.testing.assert_allclose(one, expected, atol=2e-6)


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
def test_accelerators_count_as_a_cpu_does(metric):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 40)).round(1).astype(np.float32)
    reach = functools.partial(
        ranking._num_reaching, jnp.asarray(scores), jnp.asarray(scores[:, :9]), 1 if metric == "AUROC" else 2
    )
    rows, slots = jnp.int32(40), jnp.int32(9)
    here = np.asarray(reach(rows, slots))
    ties = scores[:, :, None] == scores[:, None, :9]
    above = scores[:, :, None] > scores[:, None, :9]
    np.testing.assert_array_equal(here, (2 * above + (1 if metric == "AUROC" else 2) * ties).sum(1))
    lowered = jax.export.export(jax.jit(reach), platforms=["tpu", "cuda"])(rows, slots)
    assert set(lowered.platforms) == {"tpu", "cuda"}


@pytest.mark.parametrize("n", [1, 2, 5, 31, 32, 33, 640, 1023])
def test_the_network_sorts_columns_of_any_length(n):
    x = np.random.default_rng(n).integers(-50, 50, (n, 4)).astype(np.int32)
    np.testing.assert_array_equal(jax.jit(ranking.sorting_network)(x), np.sort(x, axis=0))
