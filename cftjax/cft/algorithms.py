"""Any evosax algorithm behind one interface: ours by default, others by their evosax name.

evosax computes as soon as it is imported, which takes hold of the devices. Several hosts must have joined before that,
so that here it is imported where it is used.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cftjax.config import GAConfig

OURS = "GA"


def create(config: GAConfig, num_genes: int) -> tuple[Any, Any]:
    """The algorithm and its parameters.

    Args:
        config: `algorithm` is "GA" or a name of `evosax.algorithms.algorithms`.
        num_genes: length of one candidate.

    Raises:
        ValueError: for a name that evosax does not have.
    """
    from evosax.algorithms import algorithms as evosax_algorithms

    from cftjax.cft.genetic import GeneticAlgorithm

    solution = jnp.zeros((num_genes,), jnp.float32)
    if config.algorithm == OURS:
        ours = GeneticAlgorithm(config.population_size, solution, config.selection, config.mutation)
        params = ours.default_params.replace(
            crossover_rate=config.crossover_rate,
            mutation_rate=config.mutation_rate,
            mutation_scale=config.mutation_scale,
            parent_share=config.parent_share,
        )
        return ours, params
    if config.algorithm not in evosax_algorithms:
        near = difflib.get_close_matches(config.algorithm, [OURS, *evosax_algorithms], n=3, cutoff=0.3)
        raise ValueError(f"ga.algorithm {config.algorithm!r} is not known; did you mean {', '.join(near) or OURS}?")
    make = evosax_algorithms[config.algorithm]
    takes = inspect.signature(make).parameters
    options: dict[str, Any] = {}
    if "std_schedule" in takes:
        # Algorithms with a schedule for the spread leave the step length to the optimizer; one scale serves both.
        options["std_schedule"] = optax.constant_schedule(config.mutation_scale)
        if "optimizer" in takes:
            options["optimizer"] = optax.adam(config.mutation_scale)
    theirs = make(config.population_size, solution, **options)
    params = theirs.default_params
    if hasattr(params, "std_init"):
        params = params.replace(std_init=config.mutation_scale)
    return theirs, params


def start(algorithm: Any, params: Any, key: jax.Array, population: jax.Array, fitness: jax.Array) -> Any:
    """First state: population-based ones take the evaluated population, distribution-based ones its best as mean."""
    from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

    if isinstance(algorithm, PopulationBasedAlgorithm):
        return algorithm.init(key, population, fitness, params)
    return algorithm.init(key, population[jnp.argmin(fitness)], params)
