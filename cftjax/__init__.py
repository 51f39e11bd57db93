"""Category-wise Fine-Tuning of multi-label image classifiers trained with partial labels.

With arrays: `fine_tune`, or its parts `search`, `polish` and `choose`; scores in `metrics`, losses in `losses`. With
a run that `python -m cftjax.train` or `python -m cftjax.finetune` made: `open_run`. With images: `load`, the model of a
run.
"""

from __future__ import annotations

import os
from pathlib import Path

from cftjax import losses, metrics
from cftjax.cft.choose import choose
from cftjax.cft.polish import polish
from cftjax.cft.search import search
from cftjax.cft.tuning import fine_tune
from cftjax.config import TuningConfig, with_recipe
from cftjax.decisions import Decisions
from cftjax.model import Model, load
from cftjax.runs import Run
from cftjax.types import Embeddings, Heads

__all__ = [
    "Decisions",
    "Embeddings",
    "Heads",
    "Model",
    "Run",
    "TuningConfig",
    "choose",
    "fine_tune",
    "load",
    "losses",
    "metrics",
    "open_run",
    "polish",
    "search",
    "with_recipe",
]


def open_run(folder: str | os.PathLike[str]) -> Run:
    """A finished or unfinished run: its `embeddings(split)`, `heads(stage)`, `categories` and `config`."""
    return Run(Path(folder))
