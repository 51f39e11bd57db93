import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cftjax.cft import algorithms, genetic
from cftjax.config import GAConfig

P, D = 50, 7


def published(**kwargs):
    algorithm = genetic.GeneticAlgorithm(P, jnp.zeros(D), "roulette", "uniform")
    return algorithm, algorithm.default_params.replace(**kwargs)


def started(algorithm, params, population, score):
    return algorithm.init(jax.random.key(0), population, -score, params)


def test_roulette_draws_in_proportion_to_the_score():
    score = jnp.array([0.1, 0.0, 0.4, 0.5])
    drawn = np.bincount(genetic.roulette(jax.random.key(0), score, 40_000), minlength=4) / 40_000
    np.testing.assert_allclose(drawn, score, atol=0.01)


def test_roulette_without_any_positive_score_is_uniform():
    drawn = np.bincount(genetic.roulette(jax.random.key(0), jnp.zeros(4), 40_000), minlength=4) / 40_000
    np.testing.assert_allclose(drawn, 0.25, atol=0.01)


def test_truncation_draws_evenly_from_the_best_share_only():
    score = jax.random.permutation(jax.random.key(1), jnp.arange(20.0))
    drawn = genetic.truncation(jax.random.key(0), score, 40_000, 0.2)
    counts = np.bincount(drawn, minlength=20) / 40_000
    best = np.argsort(-np.asarray(score))[:4]
    np.testing.assert_allclose(counts[best], 0.25, atol=0.01)
    assert counts.sum() == pytest.approx(counts[best].sum())


def test_a_gene_comes_from_the_first_parent_with_the_crossover_rate():
    bits = genetic.random_bits(jax.random.key(3), (200_000,)) & 0xFFFF
    child = genetic.crossover(bits, jnp.ones(200_000), jnp.zeros(200_000), 0.2)
    assert set(np.unique(child)) == {0.0, 1.0}
    assert float(child.mean()) == pytest.approx(0.2, abs=0.005)


def test_random_bits_are_balanced_uncorrelated_and_change_with_the_key():
    a, b = (np.asarray(genetic.random_bits(jax.random.key(i), (1 << 16,))) for i in (0, 1))
    bits = np.unpackbits(a.view(np.uint8)).reshape(-1, 32)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(bits.T) - np.eye(32)).max() < 0.02
    unit = a / 2**32
    assert abs(np.corrcoef(unit[1:], unit[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(unit, b / 2**32)[0, 1]) < 0.02
    assert len(np.unique(a)) > 65_000


def test_half_of_the_candidates_mutate_each_in_every_gene_by_at_most_the_scale():
    algorithm, params = published()
    state = started(algorithm, params, jnp.zeros((P, D)), jnp.full(P, 0.5))
    mutated, steps = [], []
    for i in range(60):
        children, _ = algorithm.ask(jax.random.key(i), state, params)
        moved = np.asarray(children) != 0
        assert not moved[0].any()  # the elite
        assert np.array_equal(moved[1:].all(1), moved[1:].any(1))
        mutated.append(moved[1:].all(1))
        steps.append(np.asarray(children)[1:][moved[1:].all(1)].ravel())
    assert np.mean(mutated) == pytest.approx(0.5, abs=0.03)
    steps = np.concatenate(steps)
    assert np.abs(steps).max() <= 0.001
    assert steps.std() == pytest.approx(0.001 / np.sqrt(3), rel=0.03)  # U(-a, a)
    assert steps.mean() == pytest.approx(0.0, abs=2e-5)


def test_children_without_mutation_are_mixtures_of_the_population():
    algorithm, params = published(mutation_rate=0.0)
    population = jnp.broadcast_to(jnp.arange(P, dtype=jnp.float32)[:, None], (P, D))
    state = started(algorithm, params, population, jnp.linspace(0.1, 1.0, P))
    children = np.asarray(algorithm.ask(jax.random.key(0), state, params)[0])
    assert np.isin(children, np.arange(P)).all()
    assert (np.array([len(np.unique(child)) for child in children]) <= 2).all()


def test_the_best_of_the_old_population_survives():
    algorithm, params = published()
    population = jax.random.normal(jax.random.key(0), (P, D))
    score = jnp.linspace(0.1, 0.9, P)
    children, _ = algorithm.ask(jax.random.key(1), started(algorithm, params, population, score), params)
    assert jnp.array_equal(children[0], population[-1])


def test_an_adaptive_mutation_grows_with_success_and_shrinks_without():
    algorithm = genetic.GeneticAlgorithm(P, jnp.zeros(D), "truncation", "adaptive")
    params = algorithm.default_params.replace(mutation_scale=0.1)
    state = started(algorithm, params, jnp.zeros((P, D)), jnp.full(P, 0.5))
    better, _ = algorithm.tell(jax.random.key(0), jnp.zeros((P, D)), jnp.full(P, -0.6).at[0].set(0.5), state, params)
    worse, _ = algorithm.tell(jax.random.key(0), jnp.zeros((P, D)), jnp.full(P, -0.4).at[0].set(-0.5), state, params)
    assert better.mutation_scale == pytest.approx(0.15)
    assert worse.mutation_scale == pytest.approx(0.1 / 1.5**0.25)


@pytest.mark.parametrize("name", ["GA", "SNES", "Open_ES", "DifferentialEvolution"])
def test_every_algorithm_climbs_a_hill_from_the_same_start(name):
    config = GAConfig(algorithm=name, population_size=P, mutation_scale=0.1)
    algorithm, params = algorithms.create(config, D)
    target = jnp.linspace(-1, 1, D)

    def fitness(population):
        return jnp.sum((population - target[None, :]) ** 2, axis=-1)

    population = jnp.zeros((P, D)) + 0.01 * jax.random.normal(jax.random.key(1), (P, D))
    state = algorithms.start(algorithm, params, jax.random.key(0), population, fitness(population))

    @jax.jit
    def generation(state, key):
        population, state = algorithm.ask(key, state, params)
        state, _ = algorithm.tell(key, population, fitness(population), state, params)
        return state, fitness(population).min()

    with jax.numpy_rank_promotion("allow"):  # inside evosax
        _, best = jax.lax.scan(generation, state, jax.random.split(jax.random.key(2), 100))
    assert float(best.min()) < 0.5 * float(fitness(jnp.zeros((1, D)))[0])


def test_an_unknown_algorithm_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match="Sep_CMA_ES"):
        algorithms.create(GAConfig(algorithm="SepCMAES"), D)
