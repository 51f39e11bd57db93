"""What predicting with a run needs, and nothing of its data, in a few files that hold no code: written, and read.

model.safetensors has all weights and the calibration as `cftjax export` writes them, model.json how images go in and
what the categories are called, decisions.json calibration and thresholds, README.md the model's card, and
heads.safetensors, of runs without a backbone, the last layer for torch. `.digests.json` has the digests of the others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cftjax import runs, text
from cftjax.backbones.places import embedding_shape
from cftjax.config import InputConfig
from cftjax.decisions import read as read_decisions
from cftjax.inference import formats
from cftjax.inference import program as programs
from cftjax.inference.model import Model, no_backbone
from cftjax.inference.program import Program
from cftjax.input.preprocessing import Preprocessing
from cftjax.runs import Run
from cftjax.runtime import checkpoints, devices, digests, storage
from cftjax.types import Heads

MODEL, DESCRIPTION, CARD, HEADS = "model.safetensors", "model.json", "README.md", "heads.safetensors"
# Of these every one but the last is needed.
FILES = (MODEL, DESCRIPTION, runs.DECISIONS, CARD, digests.RECORD, HEADS)


def write(run: Run, folder: Path, card: str) -> list[Path]:
    """Write the files of a finished run, and read them to see that they are there.

    Args:
        run: finished.
        folder: that is empty.
        card: text of README.md.

    Raises:
        FileNotFoundError: where the run is not finished.
    """
    program = programs.of_run(run)
    program.description["use"] = _use(run)
    storage.write_bytes(folder / MODEL, formats.to_safetensors(program))
    storage.write_json(folder / DESCRIPTION, program.description)
    storage.write_bytes(folder / runs.DECISIONS, (run.folder / "decisions" / runs.DECISIONS).read_bytes())
    storage.write_bytes(folder / CARD, card.encode())
    if program.description["architecture"] is None:
        storage.write_bytes(folder / HEADS, (run.folder / HEADS).read_bytes())
    storage.record_digests(folder)
    return [folder / name for name in FILES if (folder / name).is_file()]


def _use(run: Run) -> dict[str, Any] | None:
    """How a run looks at images, beside its preprocessing; None where it has no backbone."""
    settings = run.config["settings"]
    if run.config["preprocessing"] is None:
        return None
    stored = run.folder / "backbone" / "best"
    metadata = checkpoints.metadata(stored, checkpoints.steps(stored)[-1], needed=("compute_dtype",))
    seen = settings["input"]
    return {
        "compute_dtype": metadata["compute_dtype"],
        "batch_size": settings["embed"]["batch_size"],
        "input": {name: seen[name] for name in ("augment", "flip")},
    }


def is_packed(folder: Path) -> bool:
    """Whether a folder holds such files and no run."""
    return (folder / MODEL).is_file() and (folder / DESCRIPTION).is_file() and not (folder / digests.CONFIG).exists()


def check(folder: Path, source: str) -> None:
    """Compare all files with their digests.

    Args:
        folder: of the files.
        source: what to call them.

    Raises:
        ValueError: where something is missing or is not what was written.
    """
    record = folder / digests.RECORD
    if not record.is_file():
        raise ValueError(f"{source} is no run of cftjax: it has no {digests.RECORD}, which cftjax push writes")
    recorded = digests.read(record)
    for name in FILES[:-2]:
        if name not in recorded:
            raise ValueError(f"{source} is no run of cftjax: its {digests.RECORD} does not know {name}")
    for name, digest in recorded.items():
        if name not in FILES:
            raise ValueError(f"{source}: its {digests.RECORD} names {text.shown(name)}, which cftjax push never writes")
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"{source} is half there ({name} is missing): the same command with the hub in reach gets it"
            )
        if digests.of_file(path) != digest:
            raise digests.Damaged(f"{path} is damaged (it is not what was pushed): delete {path.resolve()}")


def load(folder: Path) -> Model:
    """The model that the files hold, as `cftjax.load` gives it of the run itself.

    Raises:
        ValueError: where they hold something else, or a run without a backbone.
    """
    program = formats.read(folder / MODEL)
    described, decisions = folder / DESCRIPTION, read_decisions(folder / runs.DECISIONS)
    with digests.describing(folder / MODEL):
        description = program.description
        categories = text.names(description["categories"], f"the categories of {described}")
        if categories != text.names(list(decisions.categories), f"the categories of {folder / runs.DECISIONS}"):
            raise ValueError(f"{folder / MODEL} and {runs.DECISIONS} have other categories: they are of two runs")
        if description["preprocessing"] is None:
            raise ValueError(no_backbone(folder))
        use = description["use"]
        backbone = programs.module(description, program.arrays, devices.compute_dtype(use["compute_dtype"]))
        heads = heads_of(program, len(categories), embedding_shape(backbone)[-1])
        augmented = dataclasses.replace(InputConfig(), **use["input"])
        preprocessing = Preprocessing.from_json(description["preprocessing"])
        return Model(backbone, heads, decisions, preprocessing, augmented, int(use["batch_size"]))


def heads_of(program: Program, num_categories: int, dim: int) -> Heads:
    """The last layer.

    Raises:
        ValueError: where it is none of this many categories.
    """
    kernel, bias = (np.asarray(program.arrays[f"head.{name}"]) for name in ("kernel", "bias"))
    if kernel.shape != (num_categories, dim) or bias.shape != (num_categories,) or kernel.dtype != np.float32:
        raise ValueError(
            f"head.kernel {kernel.shape} and head.bias {bias.shape} are no layer of {num_categories} by {dim}"
        )
    return Heads(kernel, bias.astype(np.float32))
