"""From embeddings to the final heads: search and polish in either order, choice, decisions, and the report.

What is complete with the same settings and inputs is kept. Without a validation split the known training labels are
cross-validated: every stage then works on five parts, the folds, and keeps the heads of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cftjax import metrics
from cftjax.cft import sampling, tuning
from cftjax.cft.polish import Polished
from cftjax.cft.search import Found
from cftjax.config import ORDERS, TuningConfig
from cftjax.report import page
from cftjax.report.mistakes import Heatmaps
from cftjax.report.printing import defined
from cftjax.runs import Run, Stage
from cftjax.runtime import devices, storage
from cftjax.stages import crossfit, outcome
from cftjax.stages.watching import watched
from cftjax.types import Heads, Records


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
        config: its order, ga, polish, choose, decide, report, log and seed are read.
        made_from: keys of the stages before.
        records: the images of the split reported, for a sheet of them and the worst mistakes in the report.
        heatmaps: where images speak for a category, for the mistakes in the report.

    Returns:
        The content of report/metrics.json; empty where neither validation nor test is there to report on.
    """
    settings = list(page.of_config(config))
    embeddings = {split: run.embeddings(split) for split in run.splits}
    if config.choose.rule == "shared":
        key = crossfit.tune(run, embeddings, config, made_from)
    else:
        parts = tuning.parts(embeddings["train"], embeddings.get("validation"), run.heads("backbone"), config)
        config = tuning.for_parts(config, parts)
        tuned, key = _search_and_polish(run, parts, config, made_from)
        key = _choose(run, parts, tuned, config, key)
    outcome.hand_back(run)
    outcome.decide(run, embeddings, config.decide, key)
    reported = outcome.report(run, embeddings, config, key, settings, records, heatmaps)
    outcome.log(run, reported)
    return reported


class PartHeads(NamedTuple):
    """The heads that search and polish have made of one part.

    Attributes:
        heads: by stage, that of the backbone among them.
        fair_scores: by stage, [c]: scores of validation rows that did not pick the head; of the search alone.
    """

    heads: dict[str, Heads]
    fair_scores: dict[str, np.ndarray]


def _search_and_polish(
    run: Run, parts: Sequence[tuning.Part], config: TuningConfig, made_from: Sequence[str]
) -> tuple[list[PartHeads], str]:
    """Both stages in the order asked for, each from the heads of the one before.

    Returns:
        Their heads by part, and the key of the last stage.
    """
    tuned = [PartHeads({"backbone": part.start}, {}) for part in parts]
    current, key = [part.start for part in parts], config.order
    for name in ORDERS[config.order]:
        searched = sampling.recorded(config.ga, len(parts[0].train))
        settings = [config.polish] if name == "polish" else [searched, config.seed]
        with run.stage(f"heads/{name}", settings, [*made_from, key]) as stage:
            if not stage.complete:
                results = _work(name, stage, parts, current, config)
                if devices.is_primary():
                    _write(name, stage.folder, results, run.heads("backbone"))
        if config.log and devices.is_primary():
            _log(name, stage.folder, run, config)
        key, current = stage.key, []
        for part, file in zip(tuned, _part_files(stage.folder, len(parts)), strict=True):
            arrays = storage.read_arrays(file)
            part.heads[name] = Heads(arrays["kernel"], arrays["bias"])
            current.append(part.heads[name])
            if "fair_scores" in arrays:
                part.fair_scores[name] = arrays["fair_scores"]
    return tuned, key


def _work(
    name: str, stage: Stage, parts: Sequence[tuning.Part], start: Sequence[Heads], config: TuningConfig
) -> Sequence[Found | Polished]:
    """Search or polish every part, keeping in its folder what an interrupted call goes on from."""
    mesh = devices.mesh() if jax.device_count() > 1 else None
    title, unit, metric = (
        ("Polish", "categories", config.polish.metric)
        if name == "polish"
        else ("Search", "generations", config.ga.metric)
    )
    results = []
    with watched(title, unit, f"validation m{metric}", len(parts)) as news_of:
        for i, (part, heads) in enumerate(zip(parts, start, strict=True)):
            kept = stage.folder / ("categories" if len(parts) == 1 else f"categories_{i}")
            options = {"store": storage.FolderStore(kept, stage.key), "progress": news_of(i), "mesh": mesh}
            results.append(tuning.run_stage(name, part, heads, config, jax.random.key(config.seed), **options))
    return results


def _part_files(folder: Path, num: int) -> list[Path]:
    """Where a stage keeps the heads of each part; a single part's are the stage's own."""
    return [folder / "heads.npz"] if num == 1 else [folder / f"fold_{i}.npz" for i in range(num)]


def _write(name: str, folder: Path, results: Sequence[Any], backbone: Heads) -> None:
    """Write the heads of every part, what polish kept or how the search went and, of several parts, their mean."""
    if name == "polish":
        storage.write_arrays(
            folder / "kept.npz",
            {
                "pull": np.array([result.pulls for result in results]),
                "step": np.array([result.steps for result in results]),
                "candidate": np.array(results[0].candidates),
                "score": np.asarray(metrics.mean_defined(np.stack([result.scores for result in results], axis=-1))),
            },
        )
    else:
        each = np.stack([np.concatenate([result.before[None], result.history]) for result in results], axis=-1)
        history = np.asarray(metrics.mean_defined(each))  # NaN where a category has stopped in every fold
        storage.write_arrays(folder / "history.npz", {"generation": np.arange(len(history)), "score": history})
    for file, result in zip(_part_files(folder, len(results)), results, strict=True):
        fair = {"fair_scores": result.fair_scores} if isinstance(result, Found) else {}
        storage.write_arrays(file, {"kernel": result.heads.kernel, "bias": result.heads.bias, **fair})
    if len(results) > 1:
        able = [[c for c in range(len(backbone.bias)) if c not in result.untuned] for result in results]
        storage.write_heads(folder / "heads.npz", tuning.mean_heads([each.heads for each in results], able, backbone))


def _log(name: str, folder: Path, run: Run, config: TuningConfig) -> None:
    """The curves of a search or polish that is done, by generation or by pull."""
    if name == "ga":
        curve, scores = f"search/m{config.ga.metric}", storage.read_arrays(folder / "history.npz")["score"]
    else:
        kept = storage.read_arrays(folder / "kept.npz")
        if "score" not in kept:
            warnings.warn(
                f"{folder} was made by an older version, which kept no scores for --log: delete the folder to "
                "have it made anew, with its curve.",
                stacklevel=2,
            )
            return
        curve, scores = f"polish/m{config.polish.metric}", kept["score"]
    run.tracking.write(folder, curve, run.categories, scores)


def _choose(
    run: Run, parts: Sequence[tuning.Part], tuned: Sequence[PartHeads], config: TuningConfig, made_from: str
) -> str:
    """Choose on every part which head each category keeps, and write the choice; the key of the stage."""
    with run.stage("heads/final", [config.choose], [made_from]) as final:
        if not final.complete and devices.is_primary():
            each = [
                tuning.choose_of(part, candidates.heads, config, candidates.fair_scores)
                for part, candidates in zip(parts, tuned, strict=True)
            ]
            chosen = tuning.combine(each, run.embeddings("train"), run.heads("backbone"))
            untuned = {run.categories[c]: reason for c, reason in chosen.untuned.items()}
            content = {"chosen": chosen.names, "untuned": untuned, "scores": defined(chosen.scores)}
            storage.write_json(final.folder / "chosen.json", content)
            storage.write_heads(final.folder / "heads.npz", chosen.heads)
    return final.key
