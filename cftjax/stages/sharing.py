"""Embeddings taken over from another run: a backbone that stays as it is gives the same, whatever labels are known."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cftjax import runs, types
from cftjax.embeddings import embed
from cftjax.runs import Run
from cftjax.runtime import storage
from cftjax.text import few


def find(
    run: Run, split: str, settings: Any, records: types.Records, elsewhere: Sequence[Path], skip: bool
) -> Path | None:
    """The folder of a split's embeddings in another run that would come out the same here; None where there is none.

    The same are the settings of the stage, what an image goes through, where the data lie, and the images row by row.
    What may differ is labels, what becomes of unknown ones, and everything after.

    Args:
        run: that wants them.
        split: of the data.
        settings: of the stage, as `Run.stage` takes them.
        records: the split as this run has it.
        elsewhere: folders of other runs, looked at in their order.
        skip: whether images that could not be opened may be among them.
    """
    wanted, names = runs.plain(settings), [str(name) for name in records.names]
    for folder in elsewhere:
        source = folder / "embeddings" / split
        if not (source / "stage.json").is_file() or not (source / "z.npy").is_file():
            continue
        stage, config = runs.stage_record(source / "stage.json"), Run(folder).config
        if not stage["complete"] or stage["settings"] != wanted:
            continue
        if config["preprocessing"] != run.config["preprocessing"]:
            continue
        if config["settings"]["data"] != run.config["settings"]["data"]:
            continue
        # With images left out, embedding them here says so or, where they are mended by now, has them.
        if embed.load_names(source) == names and (skip or not (source / embed.UNOPENED).is_file()):
            return source
    return None


def take(source: Path, records: types.Records, folder: Path) -> None:
    """Write a split's folder with the embeddings of another one and the labels of this run.

    The embeddings are one file under two names, where the file system can do that: deleting a run leaves the other's.

    Args:
        source: that `find` found.
        records: the split as this run has it.
        folder: of this run's embeddings; what an interrupted embedding left there goes.
    """
    unopened = embed.load(source).unopened
    rows = np.flatnonzero(np.isin(np.asarray(records.names, str), np.asarray(unopened, str)))
    embed.describe(folder, records, rows)
    for name in (embed.PART, embed.MARKER):
        (folder / name).unlink(missing_ok=True)
    # Last: a folder with z is complete. Never under the name of the unfinished file, which is written in place.
    with storage.replacing(folder / "z.npy") as part:
        try:
            os.link(source / "z.npy", part)
        except OSError:
            shutil.copyfile(source / "z.npy", part)
    if unopened:
        print(f"{folder.name}: left out, since they could not be opened: {few(unopened)}", flush=True)
