"""Look at a data set before training: `cftjax data summary RECIPE` and `… check RECIPE`.

The configuration and the options of data, labels and split are those of training.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import tyro
from rich.console import Console

from cftjax import cli, figures, short_help, types
from cftjax.config import LabelsConfig, SplitConfig
from cftjax.data import preflight
from cftjax.data.looking import checking, overview
from cftjax.data.looking import summary as summaries
from cftjax.default import get_config
from cftjax.report.printing import FULL_WIDTH
from cftjax.runtime import storage
from cftjax.text import printable

D = TypeVar("D")

USAGE = """usage: cftjax data {summary,check} [RECIPE or CONFIG.py] [--data.option VALUE ...]

  summary   images, patients, labels of every category, sizes, missing and repeated files
  check     open and decode every image, and list what is broken

cftjax data summary RECIPE --help lists the options; cftjax recipes lists the recipes."""
# Broken images printed; the file of --json lists all.
MOST_PRINTED = 200
# Every pair of them is counted and drawn.
MOST_CATEGORIES = 200
STOPPED = "Stopped."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(Generic[D]):
    """What the data set holds, as training would use it; images are not decoded, only their headers read."""

    data: D
    labels: LabelsConfig
    split: SplitConfig
    json: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Write everything that was counted to this file."""
    picture: Path | None = None
    """Draw labels per category and co-occurrence into this PNG."""
    contents: bool = False
    """Compare what the files hold, to find the same image under different names."""
    most: int = 80
    """Categories shown at most, those with the most positives in train."""
    size_sample: int = 2000
    """Images of each split whose size and kind are read, at most."""
    threads: int = os.cpu_count() or 1
    """Threads that read files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(Generic[D]):
    """Open and decode every image of every split, and list what is broken; the exit code is 1 where anything is."""

    data: D
    json: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Write everything that was found to this file."""
    threads: int = os.cpu_count() or 1
    """Threads that open images."""


def load(data: Any) -> types.Dataset:
    """The data set, also where files are missing: they are told together with everything else that is wrong."""
    return preflight.load(data, allow_missing=True)


def summary(options: Summary[Any]) -> int:
    """Print tables and notes, and write what was asked for."""
    if not 1 <= options.most <= MOST_CATEGORIES:
        raise ValueError(
            f"--most {options.most} is not in 1..{MOST_CATEGORIES}; --json has the counts of all categories"
        )
    if options.size_sample < 1:
        raise ValueError(f"--size-sample {options.size_sample} must be at least 1")
    dataset = load(options.data)
    found = summaries.summarise(
        dataset,
        options.labels,
        options.split,
        most=options.most,
        size_sample=options.size_sample,
        contents=options.contents,
        threads=options.threads,
    )
    for note in dataset.notes:
        print(printable(note))
    empty = [split for split, part in found.splits.items() if len(part.missing) == part.images]
    for split in empty:
        # Validation may be a part of train.
        near = preflight.resembling(dataset.splits.get(split, dataset.splits["train"]), 0)
        print(f"None of the {found.splits[split].images:,} images of {split} is there{near}.")
    overview.show(found, options.labels, console(), options.most)
    if options.json is not None:
        storage.write_json(options.json, found.to_dict())
    if options.picture is not None:
        picture = picture_of(found)
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(options.picture, format="png", dpi=110)
    return 1 if empty else 0


def picture_of(found: summaries.Summary) -> Any:
    """The figure of a summary."""
    together = found.splits["train"].pairs
    panels = {
        title: np.stack([counts.positive, counts.uncertain, counts.negative, counts.unknown])[:, together.categories]
        for title, counts in overview.label_groups(found)
    }
    names = [found.categories[c] for c in together.categories.tolist()]
    return figures.label_counts(names, panels, together.shares, num_categories=len(found.categories))


def check(options: Check[Any]) -> int:
    """Print what is broken, and write what was asked for."""
    dataset = load(options.data)
    for note in dataset.notes:
        print(printable(note), flush=True)
    found = checking.check(dataset.splits, options.threads)
    for listed in (found.broken, found.narrow):
        for one in listed[:MOST_PRINTED]:
            print(printable(f"{one.split}, image {one.row} ({one.name}): {one.problem}"))
        if len(listed) > MOST_PRINTED:
            print(f"and {len(listed) - MOST_PRINTED:,} more; --json FILE lists them all")
    if options.json is not None:
        storage.write_json(options.json, found.to_dict())
    images = sum(found.images.values())
    opened = f"{images:,} images" if found.complete else f"Stopped after {found.opened:,} of {images:,} images"
    narrow = f", {len(found.narrow):,} with hardly any contrast" if found.narrow else ""
    print(f"{opened}: {f'{len(found.broken):,} broken' if found.broken else 'nothing is broken'}{narrow}.")
    if not found.complete:
        return 130
    return 1 if found.broken else 0


def console() -> Console:
    """The terminal; a pipe or a log has no width of its own, and Rich would assume 80."""
    return Console(width=None if sys.stdout.isatty() else FULL_WIDTH)


def parse(arguments: Sequence[str]) -> Summary[Any] | Check[Any]:
    """COMMAND [RECIPE or CONFIG.py] [--options], options of this configuration's types.

    Raises:
        ValueError: there is no such command.
    """
    command, *words = arguments
    if command not in ("summary", "check"):
        near = difflib.get_close_matches(command, ["summary", "check"], n=1, cutoff=0.4)
        raise ValueError(f"no command {command!r}; {f'did you mean {near[0]}?' if near else 'use summary or check'}")
    named = cli.configuration(words, f"cftjax data {command}", get_config)
    config = named.config
    kind: Any
    if command == "summary":
        kind = Summary[type(config.data)]  # type: ignore[valid-type]
        default = kind(data=config.data, labels=config.labels, split=config.split)
    else:
        kind = Check[type(config.data)]  # type: ignore[valid-type]
        default = kind(data=config.data)
    description = (Summary if command == "summary" else Check).__doc__ or ""
    return short_help.parse(kind, default, named.options, named.command, description)


def main() -> None:
    """Do what the words after `cftjax data` say."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if words else 2)
    options = parse(words)
    code = summary(options) if isinstance(options, Summary) else check(options)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli.run(main, STOPPED)
