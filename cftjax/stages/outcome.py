"""What is made of the final heads of a run: files to take away, decisions, report and card."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cftjax import decisions, runs
from cftjax.config import ORDERS, DecideConfig, TuningConfig
from cftjax.inference import model
from cftjax.input.preprocessing import Box
from cftjax.metrics import MEAN
from cftjax.report import card, tables, write
from cftjax.report.contents import Results
from cftjax.report.mistakes import Heatmaps
from cftjax.report.page import Setting
from cftjax.runs import Run
from cftjax.runtime import devices, storage
from cftjax.scores.logits import category_groups, logits
from cftjax.text import few
from cftjax.types import JUDGED_SPLITS, STAGES, Embeddings, Records, word

# Of the report. Its page and its sheet of images show images, which may be nobody else's to see.
LOGGED = ("table.txt", "table.csv", "metrics.json", "before_after.png", "reliability.png", "search_history.png")


def hand_back(run: Run) -> None:
    """Write the new last layer, as arrays and as the state dict of a torch.nn.Linear."""
    if not devices.is_primary():
        return
    heads = run.heads("final")
    storage.write_heads(run.folder / "heads.npz", heads)
    storage.write_tensors(
        run.folder / "heads.safetensors",
        {"weight": np.asarray(heads.kernel), "bias": np.asarray(heads.bias)},
        {"categories": json.dumps(run.categories)},
    )


def decide(run: Run, embeddings: Mapping[str, Embeddings], config: DecideConfig, made_from: str) -> None:
    """Calibrate the final heads and set their thresholds, and name the categories where that could not be done."""
    with run.stage("decisions", [config], [made_from]) as stage:
        if stage.complete or not devices.is_primary():
            return
        split = "validation" if "validation" in embeddings else "train"
        seen, final = embeddings[split], {"final": run.heads("final")}
        groups, out_of_fold = [], run.out_of_fold()
        for some in category_groups(*seen.labels.shape):
            raw = logits(final, seen, some)["final"] if out_of_fold is None else out_of_fold["final"][:, some]
            names = run.categories[some]
            labels, known = seen.labels[:, some], seen.known[:, some]
            groups.append(
                decisions.fit(
                    raw, labels, known, config, categories=names, split=split, out_of_fold=out_of_fold is not None
                )
            )
        fitted = decisions.joined(groups)
        decisions.write(stage.folder / runs.DECISIONS, fitted)
        if fitted.fitted_on.note:
            print(f"Thresholds and calibration: {fitted.fitted_on.note}.")
        for note in dict.fromkeys(fitted.notes.values()):
            names = [category for category, own in fitted.notes.items() if own == note]
            print(f"Decisions of {few(names)}: {note}.")


def report(
    run: Run,
    embeddings: Mapping[str, Embeddings],
    config: TuningConfig,
    made_from: str,
    settings: Sequence[Setting],
    records: Records | None,
    heatmaps: Heatmaps | None,
) -> dict[str, Any]:
    """Write what fine-tuning changed, and the card of the run.

    Args:
        run: with heads of all stages.
        embeddings: by split.
        config: its report and choose.metric and seed are read.
        made_from: key of the choice.
        settings: of the run, as they were given.
        records: the images of the split reported, or None.
        heatmaps: where images speak for a category, or None.

    Returns:
        The content of report/metrics.json; empty where neither validation nor test is there to report on.
    """
    if not any(split in embeddings for split in JUDGED_SPLITS):
        if devices.is_primary():
            card.write(run)
            _say_cross_validated(run, config)
        return {}
    with run.stage("report", [config.report, config.choose.metric, config.decide], [made_from]) as stage:
        if not stage.complete and devices.is_primary():
            choice = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
            results = Results(
                categories=run.categories,
                embeddings=embeddings,
                heads={name: run.heads(name) for name in STAGES},
                chosen=choice["chosen"],
                untuned=choice["untuned"],
                history=storage.read_arrays(run.folder / "heads" / "ga" / "history.npz"),
                metric=config.choose.metric,
                seconds={name: spent for name, spent in run.seconds().items() if name != "report"},
                config=config.report,
                title=run.folder.resolve().name,
                settings=settings,
                versions=run.config["versions"],
                records=records,
                heatmaps=heatmaps,
                seed=config.seed,
                stages=("backbone", *ORDERS[config.order], "final"),
                decisions=run.decisions(),
                out_of_fold=run.out_of_fold() or {},
            )
            write.write(stage.folder, results)
    if devices.is_primary():
        card.write(run)
    return storage.read_json(run.folder / "report" / "metrics.json")


def log(run: Run, reported: dict[str, Any]) -> None:
    """What the run has come to, for the services of --log: scores, tables and figures, and none of the images."""
    if not devices.is_primary() or not reported:
        return
    split = tables.reported_split(reported)
    scores = {
        f"report/{mean}_{word(stage)}": reported[split][stage][mean]
        for mean in MEAN.values()
        for stage in ("backbone", "final")
    }
    files = (run.folder / "report" / name for name in LOGGED)
    run.tracking.results(scores, [file for file in files if file.is_file()])


def _say_cross_validated(run: Run, config: TuningConfig) -> None:
    """What the folds say, where no split is left for a report."""
    choice = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
    means = []
    for name, scores in choice["scores"].items():
        defined = [score for score in scores if score is not None]
        means.append(f"{word(name)} {100 * np.mean(defined):.2f}" if defined else f"{word(name)} undefined")
    print(f"Cross-validated m{config.choose.metric} on the known training labels: {', '.join(means)}.")
    print("No report: the old heads have seen these labels, so that before and after need a validation or test split.")
    for category, reason in choice["untuned"].items():
        print(f"Left as before: {category} ({reason}).")


def heatmaps(run: Run) -> Heatmaps:
    """Where the final heads of a run see a category; the model is loaded at the first use, when there is one."""
    load = functools.cache(model.load)

    def maps(images: Sequence[np.ndarray], category: int) -> list[tuple[np.ndarray, Box] | None]:
        trained = load(run.folder)
        if not trained.has_heatmaps:
            return [None] * len(images)
        places = trained.heatmaps(images, [run.categories[category]])[..., 0]
        boxes = [trained.box(*image.shape[:2]) for image in images]
        return list(zip(places, boxes, strict=True))

    return maps
