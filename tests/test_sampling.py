import dataclasses

import jax
import numpy as np
import pytest
import toy

from cftjax.cft import sampling, search, spaces
from cftjax.config import GAConfig, TuningConfig, with_recipe


def seen(n=4000, shares=(0.02, 0.5, 0.9), known=(0.9, 0.5, 0.05)):
    rng = np.random.default_rng(0)
    labels, where = rng.random((n, len(shares))) < shares, rng.random((n, len(shares))) < known
    return spaces.Seen(np.zeros((n, 2), np.float32), np.zeros(labels.shape, np.float32), labels, where)


def test_a_sample_has_so_many_known_rows_in_the_shares_of_both_labels():
    whole = seen()
    some = sampling.sampled(whole, 640, [1])
    assert (some.known <= whole.known).all()
    assert list(some.known.sum(0)[:2]) == [640, 640]
    positives = (some.labels & some.known).sum(0)
    # Two in a hundred are fewer than one in sixteen.
    assert positives[0] == min(40, (whole.labels & whole.known).sum(0)[0])
    share = whole.labels[whole.known[:, 1], 1].mean()
    assert abs(positives[1] - 640 * share) <= 1
    np.testing.assert_array_equal(some.known[:, 2], whole.known[:, 2])


def test_where_no_category_has_more_rows_nothing_changes():
    whole = seen()
    assert sampling.sampled(whole, 4000, [0]) is whole
    assert sampling.sampled(whole, None, [0]) is whole


def test_a_category_s_sample_depends_on_the_seed_alone():
    whole = seen()
    some = sampling.sampled(whole, 200, [3])
    turned = dataclasses.replace(whole, **{name: getattr(whole, name)[:, ::-1] for name in ("base", "labels", "known")})
    np.testing.assert_array_equal(sampling.sampled(turned, 200, [3]).known[:, ::-1], some.known)
    assert (sampling.sampled(whole, 200, [4]).known != some.known).any()


def test_a_search_on_a_sample_is_the_search_of_those_rows_alone():
    train, validation = toy.embeddings(n=240), toy.embeddings(n=120, seed=1)
    config, key = GAConfig(population_size=8, num_generations=6, most_rows=64, dimensions=3), jax.random.key(2)
    space = spaces.principal_space(train, 3, white=True)
    drawn = sampling.sampled(spaces.see(train, toy.heads(), space), 64, search._words(key)).known
    by_sample = search.search(toy.heads(), train, validation, key=key, config=config)
    alone = dataclasses.replace(train, known=drawn)
    by_itself = search.search(
        toy.heads(), alone, validation, key=key, config=dataclasses.replace(config, most_rows=None)
    )
    np.testing.assert_array_equal(by_sample.after, by_itself.after)
    np.testing.assert_array_equal(by_sample.heads.kernel, by_itself.heads.kernel)


def test_the_published_search_scores_on_all_known_rows():
    assert with_recipe(TuningConfig(), "paper").ga.most_rows is None


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="most-rows 8"):
        GAConfig(most_rows=8)
