"""A run as one file that works without it: `cftjax export RUN [--format stablehlo|safetensors|onnx]`.

A file is kept only when it has been read back, run, and found to say what the run says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Float, UInt8

from cftjax import cli
from cftjax.decisions import Decisions
from cftjax.embeddings import embed
from cftjax.inference import formats
from cftjax.inference import program as programs
from cftjax.inference.formats import Format
from cftjax.input.preprocessing import Preprocessing
from cftjax.report import card
from cftjax.runs import Run
from cftjax.runtime import storage

TOLERANCE = 1e-5
# Logits may differ by so many times what the rounding of the input makes of them.
NOISES = 8
# Enough to meet every kind of image below twice.
NUM_IMAGES = 8
NUM_EMBEDDINGS = 256


@dataclasses.dataclass(frozen=True)
class Exporting:
    """Write a run as one file: images (or embeddings) in, calibrated probabilities out.

    Beside it, model.json has categories, thresholds, and how images are brought to size, and README.md is the model's
    card.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The --workdir of a training or fine-tuning."""
    format: Format = "stablehlo"
    """StableHLO, which JAX runs on CPU, CUDA and TPU without this library; all weights as safetensors, which
    `cftjax.inference.formats.read` reads; or ONNX, which needs the extra `onnx`."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The folder of the files; None is `export` in the run."""


def main() -> None:
    """Write the file, and say how far it is from the run."""
    options = tyro.cli(Exporting, description=Exporting.__doc__, prog="cftjax export")
    run = Run(options.run)
    path, difference = write(run, options.format, options.output or run.folder / "export")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, at most {difference:.1e} from the run's own probabilities")


def write(run: Run, format: Format, folder: Path) -> tuple[Path, float]:
    """Write model.FORMAT, model.json and README.md.

    Args:
        run: finished.
        format: of the file.
        folder: where to; made if need be.

    Returns:
        The file, and the largest difference of its probabilities from the run's.

    Raises:
        ValueError: where they differ by more than rounding; no file is left.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give a folder")
    with jax.default_device(programs.cpu()[0]):
        program = programs.of_run(run)
        expected = expectation(run)
        path = folder / f"model.{format}"
        with storage.replacing(path) as unchecked:
            unchecked.write_bytes(formats.WRITERS[format](program))
            found = np.asarray(formats.RUNNERS[format](unchecked)(expected.given), np.float64)
            difference = largest_difference(found, expected)
    storage.write_json(folder / "model.json", program.description)
    storage.write_bytes(folder / "README.md", card.text(run).encode())
    return path, difference


class Expectation(NamedTuple):
    """What the run itself makes of some images.

    Attributes:
        given: images uint8 [n s s 3], or embeddings.
        logits: [n c].
        decisions: of the run.
        noise: how far logits move when the input moves by its own rounding: a network that amplifies it gives other
            last digits wherever its sums are taken in another order.
    """

    given: np.ndarray
    logits: Float[np.ndarray, "n c"]
    decisions: Decisions
    noise: float = 0.0


def expectation(run: Run) -> Expectation:
    """The logits of the run's own parts: for generated images, or for the first rows of its last split."""
    heads, stored = run.heads("final"), run.config["preprocessing"]
    if stored is None:
        z = np.asarray(run.embeddings(run.splits[-1]).z[:NUM_EMBEDDINGS], np.float32)
        return Expectation(z, np.asarray(heads(z)), run.decisions())
    preprocessing = Preprocessing.from_json(stored)
    images = generated(preprocessing.image_size)
    backbone, pixels = nnx.split(programs.load_backbone(run)), preprocessing.normalise(images)
    logits, moved = (
        np.asarray(heads(embed.forward(*backbone, x)))
        for x in (pixels, pixels * np.float32(1 + np.finfo(np.float32).eps))
    )
    return Expectation(images, logits, run.decisions(), float(np.abs(moved - logits).max()))


def generated(size: int) -> UInt8[np.ndarray, "n s s 3"]:
    """Images of blocks, of noise, all black and all white, uint8."""
    rng = np.random.default_rng(0)
    grid = -(-size // 8)
    blocks = np.repeat(np.repeat(rng.integers(0, 256, (NUM_IMAGES, grid, grid, 3)), 8, axis=1), 8, axis=2)
    images = blocks[:, :size, :size].astype(np.uint8)
    images[::4] = rng.integers(0, 256, images[::4].shape)
    images[1], images[2] = 0, 255
    return images


def largest_difference(found: Float[np.ndarray, "n c"], expected: Expectation) -> float:
    """How far probabilities are from the run's, at most.

    Where the calibration is steep, rounding of a logit moves its probability further than the tolerance; what the run
    says of logits within the tolerance is as right.

    Raises:
        ValueError: where it is more than rounding.
    """
    probabilities, logits = expected.decisions.probabilities, expected.logits
    if found.shape != logits.shape:
        raise ValueError(f"the exported program gives {found.shape}, the run {logits.shape}: nothing was written")
    difference = float(np.abs(found - probabilities(logits)).max())
    rounding = np.maximum(TOLERANCE * np.maximum(1, np.abs(logits)), NOISES * expected.noise)
    low, high = probabilities(logits - rounding) - TOLERANCE, probabilities(logits + rounding) + TOLERANCE
    # Written so that NaN is wrong.
    if wrong := int((~((low <= found) & (found <= high))).sum()):
        raise ValueError(
            f"{wrong} of {found.size} probabilities of the exported program differ from the run's, by up to "
            f"{difference:.1e}: nothing was written"
        )
    return difference


if __name__ == "__main__":
    cli.run(main)
