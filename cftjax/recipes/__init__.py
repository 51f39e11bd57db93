"""Experiments by name: each module has a docstring with its commands, and a `get_config()` to start from."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from cftjax.config import Config


def names() -> list[str]:
    """All recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def read(name: str) -> Config[Any]:
    """The configuration of a recipe, one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}").get_config()
