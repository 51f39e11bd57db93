"""Category-wise Fine-Tuning of multi-label image classifiers trained with partial labels.

With arrays: `fine_tune`, `CategoryWiseFineTuner` (the same as an estimator of scikit-learn), or the parts `search`,
`polish` and `choose`; scores in `metrics`, losses in `losses`. With a run that `cftjax train` or `cftjax finetune`
made: `open_run`. With images: `load`, the model of a run, here or on the Hugging Face hub. With a model of PyTorch or
Keras: `cftjax.torch.fine_tune`, `cftjax.keras.fine_tune`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from cftjax import losses, metrics
from cftjax.cft.choose import choose
from cftjax.cft.polish import polish
from cftjax.cft.search import search
from cftjax.cft.tuning import fine_tune
from cftjax.config import TuningConfig, with_recipe
from cftjax.decisions import Decisions
from cftjax.estimator import CategoryWiseFineTuner
from cftjax.inference.loading import load
from cftjax.inference.model import Model
from cftjax.runs import Run
from cftjax.types import Embeddings, Heads

__all__ = [
    "CategoryWiseFineTuner",
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


# What is imported when it is asked for: modules by the names that they had before they had rooms of their own, as
# notebooks and scripts import them, and adapters of libraries that need not be installed.
_LATE = {
    "bundles": "cftjax.embeddings.bundles",
    "formats": "cftjax.inference.formats",
    "keras": "cftjax.interop.keras3",
    "torch": "cftjax.interop.pytorch",
}


def __getattr__(name: str) -> ModuleType:
    """A module that is imported late."""
    if name in _LATE:
        return importlib.import_module(_LATE[name])
    raise AttributeError(f"module 'cftjax' has no attribute {name!r}")
