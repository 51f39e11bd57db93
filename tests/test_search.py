import dataclasses

import jax
import numpy as np
import pytest
import toy

from cftjax import metrics
from cftjax.cft import evolution, extents, packing, spaces
from cftjax.cft import search as searching
from cftjax.config import GAConfig
from cftjax.types import Embeddings, Heads

PAPER = GAConfig(
    population_size=12,
    num_generations=100,
    patience=300,
    dimensions=None,
    selection="roulette",
    mutation="uniform",
    mutation_scale=0.05,
    restarts=0,
    refit_bias=False,
)
OURS = GAConfig(population_size=12, num_generations=60, patience=30, dimensions=4, mutation_scale=0.2, restarts=0)
RECIPES = pytest.mark.parametrize("config", [PAPER, OURS], ids=["paper", "ours"])
KEY = jax.random.key(0)
TRAIN, VALIDATION = toy.embeddings(seed=0), toy.embeddings(seed=1, known=0.9)


@pytest.fixture(scope="module")
def found():
    configs = {"paper": PAPER, "ours": OURS}
    return {name: searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=c) for name, c in configs.items()}


def scores(heads, split, metric="AP"):
    return np.asarray(metrics.score(metric, np.asarray(heads(split.z)), split.labels, split.known))


@pytest.mark.parametrize("name", ["paper", "ours"])
def test_the_score_reported_is_that_of_the_head_returned_and_never_falls(found, name):
    result = found[name]
    np.testing.assert_allclose(result.before, scores(toy.heads(), VALIDATION), atol=1e-5)
    np.testing.assert_allclose(result.after, scores(result.heads, VALIDATION), atol=0.01)
    assert (result.after > result.before).all()
    for history in result.history.T:
        seen = history[~np.isnan(history)]
        assert (np.diff(seen) >= 0).all()


@RECIPES
def test_same_key_same_heads_and_another_key_others(config, found):
    a, b, c = (
        searching.search(toy.heads(), TRAIN, VALIDATION, key=jax.random.key(k), config=config) for k in (0, 0, 1)
    )
    assert np.array_equal(a.heads.kernel, b.heads.kernel)
    assert not np.array_equal(a.heads.kernel, c.heads.kernel)


def test_permuting_categories_permutes_heads(found):
    order = [2, 0, 1]
    heads = toy.heads()
    result = searching.search(
        Heads(heads.kernel[order], heads.bias[order]),
        toy.permuted(TRAIN, order),
        toy.permuted(VALIDATION, order),
        key=KEY,
        config=PAPER,
    )
    assert np.array_equal(result.heads.kernel, found["paper"].heads.kernel[order])
    assert np.array_equal(result.heads.bias, found["paper"].heads.bias[order])


def test_group_sizes_and_devices_agree(found):
    grouped = searching.search(
        toy.heads(), TRAIN, VALIDATION, key=KEY, config=dataclasses.replace(PAPER, categories_at_once=3)
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=PAPER, mesh=mesh)
    for other in (grouped, sharded):
        np.testing.assert_array_equal(other.heads.kernel, found["paper"].heads.kernel)
        np.testing.assert_array_equal(other.history, found["paper"].history)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_an_interrupted_search_saves_and_goes_on_to_the_same_heads(found, monkeypatch, seconds):
    monkeypatch.setattr(searching, "SECONDS_BETWEEN_SAVES", seconds)
    store, calls = {}, []

    def interrupt(done, total, score):
        calls.append(done)
        if len(calls) == 4:  # a chunk into the second category
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=PAPER, store=store, progress=interrupt)
    assert any(name.endswith("-done") for name in store)
    done = sum(name.endswith("-done") for name in store)
    assert len(store) == done + (done + 1 if seconds == 0 else 1)  # the one under way, be it between two saves
    resumed = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=PAPER, store=store)
    np.testing.assert_array_equal(resumed.heads.kernel, found["paper"].heads.kernel)
    np.testing.assert_array_equal(resumed.history, found["paper"].history)


def test_the_mean_that_is_told_is_over_all_categories_and_never_falls(found):
    told = []
    searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=PAPER, progress=lambda *news: told.append(news[2]))
    before, after = found["paper"].before, found["paper"].after
    # With the first news the first category alone has moved.
    assert before.mean() <= told[0] <= before.mean() + (after - before).max() / 3 + 1e-6
    assert (np.diff(told) >= -1e-6).all()
    np.testing.assert_allclose(told[-1], after.mean(), atol=1e-6)


def test_a_search_stops_after_its_patience():
    config = dataclasses.replace(PAPER, patience=5, mutation_scale=0.0)
    result = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    assert (~np.isnan(result.history)).sum(0).tolist() == [5, 5, 5]
    np.testing.assert_array_equal(result.heads.kernel, toy.heads().kernel)


def test_best_fitness_on_train_never_falls_under_the_published_operators():
    engine = evolution.engine_for(PAPER, toy.DIM, True, None)
    seen = [spaces.see(s, toy.heads(), spaces.Space()) for s in (TRAIN, VALIDATION)]
    rows = [packing.rows_of(s, [0], packing.Shape(256, 64), np.ones(3, np.float32), add_base=False) for s in seen]
    genes = np.append(toy.heads().kernel[0], 0.0).astype(np.float32)[None, None]
    state = engine.start(*rows, genes, KEY)
    best = []
    for _ in range(40):
        state, _ = engine.advance(state, *rows, KEY, np.int32(1))
        best.append(-float(np.min(state.algorithm.fitness)))
    assert (np.diff(best) >= 0).all()
    assert best[-1] > best[0]


def test_categories_that_cannot_be_judged_stay_as_they_were_and_are_named():
    labels, known = TRAIN.labels.copy(), TRAIN.known.copy()
    labels[:, 0] = False
    known[:, 1] = False
    train = Embeddings(TRAIN.z, labels, known)
    result = searching.search(toy.heads(), train, VALIDATION, key=KEY, config=OURS)
    assert result.untuned == {0: "no known positive in train", 1: "no known positive in train"}
    assert np.array_equal(result.heads.kernel[:2], toy.heads().kernel[:2])
    assert np.array_equal(result.heads.bias[:2], toy.heads().bias[:2])
    assert np.isnan(result.after[:2]).all()
    assert result.after[2] > result.before[2]


@RECIPES
def test_embeddings_per_category_are_searched_like_shared_ones(config):
    n = len(TRAIN)
    spread = [Embeddings(np.repeat(s.z[:, None], 3, 1), s.labels, s.known) for s in (TRAIN, VALIDATION)]
    shared = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    each = searching.search(toy.heads(), *spread, key=KEY, config=config)
    assert spread[0].z.shape == (n, 3, toy.DIM)
    np.testing.assert_allclose(each.after, shared.after, atol=0.02)


@pytest.mark.parametrize("many", [packing.MANY_ROWS, 1])
def test_the_refitted_bias_gives_the_known_share_of_positives(many, monkeypatch):
    monkeypatch.setattr(packing, "MANY_ROWS", many)
    monkeypatch.setattr(packing, "SCORES_BYTES", 4 * len(TRAIN))
    bias = packing.refit_bias(toy.heads(), TRAIN, [0, 2])
    kernel = toy.heads().kernel
    for c in (0, 2):
        rows = TRAIN.known[:, c]
        probability = 1 / (1 + np.exp(-(TRAIN.z[rows] @ kernel[c] + bias[c])))
        share = (TRAIN.labels[rows, c].sum() + 0.5) / (rows.sum() + 1)
        assert probability.mean() == pytest.approx(share, abs=1e-5)
    assert bias[1] == 0.0


def test_principal_directions_are_white_and_steps_translate_to_kernels():
    space = spaces.principal_space(TRAIN, 4, white=True)
    seen = spaces.see(TRAIN, toy.heads(), space)
    np.testing.assert_allclose(np.cov(seen.z.T, bias=True), np.eye(4), atol=1e-3)
    genes = np.array([1.0, -0.5, 0.2, 2.0], np.float32)
    kernel, shift = space.step(genes, 0)
    expected = seen.base[:, 0] + seen.z @ genes
    found = TRAIN.z @ (toy.heads().kernel[0] + kernel) + shift
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_coordinates_for_a_ridge_keep_their_proportions_and_vary_by_one_together():
    train = dataclasses.replace(TRAIN, z=TRAIN.z * np.float32([1, 5, 0.2, 1, 0]))
    space = spaces.principal_space(train, None, white=False)
    z = spaces.see(train, toy.heads(), space).z
    varying = train.z[:, :4]
    correlation = np.corrcoef(varying.T) * 4 / 5  # the fifth dimension never varies, and counts with nothing
    np.testing.assert_allclose(np.sort(np.var(z, axis=0)), np.sort(np.linalg.eigvalsh(correlation)) / 4, atol=1e-4)


def test_other_heads_become_the_nearest_genes():
    everything = spaces.principal_space(TRAIN, None, white=True)
    other = toy.heads(seed=8)
    unit = np.float32([0.5, 1, 2])
    genes = spaces.as_genes([toy.heads(), other], everything, unit)
    np.testing.assert_array_equal(genes[:, 0], 0)
    for c in range(3):
        step, _ = everything.step(genes[c, 1] * unit[c], c)
        np.testing.assert_allclose(toy.heads().kernel[c] + step, other.kernel[c], atol=1e-4)


def test_a_better_seed_is_found_in_the_first_population():
    good = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=PAPER).heads
    config = dataclasses.replace(PAPER, num_generations=1, mutation_scale=0.0)
    alone = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    seeded = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config, seeds=[good])
    assert (alone.after == alone.before).all()
    assert (seeded.after > seeded.before).all()


def seen_at(known, labels):
    return spaces.Seen(np.zeros((len(known), 1), np.float32), np.zeros(known.shape, np.float32), labels, known)


def test_padding_wastes_less_than_a_fifth_and_groups_hold_one_shape():
    for count in range(500, 30_000, 7):
        assert count <= extents.padded_length(count)
        assert count > 0.8 * extents.padded_length(count)
    rng = np.random.default_rng(0)
    known, labels = rng.random((6000, 40)) < np.linspace(0.05, 0.8, 40), rng.random((6000, 40)) < 0.1
    seen = seen_at(known, labels)
    groups = packing.groups(seen, seen, range(40), 4)
    assert sorted(c for group in groups for c in group.categories) == list(range(40))
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert len(group.categories) <= 4
        for c in group.categories:
            assert group.train.length >= extents.padded_length(int(known[:, c].sum()))
            assert group.validation.length >= extents.padded_length(int(known[:, c].sum()), 1)
            positives = int((known & labels)[:, c].sum())
            assert positives <= group.train.slots or positives > max(
                extents.COUNTED_POSITIVES, group.train.length // 16
            )


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_few_shapes_are_compiled_for_little_padding(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    known = rng.random((20_000, 60)) < np.geomspace(0.02, 0.9, 60)
    seen = seen_at(known, rng.random(known.shape) < 0.004)
    groups = packing.groups(seen, seen, range(60), 60)
    own = [packing.groups(seen, seen, [c], 1)[0] for c in range(60)]
    shapes, alone = ({(group.train, group.validation) for group in found} for found in (groups, own))
    assert len(shapes) < len(alone) / 2
    rows, least = (
        sum(len(group.categories) * (group.train.length + group.validation.length) for group in found)
        for found in (groups, own)
    )
    assert least <= rows <= 1.2 * least


def test_groups_are_bounded_by_the_hosts_memory_as_by_the_devices(monkeypatch, tmp_path):
    from cftjax.runtime import memory

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for name, text in (("MEMINFO", "MemAvailable:  8192 kB\n"), ("LIMIT", "6291456\n"), ("USED", "2097152\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "MEMINFO")
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "none")
    assert packing.categories_at_once(2.0**20, 1) == 4
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "LIMIT")
    monkeypatch.setattr(memory, "USED", tmp_path / "USED")
    assert packing.categories_at_once(2.0**20, 1) == 2
    assert packing.categories_at_once(2.0**20, 2) == 2
    assert packing.categories_at_once(2.0**12, 1) == 512
    assert packing.categories_at_once(2.0**40, 2) == 2


def test_ms_coco_at_ten_percent_is_one_shape_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rng = np.random.default_rng(0)
    known = rng.random((82_783, 80)) < 0.1
    seen = seen_at(known, rng.random(known.shape) < np.geomspace(0.0015, 0.55, 80))
    assert len(packing.groups(seen, seen, range(80), 80)) == 1


def test_packed_rows_hold_the_positives_first():
    seen = spaces.see(TRAIN, toy.heads(), spaces.Space())
    shape = packing.Shape(256, 64)
    rows = packing.rows_of(seen, [1], shape, np.ones(3, np.float32))
    known = TRAIN.known[:, 1]
    positives = int((TRAIN.labels[:, 1] & known).sum())
    assert rows.labels[0, :positives].all()
    assert not rows.labels[0, positives:].any()
    assert rows.where[0].sum() == known.sum()
    assert sorted(rows.base[0, :positives]) == sorted(seen.base[known & TRAIN.labels[:, 1], 1])


def test_categories_that_stopped_leave_the_group_and_nothing_changes(monkeypatch):
    monkeypatch.setattr(evolution, "GENERATIONS_AT_ONCE", 5)
    monkeypatch.setattr(evolution, "FEWEST", 1)
    evolution.engine_for.cache_clear()
    config = dataclasses.replace(PAPER, patience=7, categories_at_once=3)
    together = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    alone = searching.search(
        toy.heads(), TRAIN, VALIDATION, key=KEY, config=dataclasses.replace(config, categories_at_once=1)
    )
    evolution.engine_for.cache_clear()
    stopped = (~np.isnan(together.history)).sum(0)
    assert len(set(stopped)) > 1
    np.testing.assert_array_equal(together.heads.kernel, alone.heads.kernel)
    np.testing.assert_array_equal(together.history, alone.history)


def test_embeddings_in_bfloat16_rank_nearly_alike(found):
    config = dataclasses.replace(OURS, embeddings_dtype="bfloat16")
    half = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    np.testing.assert_allclose(half.before, found["ours"].before, atol=0.03)
    assert (scores(half.heads, VALIDATION) > half.before).all()


def test_rows_drawn_for_a_generation_leave_every_category_something_to_rank():
    rows = spaces_rows(share_of_positives=0.02)
    some = evolution._some_rows(rows, jax.random.key(0), 0.3)
    where = np.asarray(some.where)
    assert 0.2 * rows.where.sum() < where.sum() < 0.45 * rows.where.sum()
    assert not (where & ~rows.where).any()
    none = evolution._some_rows(rows, jax.random.key(0), 1e-6)
    np.testing.assert_array_equal(none.where, rows.where)


def spaces_rows(share_of_positives):
    rng = np.random.default_rng(0)
    labels, where = rng.random((1, 512)) < share_of_positives, np.arange(512)[None] < 400
    z, base, part = np.zeros((1, 512, 2), np.float32), np.zeros((1, 512), np.float32), np.zeros((1, 512), np.int32)
    return packing.Rows(z, base, labels, where, part, 0)


def test_restarts_go_on_where_patience_has_run_out():
    config = dataclasses.replace(OURS, patience=4, num_generations=100)
    once = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=config)
    again = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=dataclasses.replace(config, restarts=3))
    generations = [(~np.isnan(result.history)).sum(0) for result in (once, again)]
    assert (generations[1] >= generations[0] + 4).all()
    assert (again.after >= once.after).all()


def test_seeds_begin_the_search_further_on():
    config = dataclasses.replace(OURS, num_generations=1, mutation_scale=1e-6, row_share=1.0)
    alone, seeded = (
        searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=dataclasses.replace(config, seeds=seeds))
        for seeds in ((), ("shrunken", "gradient"))
    )
    np.testing.assert_allclose(alone.after, alone.before, atol=1e-3)
    assert (seeded.after > seeded.before).all()


def test_a_gradient_step_lowers_the_loss_of_the_known_labels():
    seen = spaces.see(TRAIN, toy.heads(), spaces.Space())
    for c in range(3):
        rows = TRAIN.known[:, c]
        z, signs = TRAIN.z[rows], np.where(TRAIN.labels[rows, c], -1, 1)
        before = np.logaddexp(0, signs * seen.base[rows, c]).mean()
        after = np.logaddexp(0, signs * (seen.base[rows, c] + z @ spaces.gradient_step(seen, c))).mean()
        assert after < before - 0.01


def test_directions_found_already_give_the_same_space():
    leading = spaces.leading_directions(TRAIN.z, 3)
    for white in (True, False):
        again = spaces.principal_space(TRAIN, 2, white=white, leading=leading)
        fresh = spaces.principal_space(TRAIN, 2, white=white)
        np.testing.assert_array_equal(again.directions, fresh.directions)
        np.testing.assert_array_equal(again.mean, fresh.mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population_size": 1}, "population-size 1"),
        ({"patience": 0}, "patience"),
        ({"row_share": 0.0}, "row-share 0.0"),
        ({"crossover_rate": 1.5}, "crossover-rate 1.5"),
        ({"dimensions": 0}, "dimensions 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        GAConfig(**changes)


def test_a_search_of_noise_finds_nothing_on_the_half_that_it_did_not_look_at():
    rng = np.random.default_rng(0)
    splits = [
        Embeddings(rng.normal(size=(160, 5)).astype(np.float32), rng.random((160, 8)) < 0.3, np.ones((160, 8), bool))
        for _ in range(2)
    ]
    heads = Heads(rng.normal(size=(8, 5)).astype(np.float32), np.zeros(8, np.float32))
    config = GAConfig(
        population_size=12, patience=5, restarts=20, num_generations=100, dimensions=5, mutation_scale=0.5
    )
    noise = searching.search(heads, *splits, key=KEY, config=config)
    assert (noise.after - noise.before).mean() > 0.02
    assert noise.held_out.mean() < (noise.after - noise.before).mean() / 3
    real = searching.search(toy.heads(), TRAIN, VALIDATION, key=KEY, config=dataclasses.replace(config, dimensions=4))
    assert real.held_out.mean() > 0.02
    np.testing.assert_allclose(real.fair_scores, real.before + real.held_out)
