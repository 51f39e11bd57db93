"""The paper's table from real runs: CFT beside Negative and Ignore mode, over known proportions of the training labels.

    python -m cftjax.sweep CONFIG.py --known-proportions 0.1 0.5 0.9 [--seeds 0 1 2] [any option of cftjax.train]

WORKDIR/negative-0.1 is the run in Negative mode that CFT starts from, WORKDIR/ignore-0.1 a backbone trained in Ignore
mode. A sweep that was stopped goes on where it stood, and more proportions or seeds may be asked for later.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from cftjax import cli, devices, figures, finetune, hosts, metrics, report, storage, tables, train
from cftjax.config import ORDERS, Config, LabelsConfig, Metric
from cftjax.default import get_config
from cftjax.runs import Run
from cftjax.types import Dataset

D = TypeVar("D")

# Ways of hiding labels that known_proportion governs.
BY_PROPORTION = ("uniform", "uneven")
CATEGORIES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Sweep(cli.Experiment[D]):
    """An experiment at several known proportions; the sweep itself sets labels.known-proportion and labels.unknown."""

    workdir: Path = Path("runs/digits-sweep")
    """The folder of the table and of all runs; a sweep that was interrupted goes on where it stood."""
    known_proportions: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Shares of the training labels that stay known: two runs for each, in Negative and in Ignore mode."""
    seeds: tuple[int, ...] = ()
    """Seeds of training and search, for mean and standard deviation; none given, the one of --seed."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a sweep has found.

    Attributes:
        methods: name of each row -> [s p] mean score of each seed and proportion in [0, 1]; NaN where undefined.
        proportions: of the columns.
        seeds: of each proportion's runs.
        metric: "AP" or "AUROC".
        split: the images scored.
        num_images: in that split.
        num_categories: scored.
    """

    methods: dict[str, Float[np.ndarray, "s p"]]
    proportions: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: Metric
    split: str
    num_images: int
    num_categories: int

    @property
    def columns(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Method -> column, a proportion's or `mean` -> mean and standard deviation over the seeds."""
        found = {}
        for name, values in self.methods.items():
            every = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
            spread = every.std(axis=0, ddof=1) if len(every) > 1 else np.full(every.shape[1], np.nan)
            titles = [*(f"{p:g}" for p in self.proportions), "mean"]
            found[name] = dict(zip(titles, zip(every.mean(axis=0).tolist(), spread.tolist(), strict=True), strict=True))
        return found


def main() -> None:
    """Train every run or go on with it, score, print and write the table."""
    sweep: Sweep[Any] = cli.parse(
        "Train at several known proportions, in Negative and in Ignore mode, and make a table of what CFT gains.",
        get_config,
        kind=Sweep,
        suffix="-sweep",
    )
    check(sweep)
    hosts.join(sweep.hosts)
    config, seeds = sweep.config, sweep.seeds or (sweep.config.seed,)
    loaded = config.data.load()
    methods: dict[str, list[list[float]]] = {}
    split, num_images = "", 0
    for seed in seeds:
        rows: dict[str, list[float]] = {}
        for proportion in sweep.known_proportions:
            suffix = f"{proportion:g}" + (f"-seed-{seed}" if seed != config.seed else "")
            negative = part(config, proportion, seed, "assume_negative")
            split, num_images, found = negative_run(loaded, negative, announced(sweep.workdir / f"negative-{suffix}"))
            ignore = part(config, proportion, seed, "ignore")
            found["Ignore"] = ignore_run(loaded, ignore, announced(sweep.workdir / f"ignore-{suffix}"), split)
            for name, score in found.items():
                rows.setdefault(name, []).append(score)
        for name, scores in rows.items():
            methods.setdefault(name, []).append(scores)
    names = ["Negative", "Ignore", *(name for name in methods if name.startswith("CFT"))]
    scores = Scores(
        {name: np.array(methods[name]) for name in names},
        sweep.known_proportions,
        seeds,
        config.choose.metric,
        split,
        num_images,
        len(loaded.categories),
    )
    if not devices.is_primary():
        return
    write(sweep.workdir, scores, config.labels)
    print(f"Table: {sweep.workdir / 'table.txt'}")


def check(sweep: Sweep[Any]) -> None:
    """Refuse what cannot be swept, before anything is read.

    Raises:
        ValueError: with the mend.
    """
    for name, values in (("known-proportions", sweep.known_proportions), ("seeds", sweep.seeds)):
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"--{name} has {value:g} twice: name every value once")
    if not sweep.known_proportions:
        raise ValueError("--known-proportions is empty: name one or more, such as 0.1 0.5 0.9")
    for proportion in sweep.known_proportions:
        if not 0 < proportion <= 1:
            raise ValueError(f"--known-proportions {proportion:g} is not a share of the labels: use values in (0, 1]")
    if negative := [seed for seed in sweep.seeds if seed < 0]:
        raise ValueError(f"--seeds {negative[0]} is negative: use 0 or more")
    hide = sweep.config.labels.hide
    if hide not in BY_PROPORTION:
        raise ValueError(
            f"labels.hide is {hide}, so that there is no known proportion to vary: add --labels.hide uniform"
        )
    if (sweep.workdir / "config.json").exists():
        raise ValueError(f"--workdir {sweep.workdir} is a single run: give the sweep a folder of its own")


def part(config: Config[Any], proportion: float, seed: int, unknown: Any) -> Config[Any]:
    """The experiment of one run."""
    labels = dataclasses.replace(config.labels, known_proportion=proportion, unknown=unknown)
    return dataclasses.replace(config, labels=labels, seed=seed)


def announced(folder: Path) -> Path:
    """The folder, after a line that says which run the output that follows belongs to."""
    if devices.is_primary():
        print(f"Run {folder}", flush=True)
    return folder


def negative_run(loaded: Dataset, config: Config[Any], folder: Path) -> tuple[str, int, dict[str, float]]:
    """Train in Negative mode and tune the heads; the split reported, its size, and the score after each stage."""
    with train.opened(loaded, config, folder) as (run, dataset):
        keys = train.train_backbone(run, dataset, config)
        found = finetune.tune(run, config, keys, dataset.splits.get("test"))
    split = tables.reported_split(found)
    mean = tables.MEAN[config.choose.metric]
    first, second = (tables.TITLES[stage] for stage in ORDERS[config.order])
    names = ("Negative", f"CFT {first}", f"CFT {first}, then {second}", "CFT final")
    scores = [found[split][stage][mean] for stage in ("backbone", *ORDERS[config.order], "final")]
    scores = [math.nan if score is None else score for score in scores]
    return split, len(dataset.splits[split]), dict(zip(names, scores, strict=True))


def ignore_run(loaded: Dataset, config: Config[Any], folder: Path, split: str) -> float:
    """Train in Ignore mode; the backbone's score on a split."""
    with train.opened(loaded, config, folder) as (run, dataset):
        train.train_backbone(run, dataset, config, [split])
        return backbone_score(run, split, config.choose.metric)


def backbone_score(run: Run, split: str, metric: Metric) -> float:
    """Mean AP or AUROC of a run's backbone over the defined categories of a split; NaN where none is."""
    embeddings, heads = run.embeddings(split), run.heads("backbone")
    scores = []
    for start in range(0, len(heads.bias), CATEGORIES_AT_ONCE):
        some = slice(start, start + CATEGORIES_AT_ONCE)
        logits = report.logits({"backbone": heads}, embeddings, some)["backbone"]
        labels, known = (np.asarray(x[:, some], bool) for x in (embeddings.labels, embeddings.known))
        scores.append(metrics.score(metric, logits, labels, known))
    return float(metrics.mean_defined(np.concatenate(scores)))


def write(folder: Path, scores: Scores, labels: LabelsConfig, console: Console | None = None) -> None:
    """Print the table, and write table.txt, table.csv, table.json and table.png.

    Args:
        folder: of the sweep.
        scores: of its runs.
        labels: how labels were hidden, for the note.
        console: where the table is printed; None is the terminal.
    """
    plain = Console(file=io.StringIO(), width=tables.FULL_WIDTH, color_system=None, record=True)
    console = console or Console(width=None if sys.stdout.isatty() else tables.FULL_WIDTH)
    for target in (plain, console):
        target.print(table(scores))
        for note in notes(scores, labels):
            target.print(note, markup=False, highlight=False)
    storage.write_bytes(folder / "table.txt", re.sub(" +$", "", plain.export_text(), flags=re.MULTILINE).encode())
    storage.write_bytes(folder / "table.csv", to_csv(scores).encode())
    storage.write_json(folder / "table.json", to_json(scores))
    mean = tables.MEAN[scores.metric]
    figure = figures.over_proportions(scores.proportions, scores.methods, metric=mean, split=scores.split)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    storage.write_bytes(folder / "table.png", picture.getvalue())


def table(scores: Scores) -> Table:
    """A row per method; columns of known proportions and their mean, in %."""
    title = f"{tables.MEAN[scores.metric]} in % on {scores.split}, by the share of training labels known"
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), expand=False)
    out.add_column("method", no_wrap=True)
    for proportion in scores.proportions:
        out.add_column(f"{100 * proportion:g} %", justify="right", no_wrap=True, min_width=7)
    out.add_column("mean", justify="right", no_wrap=True, min_width=7)
    for place, (name, columns) in enumerate(scores.columns.items()):
        style = "bold" if place == len(scores.methods) - 1 else ""
        out.add_row(name, *(_cell(*column) for column in columns.values()), style=style, end_section=place == 1)
    return out


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return tables.UNDEFINED
    return f"{100 * mean:.2f}" if math.isnan(spread) else f"{100 * mean:.2f} ± {100 * spread:.2f}"


def notes(scores: Scores, labels: LabelsConfig) -> list[str]:
    """What a reader of the table must know besides: the split, the seeds, what the rows are."""
    lines = [
        f"Scored on {scores.split}: {scores.num_images:,} images, {scores.num_categories:,} categories. "
        f"Training labels hidden: {labels.hide}, seed {labels.hide_seed}.",
        "Negative, Ignore: a backbone trained with unknown labels as negative, or left out. CFT starts from Negative.",
    ]
    if scores.split == "validation":
        lines.append("There is no test split: validation was used to choose, so these scores are optimistic.")
    seeds = ", ".join(map(str, scores.seeds))
    if len(scores.seeds) == 1:
        lines.append(f"One seed ({seeds}), so that nothing is known of the spread.")
    else:
        lines.append(f"{len(scores.seeds)} seeds ({seeds}) of training and search: mean ± standard deviation.")
    return lines


def to_csv(scores: Scores) -> str:
    """The table at full precision, scores in [0, 1], undefined ones empty; with several seeds their deviations too."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    several = len(scores.seeds) > 1
    titles = [*(f"{proportion:g}" for proportion in scores.proportions), "mean"]
    writer.writerow(["method", *titles, *(f"{title}_std" for title in titles if several)])
    for name, columns in scores.columns.items():
        means, spreads = zip(*columns.values(), strict=True)
        cells = [*means, *(spreads if several else ())]
        writer.writerow([name, *("" if math.isnan(cell) else cell for cell in cells)])
    return file.getvalue()


def to_json(scores: Scores) -> dict[str, Any]:
    """Every seed's scores in [0, 1], their means and deviations; null where undefined."""

    def defined(values: Sequence[float]) -> list[float | None]:
        return [None if math.isnan(value) else value for value in values]

    return {
        "metric": tables.MEAN[scores.metric],
        "split": scores.split,
        "images": scores.num_images,
        "categories": scores.num_categories,
        "known_proportions": list(scores.proportions),
        "seeds": list(scores.seeds),
        "methods": {
            name: {
                "scores": [defined(row) for row in scores.methods[name].tolist()],
                "columns": {
                    title: dict(zip(("mean", "std"), defined(column), strict=True)) for title, column in columns.items()
                },
            }
            for name, columns in scores.columns.items()
        },
    }


if __name__ == "__main__":
    cli.run(main)
