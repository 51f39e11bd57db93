"""CFT on a model trained anywhere: `cftjax finetune FILE --workdir RUN`.

The file holds embeddings, labels and the last layer; the run holds the report and a new last layer, `heads.npz` and
`heads.safetensors`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cftjax import cli, options, runs, short_help
from cftjax.config import HostsConfig, TuningConfig, with_recipe
from cftjax.data import leaks
from cftjax.embeddings import bundles
from cftjax.runtime import devices, hosts, tracking
from cftjax.stages import backbone, heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(TuningConfig):
    """Tune the last layer of a model trained anywhere, from its embeddings.

    An .npz or .safetensors holds train_z [n d] (or [n c d]), train_labels [n c] (1, 0, NaN where unknown),
    validation_z, validation_labels, kernel [c d], bias [c], and optionally test_z, test_labels, train_groups [n] and
    those of the other splits, and categories [c]. Of many categories it may hold the labels that were given alone:
    train_label_rows, train_label_columns and train_label_values. A folder has an .npy for each array, which are not
    read into memory. A .parquet has a row per image: split, z (or z_0, z_1, ...), a column per category, and optionally
    group. Without a validation split the known training labels are cross-validated.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("embeddings.npz")
    """The .npz, .safetensors or .parquet, or a folder of .npy."""
    head: Path | None = None
    """The last layer in an .npz or .safetensors of its own, kernel (or weight) [c d] and bias [c]; a .parquet needs
    one."""
    workdir: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/finetune")
    """The folder of the run; a run that was interrupted goes on where it stood."""
    recipe: Literal["default", "paper"] = "default"
    """Search and polish as measures best, or as published."""
    minus_one: str = "ask"
    """What a label of -1 means: programs disagree, so that it is asked about. negative, uncertain or unknown;
    negative-and-zero-unknown (or -uncertain, -negative) says it of 0 as well. Of single categories: Bald=negative,…
    See docs/data.md."""
    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=HostsConfig)


def main() -> None:
    """Read the file, tune its heads, report."""
    words = sys.argv[1:]
    options.check(words, "cftjax finetune", sections=False)
    default = with_recipe(Finetuning(), cli.recipe_of(words))
    description = inspect.cleandoc(Finetuning.__doc__ or "")
    config: Finetuning = short_help.parse(Finetuning, default, words, "cftjax finetune", description)
    tracking.check(config.log)
    hosts.join(config.hosts, config)
    config = dataclasses.replace(config, hosts=HostsConfig())  # which is no setting of the run
    reading = functools.partial(bundles.read, config.file, head=config.head, minus_one=config.minus_one)
    if devices.is_primary():
        print(f"Reading {config.file}.", flush=True)
    categories, embeddings, last_layer, notes = hosts.together(reading)
    if devices.is_primary():
        for note in notes:
            print(f"{config.file.name}: {note}.", flush=True)
        for leak in leaks.find({split: own.groups for split, own in embeddings.items()}):
            warnings.warn(f"{config.file}: {leak}.", stacklevel=2)
    digest = bundles.fingerprint(config.file, config.head, config.minus_one)
    run = runs.create(config.workdir, config, categories, digest)
    with run.writing(), run.tracked(config.log):
        made_from = backbone.take_over(run, embeddings, last_layer, digest)
        # They are read from the run from here on, as memory maps.
        del embeddings
        reported = heads.tune(run, config, made_from)
    if not devices.is_primary():
        return
    if reported:
        print(f"Report: {run.folder / 'report'}")
    print(f"New last layer: {run.folder / 'heads.npz'} and heads.safetensors")


if __name__ == "__main__":
    cli.run(main)
