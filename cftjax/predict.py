"""Probabilities and decisions for images: `cftjax predict RUN PATH… -o out.csv`.

The run must be one of `cftjax train`; nothing else of it is needed, neither its data nor its configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Bool, Float, UInt8

from cftjax import cli, figures, runs
from cftjax.config import InputConfig
from cftjax.data.reading import finding, images
from cftjax.inference import ensemble as together
from cftjax.inference import loading
from cftjax.inference import model as models
from cftjax.inference import output as predicted
from cftjax.inference.ensemble import Ensemble
from cftjax.inference.kept import Block, Kept
from cftjax.inference.model import Model, View
from cftjax.inference.output import Rows
from cftjax.runtime import digests, hosts, storage
from cftjax.runtime.progress import Progress
from cftjax.text import closest, cut, few, printable

# Errors printed at the end; the output has them all.
MOST_PRINTED = 10
# Pixels that an image below a heatmap is reduced to, where its file allows it.
DRAWN_SIZE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicting:
    """Probability and decision of every category for images, one row per image, by a run of cftjax.train.

    Images are files, folders (searched with all below them), patterns in quotes ('scans/**/*.png'), and tables (.csv,
    .parquet) with a column `path` of files, relative to the table's folder or absolute.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run: the --workdir of its training, the folder of an ensemble, or hf:USER/NAME of the Hugging Face hub."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH…")]
    """Images, folders, patterns, tables; an image named twice has one row."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The table to write: .csv, .jsonl or .parquet, with the columns path, NAME (probability), NAME decision (1 or 0),
    and error (why an image could not be read; it has no values then)."""
    raw: bool = False
    """Write names into a .csv as they are; else one that a spreadsheet would take for a formula (it begins with = + -
    @) has an apostrophe in front, which `cftjax evaluate` takes away again."""
    overwrite: bool = False
    """Replace an output that exists."""
    batch_size: int | None = None
    """Images per step of each device; None for what the run embedded with."""
    workers: int | None = None
    """Threads that open and resize images; None is one for each core that the process may use, 2 to 16."""
    tta: tuple[View, ...] = ()
    """Look at every image several times and take the mean of the logits: `mirror` images, and images moved a little
    (`shift`). Only what the run was trained on is allowed. Thresholds and calibration were fitted without it."""
    heatmaps: Path | None = None
    """A folder for pictures of where categories are seen, one PNG per image with any."""
    heatmaps_at_most: int = 4
    """Categories per picture: those decided positive, the most probable first."""
    heatmaps_of: tuple[str, ...] = ()
    """Draw these categories over every image, whatever is decided."""


def check(options: Predicting) -> None:
    """Refuse options that cannot be followed, before anything is opened.

    Raises:
        ValueError: with the mend.
    """
    if not options.paths:
        raise ValueError("nothing to predict: name images, folders, patterns or tables after the run")
    predicted.check_output(options.output, options.overwrite)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    if (options.workers or 0) < 0 or options.heatmaps_at_most < 1:
        raise ValueError("--workers must be at least 0, --heatmaps-at-most at least 1")
    if options.heatmaps is None and options.heatmaps_of:
        raise ValueError("--heatmaps-of needs a folder for the pictures: --heatmaps DIR")
    if options.heatmaps is not None and together.is_ensemble(options.run):
        raise ValueError(f"--heatmaps: {options.run} is an ensemble, whose members see in different places: name one")
    if options.heatmaps is not None and options.heatmaps.exists() and not options.heatmaps.is_dir():
        raise ValueError(f"--heatmaps {options.heatmaps} is a file; give a folder")


class Opening:
    """Opens the file of a row, and keeps why some could not be opened."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Open these."""
        self.files = files
        self.errors: dict[int, str] = {}

    def __call__(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a row.

        Raises:
            ImageError: it cannot be read, or what reads such files is not installed.
        """
        try:
            return images.open_image(self.files[row])
        except (images.ImageError, ImportError) as error:
            self.errors[row] = str(error)
            raise images.ImageError(str(error)) from error


def main() -> None:
    """Check everything, then predict and draw block by block, write, and name what could not be read."""
    options: Any = tyro.cli(Predicting, prog="cftjax predict")
    check(options)
    names, files = finding.find(options.paths)
    options = dataclasses.replace(options, run=loading.found(options.run))
    model = together.load(options.run)
    for name in options.heatmaps_of:
        if name not in model.categories:
            raise ValueError(f"--heatmaps-of {name}: no such category; the model {closest(name, model.categories)}")
    errors, positive, drawn = predict(model, names, files, options)
    say(model, names, errors, positive, options)
    if options.heatmaps is not None:
        print(f"Heatmaps of {drawn:,} images: {options.heatmaps}")


def predict(
    model: Model | Ensemble, names: Sequence[str], files: Sequence[Path], options: Predicting
) -> tuple[dict[int, str], np.ndarray, int]:
    """Predict all images, from where a killed call of the same words left it, and write the output.

    Returns:
        Why rows could not be read; how often each category was decided positive; and the number of pictures drawn.

    Raises:
        ValueError: where no image at all can be read, the run was not trained on a view, or the model says something
            that is no number.
    """
    size = options.batch_size or models.batch_size(len(files), model.batch_size)
    with Kept(options.output, key_of(names, files, size, options)) as kept:
        if kept.rows:
            print(f"Going on after {kept.rows:,} of {len(files):,} images that are predicted already", file=sys.stderr)
        if kept.rows < len(files):
            look(model.looking(options.tta), names, files, size, kept, options)
        errors: dict[int, str] = {}
        positive, drawn = np.zeros(len(model.categories), int), 0
        with predicted.writing(options.output, model.categories, raw=options.raw) as add:
            for start, block in kept.blocks():
                stop = start + len(block.errors)
                add(Rows(names[start:stop], block.probs, block.decisions, block.errors))
                errors |= {start + row: error for row, error in enumerate(block.errors) if error}
                positive += block.decisions[[not error for error in block.errors]].sum(0)
                drawn += block.drawn
            if len(errors) == len(files):
                kept.remove()
                raise ValueError(f"no image could be read, so that nothing is written: {told(errors)}")
        kept.remove()
    return errors, positive, drawn


def look(
    model: Model | Ensemble, names: Sequence[str], files: Sequence[Path], size: int, kept: Kept, options: Predicting
) -> None:
    """Predict the images after those that are kept, and keep them."""
    opening, start = Opening(files), kept.rows
    pictures = Pictures(model, files, options) if isinstance(model, Model) else None
    settings = InputConfig(workers=options.workers, on_bad_image="skip")
    seen = model.rows(opening, names, settings, size, start)
    with Progress("Predict", unit="images") as shown, contextlib.closing(seen):
        shown.say("compiling its program")
        for part in seen:
            stop = start + len(part.probs)
            decided = model.decide(part.probs)
            reasons = [opening.errors.get(row, "") for row in range(start, stop)]
            drawn = 0 if pictures is None else pictures.draw(start, part.probs, decided, part.opened)
            kept.add(Block(part.probs.astype(np.float32), decided, reasons, drawn))
            start = stop
            bad = f"{len(opening.errors):,} could not be read" if opening.errors else ""
            shown.update(stop, len(files), bad)
    kept.flush()


def key_of(names: Sequence[str], files: Sequence[Path], size: int, options: Predicting) -> str:
    """A digest of all that the predictions depend on: run, images, options, this code, and how rows are computed."""
    digest = hashlib.sha256(hosts.code().encode())
    told = [list(options.tta), str(options.heatmaps), options.heatmaps_at_most, list(options.heatmaps_of)]
    digest.update(json.dumps([standing(options.run), told, size * jax.device_count()]).encode())
    for name, file in zip(names, files, strict=True):
        try:
            state = file.stat()
            stamp = [state.st_size, state.st_mtime_ns]
        except OSError:
            stamp = []
        digest.update(json.dumps([name, str(file), stamp]).encode())
    return digest.hexdigest()


def standing(folder: Path) -> list[Any]:
    """What of a run, or of an ensemble and its members, predictions depend on."""
    if not together.is_ensemble(folder):
        return loading.standing(folder)
    own = [digests.of_file(folder / name) for name in (together.FILE, runs.DECISIONS)]
    return [*own, *map(standing, together.read(folder).members)]


class Pictures:
    """The pictures of where categories are seen."""

    def __init__(self, model: Model, files: Sequence[Path], options: Predicting) -> None:
        """Of these images, as the options say."""
        self.model, self.files, self.options = model, files, options
        absolute = [Path(os.path.abspath(file)) for file in files]
        self.common = os.path.commonpath([file.parent for file in absolute])
        self.alike = Counter(file.with_suffix("") for file in absolute)

    def draw(
        self,
        start: int,
        probs: Float[np.ndarray, "m c"],
        decided: Bool[np.ndarray, "m c"],
        opened: Bool[np.ndarray, " m"],
    ) -> int:
        """Draw consecutive images from row `start` on; the number of pictures."""
        folder = self.options.heatmaps
        if folder is None:
            return 0
        wanted = {
            row: found for row in np.flatnonzero(opened).tolist() if (found := self.shown(probs[row], decided[row]))
        }
        places = list(wanted)
        for first in range(0, len(places), models.MAPPED_AT_ONCE):
            some = places[first : first + models.MAPPED_AT_ONCE]
            maps = self.model.heatmaps([self.files[start + row] for row in some])
            for row, each in zip(some, maps, strict=True):
                self.draw_one(folder, self.files[start + row], wanted[row], probs[row], each)
        return len(places)

    def shown(self, probs: Float[np.ndarray, " c"], decided: Bool[np.ndarray, " c"]) -> list[int]:
        """The categories that a picture shows."""
        if self.options.heatmaps_of:
            return [self.model.categories.index(name) for name in self.options.heatmaps_of]
        order = np.argsort(-probs, kind="stable")
        return order[decided[order]][: self.options.heatmaps_at_most].tolist()

    def name(self, file: Path) -> str:
        """An image's own below the folder that all share; its ending stays where another differs in nothing else."""
        file = Path(os.path.abspath(file))
        own = file if self.alike[file.with_suffix("")] > 1 else file.with_suffix("")
        own = own.with_name(storage.fitting(own.name, len(".png")))
        return f"{os.path.relpath(own, self.common)}.png"

    def draw_one(
        self,
        folder: Path,
        file: Path,
        shown: Sequence[int],
        probs: Float[np.ndarray, " c"],
        maps: Float[np.ndarray, "y x c"],
    ) -> None:
        """One image."""
        image = images.open_image(file, min_size=DRAWN_SIZE)
        names = [self.model.categories[c] for c in shown]
        box = self.model.box(*image.shape[:2])
        figure = figures.heatmaps(image, names, probs[shown], maps[..., shown], box)
        with storage.replacing(folder / self.name(file)) as part:
            figure.savefig(part, format="png", dpi=110)


def told(errors: dict[int, str]) -> str:
    """The first errors, and how many more there are."""
    return few([errors[row] for row in sorted(errors)], MOST_PRINTED)


def say(
    model: Model | Ensemble, names: Sequence[str], errors: dict[int, str], positive: np.ndarray, options: Predicting
) -> None:
    """What was done, and what the reader of the output must know."""
    for row in sorted(errors)[:MOST_PRINTED]:
        print(errors[row], file=sys.stderr)
    if len(errors) > MOST_PRINTED:
        print(f"and {len(errors) - MOST_PRINTED:,} more; the column error has them all", file=sys.stderr)
    fitted = model.decisions.fitted_on
    if fitted.note:
        print(f"Thresholds and calibration: {printable(fitted.note)}.")
    for note in dict.fromkeys(model.decisions.notes.values()):
        print(f"Decisions of {few([c for c, own in model.decisions.notes.items() if own == note])}: {printable(note)}.")
    often = np.argsort(-positive, kind="stable")[:10]
    counts = [f"{cut(printable(model.categories[c]))} {positive[c]:,}" for c in often if positive[c]]
    print(f"Decided positive: {', '.join(counts) or 'nothing'}{', …' if (positive > 0).sum() > 10 else ''}")
    unread = f", {len(errors):,} of them could not be read" if errors else ""
    print(f"{len(names):,} images{unread}: {options.output}")


if __name__ == "__main__":
    cli.run(main)
