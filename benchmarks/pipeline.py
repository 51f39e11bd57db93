"""Does the pipeline keep up? Images per second and core beside plain Pillow, and how long a training step waits.

    python benchmarks/pipeline.py --root coco                    # MS-COCO 2014's folder; its first 1,000 photographs
    python benchmarks/pipeline.py --root coco-small --enlarge 4      # a reduced set, its files made as large as COCO's

Plain Pillow opens a file and converts it to RGB at full resolution, nothing else. Ours is the whole way to a batch:
opened, resized, augmented, labels resolved. Both are timed in CPU seconds of one thread, in turn, over the
same files, so that what else the machine does matters little; the median of several passes is printed with the lowest
and the highest. Then a real training is timed step by step: the share of a step spent in the iterator's next().
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from cftjax import types
from cftjax.config import BackboneConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data import splits
from cftjax.data.coco import CocoData
from cftjax.data.reading import files
from cftjax.input import pipeline
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import devices
from cftjax.training import images, loop

# Steps that do not count: the first compiles, and the threads have worked ahead meanwhile.
WARM_UP = 5
# Of each pass.
BATCHES = 20


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    root: str
    """MS-COCO 2014, or a part of it in the same layout."""
    images: int = 1000
    """Photographs of each pass."""
    image_size: int = 224
    """Pixels."""
    enlarge: int = 1
    """Time copies whose sides are this many times as long, for a set of reduced photographs."""
    passes: int = 5
    """Of every way, in turn."""
    backbone: str = "small_resnet"
    """The network of the training."""
    batch_size: int = 32
    """Of the training."""
    steps: int = 40
    """Of the training."""
    workers: int = 2
    """Threads of the training that open images."""


class TimedIterator:
    """An iterator of batches that remembers how long each `next` took."""

    def __init__(self, iterator: Any) -> None:
        """Wrap the training's own."""
        self.iterator = iterator
        self.seconds: list[float] = []

    def __next__(self) -> types.Batch:
        """The next batch."""
        began = time.perf_counter()
        batch = next(self.iterator)
        self.seconds.append(time.perf_counter() - began)
        return batch

    def __getattr__(self, name: str) -> Any:
        """State and closing are the training's own."""
        return getattr(self.iterator, name)


def ways(records: types.Records, root: Path, preprocessing: Preprocessing) -> dict[str, Callable[[], Any]]:
    """Name -> one pass over the records, in this thread."""
    size = len(records)

    def decode() -> None:
        for name in records.names:
            with Image.open(root / name) as image:
                image.convert("RGB")

    def evaluate() -> None:
        for _ in pipeline.eval_batches(records, preprocessing, InputConfig(workers=0), batch_size=size // BATCHES):
            pass

    def train(augment: Any) -> Callable[[], None]:
        settings = InputConfig(workers=0, augment=augment)
        batches = pipeline.train_batches(
            records, LabelsConfig(), preprocessing, settings, batch_size=size // BATCHES, seed=0
        )

        def one_pass() -> None:
            iterator = iter(batches)
            for _ in range(BATCHES):
                next(iterator)

        return one_pass

    return {
        "Pillow: open and convert to RGB": decode,
        "evaluation": evaluate,
        "training, resize and flip only": train("none"),
        "training, crop": train("crop"),
        "training, RandAugment": train("randaugment"),
    }


def speeds(found: dict[str, Callable[[], Any]], num_images: int, passes: int) -> dict[str, list[float]]:
    """Name -> images per CPU second of each pass, the ways taking turns."""
    measured: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(passes):
        for name, one_pass in found.items():
            began = time.process_time()
            one_pass()
            measured[name].append(num_images / (time.process_time() - began))
    return measured


def waiting(dataset: types.Dataset, options: Options) -> tuple[float, float, float]:
    """Train; the median seconds of a step and of its wait for a batch, and the share of all time spent waiting."""
    config = Config(
        data=None,
        input=InputConfig(workers=options.workers),
        backbone=BackboneConfig(options.backbone, image_size=options.image_size),
        training=TrainingConfig(batch_size=options.batch_size, max_steps=options.steps + WARM_UP),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = loop.Training(images.of_experiment(dataset, config), Path(folder), devices.mesh())
        run.iterator = timed = TimedIterator(run.iterator)  # type: ignore[assignment]
        seconds = []
        for _ in range(options.steps + WARM_UP):
            began = time.perf_counter()
            run.step()
            seconds.append(time.perf_counter() - began)
        run.settle()
        timed.close()
    seconds, waited = seconds[WARM_UP:], timed.seconds[WARM_UP:]
    return statistics.median(seconds), statistics.median(waited), sum(waited) / sum(seconds)


def enlarged(records: types.Records, root: Path, times: int, folder: Path) -> types.Records:
    """The records with copies of their files, larger by a factor."""
    for name in records.names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(root / name) as image:
            image.resize((image.width * times, image.height * times)).save(folder / name, quality=90)
    return dataclasses.replace(records, image=files.ImageFiles(folder, records.names))


def main(options: Options) -> None:
    """Measure and print."""
    dataset = CocoData(options.root).load()
    count = min(options.images, len(dataset.splits["train"])) // BATCHES * BATCHES
    records = splits.select(dataset.splits["train"], np.arange(count))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.root).expanduser()
        if options.enlarge > 1:
            records, root = enlarged(records, root, options.enlarge, Path(folder)), Path(folder)
        dataset = dataclasses.replace(dataset, splits={"train": records})
        compare(records, root, options)
        seconds, waited, share = waiting(dataset, options)
    print(
        f"\n{options.backbone}, batches of {options.batch_size}, RandAugment, {options.workers} threads: a step takes "
        f"{1000 * seconds:,.0f} ms and waits {1000 * waited:.1f} ms for its batch (medians of {options.steps} steps); "
        f"of all time {share:.2%} is waiting."
    )


def compare(records: types.Records, root: Path, options: Options) -> None:
    """Print the table of ways."""
    count, preprocessing = len(records), Preprocessing(options.image_size)
    sizes = []
    for name in records.names:
        with Image.open(root / name) as image:
            sizes.append(image.size)
    width, height = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    print(f"{count:,} photographs, median {width} x {height} pixels, to {options.image_size} x {options.image_size}\n")
    print(f"| way | images per second and core | lowest to highest of {options.passes} | against Pillow |")
    print("| --- | ---: | ---: | ---: |")
    measured = speeds(ways(records, root, preprocessing), count, options.passes)
    plain = statistics.median(next(iter(measured.values())))
    for name, each in measured.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:,.0f} | {min(each):,.0f} to {max(each):,.0f} | {middle / plain:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
