import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cftjax.cft import host_ranking, packing, ranking

N, SLOTS = 24, 24
WAYS = {
    "counting": functools.partial(ranking.by_counting, slots=SLOTS, platform="cpu"),
    "sorting": functools.partial(ranking.by_sorting, platform="cpu"),
    "counting on a TPU": functools.partial(ranking.by_counting, slots=SLOTS, platform="tpu"),
    "counting elsewhere": functools.partial(ranking.by_counting, slots=SLOTS, platform="gpu"),
    "sorting elsewhere": functools.partial(ranking.by_sorting, platform="gpu"),
}
COMPILED = {(way, metric): jax.jit(functools.partial(WAYS[way], metric)) for way in WAYS for metric in ("AP", "AUROC")}


def oracle(metric, scores, labels, where):
    scores, labels = scores[where], labels[where]
    if not labels.any() or labels.all():
        return np.nan
    return {"AP": average_precision_score, "AUROC": roc_auc_score}[metric](labels, scores)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-3, 3), min_size=N, max_size=N),
    st.lists(st.floats(-30, 30, width=32).map(lambda x: x if abs(x) > 1e-18 else 0.0), min_size=N, max_size=N),
    st.integers(0, N),
    st.lists(st.booleans(), min_size=N, max_size=N),
)
def test_all_ways_equal_scikit_learn_with_ties_and_unknown_rows(tied, untied, positives, known):
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
        jax.jit(functools.partial(ranking.by_counting, metric, slots=positives, platform="cpu"))(scores, labels, where),
        *(
            jax.jit(functools.partial(ranking.by_sorting, metric, platform=platform))(scores, labels, where)
            for platform in ("cpu", "gpu")
        ),
    ]
    expected = [oracle(metric, row, labels, where) for row in scores]
    for one in found:
        np.testing.assert_allclose(one, expected, atol=2e-6)


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
def test_padding_changes_no_bit_of_what_rows_of_a_gpu_score(metric):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 100)).round(1).astype(np.float32)
    labels, where = rng.random((1, 100)) < 0.3, rng.random((1, 100)) < 0.9
    score = jax.jit(functools.partial(ranking.by_sorting_rows, metric))
    found = score(scores, labels, where)
    for behind in (1, 28, 300):
        more = ((0, 0), (0, behind))
        np.testing.assert_array_equal(score(np.pad(scores, more), np.pad(labels, more), np.pad(where, more)), found)


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
@pytest.mark.parametrize("slots", [0, 16])
def test_a_groups_scores_are_lowered_for_accelerators(metric, slots):
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(64) < 9, (3, 1))
    scores = rng.normal(size=(3, 5, 64)).round(1).astype(np.float32)
    where = np.ones_like(labels)
    score = jax.jit(lambda *arrays: packing.ranking_scores(metric, *arrays, slots))
    expected = [[oracle(metric, row, labels[0], where[0]) for row in each] for each in scores]
    np.testing.assert_allclose(score(scores, labels, where), expected, atol=1e-6)
    exported = jax.export.export(score, platforms=["tpu", "cuda"])(scores, labels, where)
    assert set(exported.platforms) == {"tpu", "cuda"}


@pytest.mark.parametrize("n", [1, 2, 33, 640])
@pytest.mark.parametrize("largest", [5, 2**29])
def test_places_on_the_host_are_those_of_the_definition_alone_in_loops_and_in_batches(n, largest):
    keys = np.random.default_rng(n).integers(-largest, largest, (3, 4, n)).astype(np.int32)
    ordered = np.sort(keys, axis=-1)
    start = np.empty_like(keys)
    for row, of_row in zip(ordered.reshape(-1, n), start.reshape(-1, n), strict=True):
        of_row[:] = np.searchsorted(row >> 1, row >> 1)
    positive = ordered & 1
    before = np.cumsum(positive, axis=-1) - positive
    expected = start, positive, np.take_along_axis(before, start, axis=-1), before
    for way in (
        host_ranking.places,
        jax.jit(host_ranking.places),
        jax.jit(jax.vmap(host_ranking.places, in_axes=1, out_axes=1)),
        jax.jit(lambda keys: jax.lax.map(host_ranking.places, keys)),
    ):
        for found, wanted in zip(way(jnp.asarray(keys)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("metric", ["AP", "AUROC"])
@pytest.mark.parametrize("digits", [1, 7])
def test_a_cpu_s_scores_are_to_the_bit_those_of_any_sort(metric, digits):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(6, 700)).round(digits).astype(np.float32), rng.random(700) < 0.3
    where = rng.random(700) < 0.8
    by_host, by_xla = (
        jax.jit(functools.partial(ranking.by_sorting, metric, platform=platform))(scores, labels, where)
        for platform in ("cpu", "tpu")
    )
    np.testing.assert_array_equal(by_host, by_xla)
