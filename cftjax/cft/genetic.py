"""The genetic algorithm of Category-wise Fine-Tuning, as an evosax algorithm.

One candidate is one head: its genes. The published operators (Chong et al. 2023, sec. 3.3) are `selection="roulette"`
with `mutation="uniform"`; `selection="truncation"` and `mutation="adaptive"` are ours. evosax minimises, so fitness
here is the negated AP or AUROC.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from evosax.algorithms.population_based.base import Params as BaseParams
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from evosax.algorithms.population_based.base import State as BaseState
from flax import struct
from jaxtyping import Float, Int, UInt32

Selection = Literal["roulette", "truncation"]
Mutation = Literal["uniform", "adaptive"]


@struct.dataclass
class State(BaseState):
    """The population with its fitness, and the current scale of the mutation; arrays, as they are traced."""

    best_fitness: Any
    generation_counter: Any
    mutation_scale: jax.Array


@struct.dataclass
class Params(BaseParams):
    """What the operators are set to.

    Attributes:
        crossover_rate: probability that a gene comes from the first parent.
        mutation_rate: probability that a candidate mutates.
        mutation_scale: half width of the uniform step ("uniform"), or first standard deviation of a gene ("adaptive").
        parent_share: the share of the population that may breed ("truncation").
    """

    crossover_rate: jax.Array | float = 0.2
    mutation_rate: jax.Array | float = 0.5
    mutation_scale: jax.Array | float = 0.001
    parent_share: jax.Array | float = 0.2


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> UInt32[jax.Array, ...]:
    """32 random bits an element, by two rounds of an integer hash over a counter.

    A genetic algorithm needs one word per gene and generation; threefry would cost as much as the fitness of a small
    problem, this costs a few multiplications. Each call needs a fresh key.
    """
    words = jax.random.key_data(key).reshape(-1).astype(jnp.uint32)
    size = 1
    for extent in shape:
        size *= extent
    x = jax.lax.iota(jnp.uint32, size) * jnp.uint32(0x9E3779B1)
    for word in (words[0], words[-1]):
        x = x ^ word
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        x = x ^ (x >> 16)
    return x.reshape(shape)


def roulette(key: jax.Array, score: Float[jax.Array, " p"], num: int) -> Int[jax.Array, " num"]:
    """Indices drawn with replacement, in proportion to the score.

    Scores of zero and below are never drawn, unless there are no others, when every candidate is as likely as any
    other.
    """
    score = jnp.maximum(score, 0.0)
    score = jnp.where(jnp.any(score > 0), score, jnp.ones_like(score))
    total = jnp.cumsum(score)
    draw = jax.random.uniform(key, (num,)) * total[-1]
    return jnp.clip(jnp.searchsorted(total, draw, side="right", method="compare_all"), 0, score.shape[0] - 1)


def truncation(key: jax.Array, score: Float[jax.Array, " p"], num: int, share: Any) -> Int[jax.Array, " num"]:
    """Indices drawn with replacement, uniformly from the best `share` of the population."""
    parents = jnp.maximum(1, jnp.floor(share * score.shape[0])).astype(jnp.int32)
    draw = (jax.random.uniform(key, (num,)) * parents).astype(jnp.int32)
    return jnp.argsort(-score)[jnp.minimum(draw, parents - 1)]


def crossover(
    coin: UInt32[jax.Array, " d"], first: Float[jax.Array, " d"], second: Float[jax.Array, " d"], rate: Any
) -> Float[jax.Array, " d"]:
    """Uniform crossover: each gene from the first parent with probability `rate` (to within 2**-16), else the second.

    Args:
        coin: 16 random bits a gene.
        first: the first parent's genes.
        second: the second parent's genes.
        rate: probability of the first parent.
    """
    return jnp.where(coin < jnp.uint32(jnp.round(rate * 65536)), first, second)


class GeneticAlgorithm(PopulationBasedAlgorithm):
    """Selection of two parents, uniform crossover, mutation of whole candidates, and the best of the old survives."""

    def __init__(
        self,
        population_size: int,
        solution: Any,
        selection: Selection = "roulette",
        mutation: Mutation = "uniform",
        **kwargs: Any,
    ):
        """Choose the operators; their numbers are in `Params`.

        Args:
            population_size: candidates, at least 2.
            solution: an array of the shape of one candidate's genes.
            selection: `roulette` (fitness-proportional, as published) or `truncation` (uniform among the best).
            mutation: `uniform` (every gene moves by U(-scale, scale), as published) or `adaptive` (a normal step whose
                scale grows by half after a generation that found a better candidate and shrinks a little after one that
                did not, the 1/5 rule).
            **kwargs: passed to evosax.
        """
        super().__init__(population_size, solution, **kwargs)
        self.selection = selection
        self.mutation = mutation

    @property
    def _default_params(self) -> Params:
        return Params()

    def _init(self, key: jax.Array, params: Any) -> Any:
        return State(
            population=jnp.full((self.population_size, self.num_dims), jnp.nan),
            fitness=jnp.full((self.population_size,), jnp.inf),
            best_solution=jnp.full((self.num_dims,), jnp.nan),
            best_fitness=jnp.inf,
            generation_counter=0,
            mutation_scale=jnp.asarray(params.mutation_scale, jnp.float32),
        )

    def _ask(self, key: jax.Array, state: Any, params: Any) -> tuple[jax.Array, Any]:
        score = -state.fitness
        score = jnp.where(jnp.isnan(score), -jnp.inf, score)
        key_1, key_2, key_genes, key_mutates = jax.random.split(key, 4)
        if self.selection == "roulette":
            parents = [roulette(k, score, self.population_size) for k in (key_1, key_2)]
        else:
            parents = [truncation(k, score, self.population_size, params.parent_share) for k in (key_1, key_2)]
        first, second = (state.population[indices] for indices in parents)

        # One word a gene serves both operators: the low half is the crossover's coin, the high half the mutation's
        # step.
        word = random_bits(key_genes, first.shape)
        children = jax.vmap(crossover, (0, 0, 0, None))(word & 0xFFFF, first, second, params.crossover_rate)
        uniform = ((word >> 16).astype(jnp.float32) + 0.5) / 32768.0 - 1.0
        step = uniform if self.mutation == "uniform" else jnp.sqrt(2.0) * jax.lax.erf_inv(uniform)
        mutates = jax.random.uniform(key_mutates, (self.population_size, 1)) < params.mutation_rate
        children = children + jnp.where(mutates, state.mutation_scale * step, 0.0)

        best = state.population[jnp.argmax(score)]
        return children.at[0].set(best), state

    def _tell(self, key: jax.Array, population: jax.Array, fitness: jax.Array, state: Any, params: Any) -> Any:
        scale = state.mutation_scale
        if self.mutation == "adaptive":
            # The first is the best of the old, on the rows of this generation.
            improved = jnp.min(fitness) < fitness[0]
            scale = scale * jnp.where(improved, 1.5, 1.5 ** (-1 / 4))
        return state.replace(population=population, fitness=fitness, mutation_scale=scale)
