"""CFT on a model trained anywhere: `python -m cftjax.finetune FILE.npz --workdir RUN`.

The file holds embeddings, labels and the last layer; the run holds the report and `heads.npz`, a new last layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from cftjax import cli, devices, embedding, hosts, metrics, report, runs, storage
from cftjax.cft import tuning
from cftjax.cft.search import Found
from cftjax.config import ORDERS, HostsConfig, TuningConfig, with_recipe
from cftjax.data import labels as label_values
from cftjax.progress import Progress
from cftjax.runs import Run
from cftjax.types import SPLITS, Embeddings, Heads, Records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(TuningConfig):
    """Tune the last layer of a model trained anywhere, from its embeddings.

    The .npz holds train_z [n d] (or [n c d]), train_labels [n c] (1, 0, NaN where unknown), validation_z,
    validation_labels, kernel [c d], bias [c], and optionally test_z, test_labels and categories [c]. Without
    validation_z the known training labels are cross-validated.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("embeddings.npz")
    """The .npz."""
    workdir: Path = Path("runs/finetune")
    """The folder of the run; a run that was interrupted goes on where it stood."""
    recipe: Literal["default", "paper"] = "default"
    """Search and polish as measures best, or as published."""
    minus_one: Literal["refuse", "uncertain", "unknown"] = "refuse"
    """What a label of -1 means: programs disagree, so that it is refused until you say."""
    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=HostsConfig)


def read(source: Finetuning) -> tuple[tuple[str, ...], dict[str, Embeddings], Heads]:
    """Categories, embeddings per split, and the heads of the file.

    Raises:
        ValueError: with every array that is missing or of the wrong shape, or the first label that is not one.
    """
    arrays = storage.read_arrays(source.file)
    splits = [split for split in SPLITS if split == "train" or f"{split}_z" in arrays]
    needed = ["kernel", "bias", *(f"{split}_{part}" for split in splits for part in ("z", "labels"))]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{source.file} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    kernel, bias = arrays["kernel"], arrays["bias"]
    if kernel.ndim != 2 or bias.shape != kernel.shape[:1]:
        raise ValueError(f"{source.file}: kernel {kernel.shape} must be [c d] and bias {bias.shape} [c]")
    num, dim = kernel.shape
    problems = []
    embeddings = {}
    for split in splits:
        z, values = arrays[f"{split}_z"], arrays[f"{split}_labels"]
        if z.shape not in ((len(z), dim), (len(z), num, dim)):
            problems.append(f"{split}_z {z.shape} must be [n {dim}] or [n {num} {dim}], as kernel is {kernel.shape}")
        if values.shape != (len(z), num):
            problems.append(f"{split}_labels {values.shape} must be ({len(z)}, {num})")
        if problems:
            continue
        if not np.isfinite(z).all():
            row = int(np.argwhere(~np.isfinite(z))[0][0])
            problems.append(f"{split}_z has a value that is not finite, first in row {row}")
        values = values.astype(np.float32)
        if (values == -1).any():
            if source.minus_one == "refuse":
                row, column = np.argwhere(values == -1)[0]
                raise ValueError(
                    f"{source.file}: {split}_labels has -1, first in row {row}, column {column}; say what it means "
                    "with --minus-one uncertain or --minus-one unknown"
                )
            if source.minus_one == "unknown":
                values = np.where(values == -1, np.nan, values)
        try:
            found = label_values.from_values(values)
        except ValueError as error:
            raise ValueError(f"{source.file}: {split}_labels: {error}") from error
        embeddings[split] = Embeddings(z.astype(np.float32), found.labels, found.known, found.uncertain)
    categories = tuple(map(str, arrays["categories"] if "categories" in arrays else range(num)))
    if len(categories) != num or len(set(categories)) != num:
        problems.append(f"categories must be {num} different names, one per row of kernel")
    if problems:
        raise ValueError(f"{source.file}: " + "; ".join(problems))
    return categories, embeddings, Heads(kernel.astype(np.float32), bias.astype(np.float32))


def tune(run: Run, config: TuningConfig, made_from: Sequence[str], records: Records | None = None) -> dict[str, Any]:
    """Search, polish, choose and report on the embeddings and backbone heads of a run, keeping what is done already.

    Args:
        run: holds `embeddings/` and `heads/backbone/`.
        config: its ga, polish, choose, report and seed are read.
        made_from: keys of the stages before.
        records: the images of the test split, for a sheet of them in the report.

    Returns:
        The content of report/metrics.json; empty where neither validation nor test is there to report on.
    """
    embeddings = {split: run.embeddings(split) for split in SPLITS if (run.folder / "embeddings" / split).is_dir()}
    train, backbone = embeddings["train"], run.heads("backbone")
    parts = tuning.parts(train, embeddings.get("validation"), backbone, config)
    config = tuning.for_parts(config, parts)
    current, candidates = [part.start for part in parts], [{"backbone": part.start} for part in parts]
    fair_scores: list[dict[str, np.ndarray]] = [{} for _ in parts]
    key = config.order
    for name in ORDERS[config.order]:
        settings = [config.polish] if name == "polish" else [config.ga, config.seed]
        with run.stage(f"heads/{name}", settings, [*made_from, key]) as stage:
            if not stage.complete:
                _tune_stage(name, stage.folder, parts, current, config, backbone)
        key = stage.key
        made = [storage.read_arrays(file) for file in _part_files(stage.folder, len(parts))]
        current = [Heads(arrays["kernel"], arrays["bias"]) for arrays in made]
        for candidate, fair, heads, arrays in zip(candidates, fair_scores, current, made, strict=True):
            candidate[name] = heads
            if "fair_scores" in arrays:
                fair[name] = arrays["fair_scores"]

    with run.stage("heads/final", [config.choose], [key]) as final:
        if not final.complete and devices.is_primary():
            each = [
                tuning.choose_of(part, named, config, fair)
                for part, named, fair in zip(parts, candidates, fair_scores, strict=True)
            ]
            chosen = tuning.combine(each, train, backbone)
            untuned = {run.categories[c]: reason for c, reason in chosen.untuned.items()}
            judged = {name: [None if np.isnan(x) else float(x) for x in each] for name, each in chosen.scores.items()}
            content = {"chosen": chosen.names, "untuned": untuned, "scores": judged}
            storage.write_json(final.folder / "chosen.json", content)
            storage.write_heads(final.folder / "heads.npz", chosen.heads)
            storage.write_heads(run.folder / "heads.npz", chosen.heads)

    if not any(split in embeddings for split in report.SPLITS):
        if devices.is_primary():
            _say_cross_validated(run, config)
        return {}
    with run.stage("report", [config.report, config.choose.metric], [final.key]) as reported:
        if not reported.complete and devices.is_primary():
            choice = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
            report.write(
                reported.folder,
                categories=run.categories,
                embeddings=embeddings,
                heads={stage: run.heads(stage) for stage in runs.HEADS},
                chosen=choice["chosen"],
                untuned=choice["untuned"],
                history=storage.read_arrays(run.folder / "heads" / "ga" / "history.npz"),
                metric=config.choose.metric,
                seconds=run.seconds(),
                config=config.report,
                records=records,
                seed=config.seed,
            )
    return storage.read_json(run.folder / "report" / "metrics.json")


def _say_cross_validated(run: Run, config: TuningConfig) -> None:
    """What the folds say, where no split is left for a report."""
    choice = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
    means = []
    for name, scores in choice["scores"].items():
        defined = [score for score in scores if score is not None]
        means.append(f"{name} {100 * np.mean(defined):.2f}" if defined else f"{name} undefined")
    print(f"Cross-validated m{config.choose.metric} on the known training labels: {', '.join(means)}.")
    print("No report: the old heads have seen these labels, so that before and after need a validation or test split.")
    for category, reason in choice["untuned"].items():
        print(f"Left as before: {category} ({reason}).")


def _part_files(folder: Path, num: int) -> list[Path]:
    """Where a stage keeps the heads of each part; a single part's are the stage's own."""
    return [folder / "heads.npz"] if num == 1 else [folder / f"fold_{i}.npz" for i in range(num)]


def _tune_stage(
    name: str,
    folder: Path,
    parts: Sequence[tuning.Part],
    start: Sequence[Heads],
    config: TuningConfig,
    backbone: Heads,
) -> None:
    """Search or polish every part, and write heads, what was kept, and for the search its history."""
    mesh = devices.mesh() if jax.device_count() > 1 else None
    title, unit, metric = (
        ("Polish", "categories", config.polish.metric)
        if name == "polish"
        else ("Search", "generations", config.ga.metric)
    )
    found = []
    with Progress(title, unit=unit) as progress:
        for i, (part, heads) in enumerate(zip(parts, start, strict=True)):

            def report(done: int, total: int, score: float, i: int = i) -> None:
                progress.update(done + i * total, total * len(parts), f"validation m{metric} {score:.4f}")

            store = storage.FolderStore(folder / ("categories" if len(parts) == 1 else f"categories_{i}"))
            found.append(
                tuning.run_stage(
                    name, part, heads, config, jax.random.key(config.seed), store=store, progress=report, mesh=mesh
                )
            )
    if not devices.is_primary():
        return
    if name == "polish":
        storage.write_arrays(
            folder / "kept.npz",
            {"pull": np.array([one.pulls for one in found]), "step": np.array([one.steps for one in found])},
        )
    else:
        each = np.stack([np.concatenate([one.before[None], one.history]) for one in found], axis=-1)
        history = np.asarray(metrics.mean_defined(each))  # NaN where a category has stopped in every fold
        storage.write_arrays(folder / "history.npz", {"generation": np.arange(len(history)), "score": history})
    files = _part_files(folder, len(parts))
    for file, one in zip(files, found, strict=True):
        fair = {"fair_scores": one.fair_scores} if isinstance(one, Found) else {}
        storage.write_arrays(file, {"kernel": one.heads.kernel, "bias": one.heads.bias, **fair})
    if len(parts) > 1:
        tuned = [[c for c in range(len(backbone.bias)) if c not in one.untuned] for one in found]
        storage.write_heads(folder / "heads.npz", tuning.mean_heads([one.heads for one in found], tuned, backbone))


def main() -> None:
    """Read the file, tune its heads, report."""
    config = tyro.cli(Finetuning, default=with_recipe(Finetuning(), cli.recipe_of(sys.argv[1:])))
    hosts.join(config.hosts)
    config = dataclasses.replace(config, hosts=HostsConfig())  # which is no setting of the run
    categories, embeddings, heads = read(config)
    digest = hashlib.sha256(config.file.read_bytes() + config.minus_one.encode()).hexdigest()[:16]
    run = runs.create(config.workdir, config, categories, digest)
    with run.writing():
        keys = []
        for split, content in embeddings.items():
            with run.stage(f"embeddings/{split}", [], [digest]) as stage:
                if not stage.complete and devices.is_primary():
                    embedding.save(stage.folder, content)
            keys.append(stage.key)
        with run.stage("heads/backbone", [], [digest]) as stage:
            if not stage.complete and devices.is_primary():
                storage.write_heads(stage.folder / "heads.npz", heads)
        reported = tune(run, config, [*keys, stage.key])
    if not devices.is_primary():
        return
    if reported:
        print(f"Report: {run.folder / 'report'}")
    print(f"New last layer: {run.folder / 'heads.npz'}")


if __name__ == "__main__":
    cli.run(main)
