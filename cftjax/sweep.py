"""The paper's table from real runs: modes of unknown labels before and after CFT, over known proportions of the labels.

    cftjax sweep RECIPE --known-proportions 0.1 0.5 0.9 [--seeds 0 1 2] [--unknowns ignore selective]
        [any option of cftjax.train]

WORKDIR/negative-0.1 is the run in Negative mode, WORKDIR/ignore-0.1 the one in Ignore mode, and so on. A sweep that was
stopped goes on where it stood, and more modes, proportions or seeds may be asked for later. With a frozen backbone the
runs share their embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cftjax import cli, runs
from cftjax.config import ORDERS, Config, Unknown, check_together
from cftjax.data import preflight
from cftjax.default import get_config
from cftjax.metrics import MEAN
from cftjax.report import sweep_scores, sweep_table
from cftjax.report.sweep_scores import FULL, RunScores, SweepScores
from cftjax.runtime import devices, hosts, storage, tracking
from cftjax.stages import backbone, crossfit, heads
from cftjax.types import SPLITS, Dataset
from cftjax.unknowns import MODES

D = TypeVar("D")

# Ways of hiding labels that known_proportion governs.
BY_PROPORTION = ("uniform", "uneven", "positives_first")


@dataclasses.dataclass(frozen=True)
class Sweep(cli.Experiment[D]):
    """An experiment at several known proportions; the sweep itself sets labels.known-proportion and labels.unknown."""

    workdir: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/digits-sweep")
    """The folder of the table and of all runs; a sweep that was interrupted goes on where it stood."""
    known_proportions: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Shares of the training labels that stay known (of the positive ones, where labels.hide is positives_first): a run
    for each of them and each mode."""
    seeds: tuple[int, ...] = ()
    """Seeds of training and search, for mean and standard deviation; none given, the one of --seed."""
    unknowns: tuple[Unknown, ...] = ("assume_negative", "ignore")
    """What unknown labels become while the backbone trains: a row of the table for each."""
    tuned: tuple[Unknown, ...] = ()
    """Of these modes the ones that CFT is put on top of; none given, all of them."""
    full_labels: bool = False
    """One more run of each seed, of which no label is hidden: what all labels of the same images would give."""


def main() -> None:
    """Train and tune every run or go on with it, score, print and write the table."""
    sweep: Sweep[Any] = cli.parse(
        "Train in several modes at several known proportions, and make a table of what CFT gains.",
        get_config,
        kind=Sweep,
        suffix="-sweep",
    )
    check(sweep)
    tracking.check(sweep.config.log)
    hosts.join(sweep.hosts, sweep)
    config, seeds, tuned = sweep.config, sweep.seeds or (sweep.config.seed,), sweep.tuned or sweep.unknowns
    loaded = preflight.read(config.data, allow_missing=config.input.on_bad_image == "skip")
    if devices.is_primary():
        # Of a table that was being written; the runs look after themselves.
        storage.remove_leftovers(sweep.workdir, deep=False)
    split = split_scored(loaded, config)
    # Mode -> seed by seed, proportion by proportion.
    found: dict[str, list[list[RunScores]]] = {mode: [] for mode in sweep.unknowns}
    for seed in seeds:
        for mode in sweep.unknowns:
            found[mode].append([])
        for proportion in sweep.known_proportions:
            suffix = f"{proportion:g}" + (f"-seed-{seed}" if seed != config.seed else "")
            for mode in sweep.unknowns:
                folder = sweep.workdir / f"{MODES[mode].folder or mode}-{suffix}"
                if devices.is_primary():
                    print(f"Run {folder}", flush=True)
                own = part(config, proportion, seed, mode)
                others = [other for other in runs_in(sweep.workdir) if other != folder]
                found[mode][-1].append(one_run(loaded, own, folder, split, mode in tuned, others))
    if sweep.full_labels:
        found[FULL] = [full_labels(loaded, sweep, seed, split) for seed in seeds]
    if not devices.is_primary():
        return
    first = next(iter(found.values()))[0][0]
    scores = SweepScores(
        found,
        tuned=tuned,
        order=config.order,
        proportions=sweep.known_proportions,
        seeds=seeds,
        metric=config.choose.metric,
        split=split,
        num_images=first.num_images,
        num_categories=len(loaded.categories),
        unit=first.unit,
    )
    sweep_table.write(sweep.workdir, scores, config.labels)
    print(f"Table: {sweep.workdir / 'table.txt'}")


def check(sweep: Sweep[Any]) -> None:
    """Refuse what cannot be swept, before anything is read.

    Raises:
        ValueError: with the mend.
    """
    given = (
        ("known-proportions", sweep.known_proportions),
        ("seeds", sweep.seeds),
        ("unknowns", sweep.unknowns),
        ("tuned", sweep.tuned),
    )
    for name, values in given:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"--{name} has {value} twice: name every value once")
    if not sweep.known_proportions:
        raise ValueError("--known-proportions is empty: name one or more, such as 0.1 0.5 0.9")
    for proportion in sweep.known_proportions:
        if not 0 < proportion <= 1:
            raise ValueError(f"--known-proportions {proportion:g} is not a share of the labels: use values in (0, 1]")
    if negative := [seed for seed in sweep.seeds if seed < 0]:
        raise ValueError(f"--seeds {negative[0]} is negative: use 0 or more")
    if not sweep.unknowns:
        raise ValueError("--unknowns is empty: name one or more, such as assume_negative ignore")
    if other := [mode for mode in sweep.tuned if mode not in sweep.unknowns]:
        raise ValueError(f"--tuned {other[0]} is not among the modes of this sweep: add it to --unknowns")
    hide = sweep.config.labels.hide
    if hide not in BY_PROPORTION:
        raise ValueError(
            f"labels.hide is {hide}, so that there is no known proportion to vary: add --labels.hide uniform"
        )
    for mode in sweep.unknowns:
        check_together(part(sweep.config, sweep.known_proportions[0], 0, mode).labels, sweep.config.training)
    if (sweep.workdir / "config.json").exists():
        raise ValueError(f"--workdir {sweep.workdir} is a single run: give the sweep a folder of its own")


def split_scored(loaded: Dataset, config: Config[Any]) -> str:
    """Test where there is one, else validation.

    Raises:
        ValueError: where there is neither.
    """
    if "test" in loaded.splits or config.split.test_share > 0 or config.split.fold is not None:
        return "test"
    if "validation" in loaded.splits or config.split.validation_share > 0:
        return "validation"
    raise ValueError("there is neither a test nor a validation split to score: use --split.validation-share 0.1")


def part(config: Config[Any], proportion: float, seed: int, unknown: Unknown) -> Config[Any]:
    """The experiment of one run."""
    labels = dataclasses.replace(config.labels, known_proportion=proportion, unknown=unknown)
    return dataclasses.replace(config, labels=labels, seed=seed)


def full_labels(loaded: Dataset, sweep: Sweep[Any], seed: int, split: str) -> list[RunScores]:
    """The run of which no label is hidden, once for every proportion."""
    suffix = "" if seed == sweep.config.seed else f"-seed-{seed}"
    folder = sweep.workdir / f"full{suffix}"
    if devices.is_primary():
        print(f"Run {folder}", flush=True)
    own = part(sweep.config, 1.0, seed, "ignore")
    own = dataclasses.replace(own, labels=dataclasses.replace(own.labels, hide="none"))
    others = [other for other in runs_in(sweep.workdir) if other != folder]
    return [one_run(loaded, own, folder, split, False, others)] * len(sweep.known_proportions)


def runs_in(folder: Path) -> list[Path]:
    """The runs of a sweep so far."""
    return sorted(path.parent for path in folder.glob("*/config.json"))


def one_run(
    loaded: Dataset, config: Config[Any], folder: Path, split: str, tuned: bool, elsewhere: Sequence[Path] = ()
) -> RunScores:
    """Train one run and, if asked, tune its heads; what it scores.

    Args:
        loaded: the splits as the files give them.
        config: of this run.
        folder: of this run.
        split: that is scored.
        tuned: whether CFT is put on top.
        elsewhere: folders of runs whose embeddings may be shared.
    """
    with backbone.opened(loaded, config, folder) as (run, dataset):
        made_from = backbone.train(run, dataset, config, SPLITS if tuned else [split], elsewhere)
        if not tuned:
            return sweep_scores.of_run(run, split, config.choose.metric, ["backbone"], config.report.resamples)
        reported = heads.tune(run, config, made_from, dataset.reported)
        stages = ["backbone", "final", *(["refit"] if config.choose.rule == "shared" else [])]
        if config.choose.rule == "shared" and config.choose.refit == "all" and "validation" in run.splits:
            crossfit.judge_only(run, config, made_from)
            stages.append(runs.JUDGED)
        measured = sweep_scores.of_run(run, split, config.choose.metric, stages, config.report.resamples)
    mean = MEAN[config.choose.metric]
    between = {stage: reported[split][stage][mean] for stage in ORDERS[config.order]}
    scores = {stage: math.nan if score is None else score for stage, score in between.items()}
    return dataclasses.replace(measured, scores=measured.scores | scores)


if __name__ == "__main__":
    cli.run(main)
