"""Train over seeds and backbones and keep the runs as one model, or keep finished ones as one.

    cftjax ensemble RECIPE [--seeds 0 1 2] [--backbones resnet50 densenet121=FILE] [any option of cftjax train]
    cftjax ensemble RUN RUN … -o FOLDER

`cftjax predict` and `cftjax evaluate` take the folder as they take a run's. The first form leaves each member in a
folder of its own, FOLDER/resnet50-seed-0 and so on; stopped, it goes on where it stood.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cftjax import cli
from cftjax.config import Config, DecideConfig, Metric
from cftjax.data import preflight
from cftjax.default import get_config
from cftjax.inference import ensemble as kept
from cftjax.runs import Run
from cftjax.runtime import devices, hosts, tracking
from cftjax.stages import together
from cftjax.stages.together import Combine

D = TypeVar("D")


@dataclasses.dataclass(frozen=True)
class Training(cli.Experiment[D]):
    """An experiment with several seeds and backbones, kept as one model."""

    workdir: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/digits-ensemble")
    """The folder of the ensemble and of its members; one that was interrupted goes on where it stood."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training and search: a member for each of them and each backbone. The splits stay."""
    backbones: tuple[str, ...] = ()
    """Architectures, each with pretrained weights behind a = where it has any, such as resnet50=FILE; none means
    --backbone.name."""
    combine: Combine = "mean"
    """Weights of the members: equal; those that make the labels of validation most likely; or picked greedily by
    --choose.metric on validation."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Keep finished runs on the same data as one model."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Folders of finished runs."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The folder of the ensemble, which remembers where its runs are."""
    combine: Combine = "mean"
    """Weights of the members: equal; those that make the labels of validation most likely; or picked greedily by the
    metric that the runs chose by, on validation."""
    metric: Metric | None = None
    """What tables show first and greedy picks by; None is the metric that the runs chose by."""
    resamples: int = 1000
    """Bootstrap resamples behind intervals and p values; 0 leaves them out."""
    seed: int = 0
    """Seed of the bootstrap."""


def main() -> None:
    """Train what is not there yet, then keep all of it as one."""
    if any(Path(word).is_dir() for word in sys.argv[1:2]):
        keep(tyro.cli(Keeping, prog="cftjax ensemble"))
    else:
        train()


def keep(options: Keeping) -> None:
    """Of runs that are finished.

    Raises:
        ValueError: where there is one only, or the folder is a run's.
    """
    if len(options.runs) < 2:
        raise ValueError("one run is no ensemble: name two or more")
    first = Run(options.runs[0])
    refuse_run(options.output, "-o")
    metric = options.metric or first.config["settings"]["choose"]["metric"]
    decide = DecideConfig(**first.config["settings"]["decide"])
    fitted = together.keep(options.output, options.runs, options.combine, decide, metric)
    together.report(options.output, fitted, metric, resamples=options.resamples, seed=options.seed)
    print(f"Ensemble: {options.output}")


def train() -> None:
    """Of runs that are trained first, where they are not finished."""
    options: Training[Any] = cli.parse(
        "Train with several seeds and backbones, and keep the runs as one model.",
        get_config,
        kind=Training,
        suffix="-ensemble",
    )
    config, folder = options.config, options.workdir
    parts = members(config, options.seeds, options.backbones)
    refuse_run(folder, "--workdir")
    tracking.check(config.log)
    hosts.join(options.hosts, options)
    loaded = preflight.read(config.data, allow_missing=config.input.on_bad_image == "skip")
    for place, (name, own) in enumerate(parts.items()):
        if devices.is_primary():
            print(f"Member {place + 1} of {len(parts)}: {folder / name}", flush=True)
        together.member(loaded, own, folder / name, [folder / other for other in parts if other != name])
    if not devices.is_primary():
        return
    metric, drawn = config.choose.metric, config.report
    fitted = together.keep(folder, [folder / name for name in parts], options.combine, config.decide, metric)
    together.report(folder, fitted, metric, resamples=drawn.resamples, seed=config.seed)
    print(f"Ensemble: {folder}")


def members(config: Config[Any], seeds: Sequence[int], backbones: Sequence[str]) -> dict[str, Config[Any]]:
    """Folder -> experiment, of every backbone and seed.

    Raises:
        ValueError: where it is one only, where two would share a folder, or for folds.
    """
    if config.split.folds:
        raise ValueError("--split.folds tests every image once, an ensemble all images of one test split: leave it out")
    chosen = [config.backbone]
    if backbones:
        pairs = [word.partition("=") for word in backbones]
        chosen = [dataclasses.replace(config.backbone, name=name, weights=file or None) for name, _, file in pairs]
        if config.backbone.weights is not None:
            raise ValueError("--backbone.weights beside --backbones: say whose they are, --backbones NAME=WEIGHTS")
    for option, values in (("--seeds", [*map(str, seeds)]), ("--backbones", [one.name for one in chosen])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{option} has {twice[0]} twice: name each once")
    if negative := [seed for seed in seeds if seed < 0]:
        raise ValueError(f"--seeds {negative[0]} is negative: use 0 or more")
    found = {
        f"{own.name}-seed-{seed}": dataclasses.replace(config, backbone=own, seed=seed)
        for own in chosen
        for seed in seeds
    }
    if len(found) < 2:
        raise ValueError("one run is no ensemble: name more --seeds or --backbones, such as --seeds 0 1 2")
    return found


def refuse_run(folder: Path, option: str) -> None:
    """Refuse a folder that is a run's own.

    Raises:
        ValueError: with the mend.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{option} {folder} is a single run: give the ensemble a folder of its own")
    begun = kept.is_ensemble(folder) or any(folder.glob("*/config.json"))
    if folder.is_dir() and any(folder.iterdir()) and not begun:
        raise ValueError(f"{option} {folder} is not empty and holds no ensemble: give a new folder")


if __name__ == "__main__":
    cli.run(main)
