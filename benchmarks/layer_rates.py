"""The learning rate of every depth group under layer decay, as docs/training.md has it.

python benchmarks/layer_rates.py 0.8 convnext_tiny densenet121 vit_small resnet50 efficientnet_lite0
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from cftjax.config import BackboneConfig
from cftjax.training import classifier, optimizer
from cftjax.training.classifier import Architecture


def rows(name: str, decay: float) -> list[tuple[str, int, float]]:
    """Of every depth group from the image on: its names, its number of parameters, and the factor on its rate."""
    model = classifier.abstract(Architecture(BackboneConfig(name), 1, jnp.float32))
    factors = optimizer.depth_factors(decay, model.depth_groups, model.params)["backbone"]
    paths = jax.tree_util.tree_leaves_with_path(factors)
    sizes = [leaf.size for leaf in jax.tree.leaves(model.params["backbone"])]
    named = [(".".join(str(key.key) for key in path), factor) for path, factor in paths]
    found = []
    for group in model.depth_groups:
        inside = [
            (size, factor)
            for (path, factor), size in zip(named, sizes, strict=True)
            if any(f"{path}.".startswith(f"{name}.") for name in group)
        ]
        if inside:
            (factor,) = {factor for _, factor in inside}
            found.append((" ".join(group), sum(size for size, _ in inside), factor))
    return found


def main() -> None:
    """Print a Markdown table for each backbone named."""
    decay = float(sys.argv[1])
    for name in sys.argv[2:]:
        print(f"\n{name}\n\n| depth group | parameters | rate, as a multiple of the head's |\n|---|---|---|")
        for group, size, factor in rows(name, decay):
            print(f"| `{group}` | {size:,} | {factor:.4f} |")


if __name__ == "__main__":
    main()
