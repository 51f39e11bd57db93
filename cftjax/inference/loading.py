"""A model by the name of its run: a folder, what was packed of one, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from cftjax import runs
from cftjax.inference import hub, model, packed
from cftjax.inference.model import Model
from cftjax.runtime import digests


def found(where: str | os.PathLike[str]) -> Path:
    """The folder of a run on this machine; that of `hf:USER/NAME` is downloaded."""
    if hub.is_named(where):
        return hub.download(hub.named(os.fspath(where)))
    return Path(where)


def load(where: str | os.PathLike[str]) -> Model:
    """The model of a finished run, from its folder alone, or from the Hugging Face hub.

    Args:
        where: the --workdir of `cftjax train`; or `hf:USER/NAME`, or `hf:USER/NAME@REVISION`, of `cftjax push`.

    Raises:
        ValueError: for a run of `cftjax finetune`, which has no backbone, and for a repository that cannot be had.
        FileNotFoundError: where there is no run, or an unfinished one.
    """
    folder = found(where)
    return packed.load(folder) if packed.is_packed(folder) else model.load(folder)


def standing(folder: Path) -> list[object]:
    """What says whether the model of a folder is still the same."""
    if packed.is_packed(folder):
        return [digests.of_file(folder / digests.RECORD)]
    return [digests.of_file(folder / digests.CONFIG), runs.standing(folder)]
