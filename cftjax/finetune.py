"""CFT on a model trained anywhere: `python -m cftjax.finetune FILE --workdir RUN`.

The file holds embeddings, labels and the last layer; the run holds the report and a new last layer, `heads.npz` and
`heads.safetensors`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from cftjax import cli, decisions, metrics, runs
from cftjax.cft import tuning
from cftjax.cft.search import Found
from cftjax.config import ORDERS, HostsConfig, TuningConfig, with_recipe
from cftjax.embeddings import bundles, embed
from cftjax.report import card, page, write
from cftjax.report.mistakes import Heatmaps
from cftjax.runs import Run
from cftjax.runtime import devices, hosts, interruption, storage, tensorboard
from cftjax.runtime.progress import Progress
from cftjax.text import few
from cftjax.types import SPLITS, Embeddings, Heads, Records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(TuningConfig):
    """Tune the last layer of a model trained anywhere, from its embeddings.

    An .npz or .safetensors holds train_z [n d] (or [n c d]), train_labels [n c] (1, 0, NaN where unknown),
    validation_z, validation_labels, kernel [c d], bias [c], and optionally test_z, test_labels, train_groups [n] and
    those of the other splits, and categories [c]. A .parquet has a row per image: split, z (or z_0, z_1, ...), a column
    per category, and optionally group. Without a validation split the known training labels are cross-validated.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("embeddings.npz")
    """The .npz, .safetensors or .parquet."""
    head: Path | None = None
    """The last layer in an .npz or .safetensors of its own, kernel (or weight) [c d] and bias [c]; a .parquet needs
    one."""
    workdir: Path = Path("runs/finetune")
    """The folder of the run; a run that was interrupted goes on where it stood."""
    recipe: Literal["default", "paper"] = "default"
    """Search and polish as measures best, or as published."""
    minus_one: bundles.MinusOne = "refuse"
    """What a label of -1 means: programs disagree, so that it is refused until you say."""
    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=HostsConfig)


def tune(
    run: Run,
    config: TuningConfig,
    made_from: Sequence[str],
    records: Records | None = None,
    heatmaps: Heatmaps | None = None,
) -> dict[str, Any]:
    """Search, polish, choose, decide and report on the embeddings and old heads of a run, keeping what is done already.

    Args:
        run: holds `embeddings/` and `heads/backbone/`.
        config: its ga, polish, choose, decide, report and seed are read.
        made_from: keys of the stages before.
        records: the images of the test split, for a sheet of them and the worst mistakes in the report.
        heatmaps: where images speak for a category, for the mistakes in the report.

    Returns:
        The content of report/metrics.json; empty where neither validation nor test is there to report on.
    """
    embeddings = {split: run.embeddings(split) for split in SPLITS if (run.folder / "embeddings" / split).is_dir()}
    train, backbone = embeddings["train"], run.heads("backbone")
    parts = tuning.parts(train, embeddings.get("validation"), backbone, config)
    recorded = list(page.of_config(config))
    config = tuning.for_parts(config, parts)
    current, candidates = [part.start for part in parts], [{"backbone": part.start} for part in parts]
    fair_scores: list[dict[str, np.ndarray]] = [{} for _ in parts]
    key = config.order
    for name in ORDERS[config.order]:
        settings = [config.polish] if name == "polish" else [config.ga, config.seed]
        with run.stage(f"heads/{name}", settings, [*made_from, key]) as stage:
            if not stage.complete:
                _tune_stage(name, stage.folder, parts, current, config, backbone)
        if config.tensorboard and devices.is_primary() and not (stage.folder / tensorboard.FOLDER).is_dir():
            _log(name, stage.folder, run.categories, config)
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
    if devices.is_primary():
        _hand_back(run, run.heads("final"))

    with run.stage("decisions", [config.decide], [final.key]) as decided:
        if not decided.complete and devices.is_primary():
            _decide(run, embeddings, config, decided.folder)

    if not any(split in embeddings for split in write.SPLITS):
        if devices.is_primary():
            card.write(run)
            _say_cross_validated(run, config)
        return {}
    with run.stage("report", [config.report, config.choose.metric], [final.key]) as reported:
        if not reported.complete and devices.is_primary():
            choice = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
            write.write(
                reported.folder,
                categories=run.categories,
                embeddings=embeddings,
                heads={stage: run.heads(stage) for stage in runs.HEADS},
                chosen=choice["chosen"],
                untuned=choice["untuned"],
                history=storage.read_arrays(run.folder / "heads" / "ga" / "history.npz"),
                metric=config.choose.metric,
                seconds={name: spent for name, spent in run.seconds().items() if name != "report"},
                config=config.report,
                title=run.folder.resolve().name,
                settings=recorded,
                versions=run.config["versions"],
                records=records,
                heatmaps=heatmaps,
                seed=config.seed,
            )
    if devices.is_primary():
        card.write(run)
    return storage.read_json(run.folder / "report" / "metrics.json")


def _decide(run: Run, embeddings: Mapping[str, Embeddings], config: TuningConfig, folder: Path) -> None:
    """Calibrate the final heads and set their thresholds, and name the categories where that could not be done."""
    split = "validation" if "validation" in embeddings else "train"
    seen, final = embeddings[split], {"final": run.heads("final")}
    parts = []
    for some in write.category_groups(*seen.labels.shape):
        logits = write.logits(final, seen, some)["final"]
        names = run.categories[some]
        parts.append(
            decisions.fit(
                logits, seen.labels[:, some], seen.known[:, some], config.decide, categories=names, split=split
            )
        )
    fitted = decisions.joined(parts)
    decisions.write(folder / runs.DECISIONS, fitted)
    if fitted.fitted_on.note:
        print(f"Thresholds and calibration: {fitted.fitted_on.note}.")
    for note in dict.fromkeys(fitted.notes.values()):
        names = [category for category, own in fitted.notes.items() if own == note]
        print(f"Decisions of {few(names)}: {note}.")


def _hand_back(run: Run, heads: Heads) -> None:
    """The new last layer, as arrays and as the state dict of a torch.nn.Linear."""
    storage.write_heads(run.folder / "heads.npz", heads)
    storage.write_tensors(
        run.folder / "heads.safetensors",
        {"weight": np.asarray(heads.kernel), "bias": np.asarray(heads.bias)},
        {"categories": json.dumps(run.categories)},
    )


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


def _log(name: str, folder: Path, categories: Sequence[str], config: TuningConfig) -> None:
    """The curves of a search or polish that is done, by generation or by pull, for TensorBoard."""
    if name == "ga":
        curve, scores = f"search/m{config.ga.metric}", storage.read_arrays(folder / "history.npz")["score"]
    else:
        kept = storage.read_arrays(folder / "kept.npz")
        if "score" not in kept:
            warnings.warn(
                f"{folder} was made by an older version, which kept no scores for TensorBoard: delete the folder to "
                "have it made anew, with its curve.",
                stacklevel=2,
            )
            return
        curve, scores = f"polish/m{config.polish.metric}", kept["score"]
    tensorboard.write_curves(folder / tensorboard.FOLDER, curve, categories, scores)


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
    # A signal waits for the next report: categories that are done are stored by then, and a search that is not, also.
    with interruption.deferred() as asked, Progress(title, unit=unit) as progress:
        for i, (part, heads) in enumerate(zip(parts, start, strict=True)):

            def report(done: int, total: int, score: float, i: int = i) -> None:
                progress.update(done + i * total, total * len(parts), f"validation m{metric} {score:.4f}")
                if asked.requested:
                    asked.stop(f"{title.lower()} is saved")

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
            {
                "pull": np.array([one.pulls for one in found]),
                "step": np.array([one.steps for one in found]),
                "candidate": np.array(found[0].candidates),
                "score": np.asarray(metrics.mean_defined(np.stack([one.scores for one in found], axis=-1))),
            },
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
    if config.tensorboard:
        tensorboard.check()
    hosts.join(config.hosts)
    config = dataclasses.replace(config, hosts=HostsConfig())  # which is no setting of the run
    categories, embeddings, heads = bundles.read(config.file, head=config.head, minus_one=config.minus_one)
    digest = bundles.fingerprint(config.file, config.head, config.minus_one)
    run = runs.create(config.workdir, config, categories, digest)
    with run.writing():
        keys = []
        for split, content in embeddings.items():
            with run.stage(f"embeddings/{split}", [], [digest]) as stage:
                if not stage.complete and devices.is_primary():
                    embed.save(stage.folder, content)
            keys.append(stage.key)
        with run.stage("heads/backbone", [], [digest]) as stage:
            if not stage.complete and devices.is_primary():
                storage.write_heads(stage.folder / "heads.npz", heads)
        reported = tune(run, config, [*keys, stage.key])
    if not devices.is_primary():
        return
    if reported:
        print(f"Report: {run.folder / 'report'}")
    print(f"New last layer: {run.folder / 'heads.npz'} and heads.safetensors")


if __name__ == "__main__":
    cli.run(main)
