"""List the recipes, or print one to start a configuration of your own from: `cftjax recipes csv > mine.py`."""

from __future__ import annotations

import importlib
import inspect
import sys

from cftjax import cli, recipes
from cftjax.text import closest


def main() -> None:
    """Print what there is, or the file of the one that is named."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        print("usage: cftjax recipes [NAME]\n")
        for name in recipes.names():
            print(f"  {name:<16} {first_line(name)}")
        print("\ncftjax train NAME trains one; cftjax recipes NAME > mine.py makes it yours: cftjax train mine.py")
        return
    if words[0] not in recipes.names():
        raise ValueError(f"no recipe {words[0]}; cftjax {closest(words[0], recipes.names())}")
    print(inspect.getsource(importlib.import_module(f"cftjax.recipes.{words[0]}")), end="")


def first_line(name: str) -> str:
    """What a recipe says of itself."""
    return (importlib.import_module(f"cftjax.recipes.{name}").__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    cli.run(main)
