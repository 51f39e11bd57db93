"""The report of a run: metrics.json, a table and figures of what fine-tuning changed, on images kept apart for it.

Scores come from raw logits and known labels only. The split reported is test; without one it is validation, and every
title then says so. Intervals are paired bootstraps over images, or over patients where the images have groups.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cftjax import figures, metrics
from cftjax.config import Metric, ReportConfig
from cftjax.report import mistakes, page, tables
from cftjax.report.mistakes import Heatmaps
from cftjax.report.page import Setting
from cftjax.report.tables import MEAN, STAGES
from cftjax.runtime import storage
from cftjax.scores import bootstrap, reliability
from cftjax.scores.bootstrap import Interval, Resampled
from cftjax.scores.reliability import Bins
from cftjax.types import Embeddings, Heads, Records

SPLITS = ("validation", "test")
ROWS_AT_ONCE = 8192
# Logits of all stages of one group of categories, in bytes.
LOGITS_BYTES = 256 * 2**20
NUM_IMAGES = 24
# A figure of more is embedded as pixels: thousands of lines would make the page slow.
SVG_BYTES = 400_000


@dataclasses.dataclass(frozen=True)
class Scores:
    """One split, measured.

    Attributes:
        points: stage -> metric -> [c] in [0, 1], NaN where undefined.
        resampled: backbone and final under the same resamples.
        bins: backbone and final, for the reliability diagram.
        resampled_units: what a resample draws, "images" or "groups".
    """

    points: dict[str, dict[str, Float[np.ndarray, " c"]]]
    resampled: Resampled
    bins: dict[str, Bins]
    resampled_units: str


def logits(
    heads: Mapping[str, Heads], embeddings: Embeddings, some: slice | list[int]
) -> dict[str, Float[np.ndarray, "n g"]]:
    """Raw logits of each stage for some categories, reading the embeddings once, a block of rows at a time."""
    picked = {stage: Heads(np.asarray(head.kernel)[some], np.asarray(head.bias)[some]) for stage, head in heads.items()}
    found = {stage: np.empty((len(embeddings), len(head.bias)), np.float32) for stage, head in picked.items()}
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        z = embeddings.z[rows] if embeddings.z.ndim == 2 else embeddings.z[rows, some]
        for stage, head in picked.items():
            found[stage][rows] = head(z)
    return found


def category_groups(n: int, c: int) -> Iterator[slice]:
    """Categories, so many at a time that the logits of n images and all stages stay in memory."""
    size = max(1, LOGITS_BYTES // (4 * len(STAGES) * max(n, 1)))
    return (slice(start, min(start + size, c)) for start in range(0, c, size))


def measure(embeddings: Embeddings, heads: Mapping[str, Heads], *, resamples: int, seed: int) -> Scores:
    """Score every stage's heads on one split, and backbone and final under resampling.

    Args:
        embeddings: the split.
        heads: stage -> heads, for the stages backbone, ga, polish and final.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    n, c = embeddings.labels.shape
    pair = ("backbone", "final")
    points = {stage: {metric: np.empty(c, np.float32) for metric in MEAN} for stage in STAGES}
    resampled = Resampled(*(np.empty((2, resamples, c), np.float32) for _ in range(2)))
    empty = reliability.bins(*(np.zeros((0, 1), dtype) for dtype in (np.float32, bool, bool)))
    bins: dict[str, Bins] = {stage: empty for stage in pair}
    for some in category_groups(n, c):
        labels, known = (np.asarray(x[:, some], bool) for x in (embeddings.labels, embeddings.known))
        found = logits(heads, embeddings, some)
        for stage in STAGES:
            for metric in MEAN:
                points[stage][metric][some] = metrics.score(metric, found[stage], labels, known)
        both = np.stack([found[stage] for stage in pair])
        drawn = bootstrap.resample(both, labels, known, groups=embeddings.groups, resamples=resamples, seed=seed)
        resampled.AP[..., some], resampled.AUROC[..., some] = drawn.AP, drawn.AUROC
        for stage in pair:
            bins[stage] += reliability.bins(reliability.probabilities(found[stage]), labels, known)
    return Scores(points, resampled, bins, "images" if embeddings.groups is None else "groups")


def _plain(x: Any) -> Any:
    """NumPy to what JSON can say: lists, numbers, and None for what is not a number."""
    if isinstance(x, np.ndarray):
        return [_plain(value) for value in x.tolist()]
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x


def _intervals(found: Sequence[Interval]) -> dict[str, list[Any]]:
    return {key.name: [_plain(getattr(x, key.name)) for x in found] for key in dataclasses.fields(Interval)}


def to_dict(scores: Scores) -> dict[str, Any]:
    """A split's part of metrics.json: each stage's scores, and final minus backbone with intervals."""
    out: dict[str, Any] = {}
    for stage in STAGES:
        points = scores.points[stage]
        out[stage] = {MEAN[metric]: _plain(float(metrics.mean_defined(points[metric]))) for metric in MEAN}
        out[stage] |= {metric: _plain(points[metric].astype(np.float64)) for metric in MEAN}
    means, each = {}, {}
    for metric, mean in MEAN.items():
        value = scores.points["final"][metric].astype(np.float64) - scores.points["backbone"][metric]
        before, after = getattr(scores.resampled, metric)
        samples = after - before
        over_categories = np.asarray(metrics.mean_defined(samples), np.float64)
        found = bootstrap.interval(float(metrics.mean_defined(value)), over_categories)
        means[mean] = {key: _plain(x) for key, x in dataclasses.asdict(found).items()}
        each[metric] = _intervals([bootstrap.interval(float(v), s) for v, s in zip(value, samples.T, strict=True)])
    resamples = scores.resampled.AP.shape[1]
    out["difference"] = means | each | {"resampled": scores.resampled_units, "resamples": resamples}
    return out


def _known(embeddings: Embeddings) -> dict[str, list[int]]:
    labels, known = np.asarray(embeddings.labels, bool), np.asarray(embeddings.known, bool)
    return {"positive": (labels & known).sum(0).tolist(), "negative": (~labels & known).sum(0).tolist()}


def _drawn(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "cftjax"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _embedded(name: str, figure: Figure, png: bytes) -> page.Figure:
    """A figure as the page shows it: sharp at any size where that is small, photographs as JPEG."""
    if name.endswith("images"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "JPEG", quality=85)
        return page.Figure("images", buffer.getvalue(), "image/jpeg")
    svg = _drawn(figure, "svg")
    return page.Figure(name, svg, "image/svg+xml") if len(svg) < SVG_BYTES else page.Figure(name, png, "image/png")


def _mistakes(
    records: Records, embeddings: Embeddings, final: Heads, average_precision: np.ndarray, heatmaps: Heatmaps | None
) -> list[mistakes.Mistakes]:
    """The worst mistakes of the categories furthest from perfect."""
    some = mistakes.categories_shown(average_precision)
    found = logits({"final": final}, embeddings, some)["final"]
    labels, known = (np.asarray(x[:, some], bool) for x in (embeddings.labels, embeddings.known))
    return mistakes.find(some, found, labels, known, records, heatmaps)


def _images(records: Records, embeddings: Embeddings, final: Heads, categories: Sequence[str], split: str) -> Figure:
    """The sheet of images: a random few, each with what is true of it and what the final heads say."""
    # A run that left an image out must not fail at it here.
    rows = np.arange(len(records))
    if embeddings.unopened:
        rows = rows[~np.isin(np.array(records.names, str), list(embeddings.unopened))]
    rows = np.sort(np.random.default_rng(0).choice(rows, min(NUM_IMAGES, len(rows)), replace=False))
    images = [records.image(row) for row in rows.tolist()]
    z, labels, known = (np.asarray(x[rows]) for x in (embeddings.z, embeddings.labels, embeddings.known))
    probs = reliability.probabilities(np.asarray(final(z)))
    return figures.image_sheet(images, categories, probs, labels.astype(bool), known.astype(bool), split=split)


def write(
    folder: Path,
    *,
    categories: Sequence[str],
    embeddings: Mapping[str, Embeddings],
    heads: Mapping[str, Heads],
    chosen: Sequence[str],
    untuned: Mapping[str, str],
    history: Mapping[str, np.ndarray],
    metric: Metric,
    seconds: Mapping[str, float],
    config: ReportConfig,
    title: str,
    settings: Sequence[Setting] = (),
    versions: Mapping[str, str] | None = None,
    records: Records | None = None,
    heatmaps: Heatmaps | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a run, print its table, and write index.html, metrics.json, table.txt, table.csv and the figures.

    Args:
        folder: where to; made if need be.
        categories: names, length c.
        embeddings: train, and of validation and test those that there are, one at least.
        heads: of the stages backbone, ga, polish and final.
        chosen: for each category the candidate that became final.
        untuned: category -> why it stayed as it was.
        history: of the search, `generation` [g] and `score` [g c], the best validation score so far in [0, 1], NaN once
            a category has stopped and throughout where it was not tuned. Generation 0, the start, may lead.
        metric: which score the table and figures show.
        seconds: stage -> how long it took.
        config: how many resamples.
        title: what the page calls the run.
        settings: of the run, for the page.
        versions: library -> version, for the page.
        records: the images of the split reported, in the order of its embeddings; None leaves out their sheet and the
            page's mistakes.
        heatmaps: where the images of mistakes speak for their category; None leaves the maps out.
        seed: of the bootstrap.
        console: where the table is printed; None is the terminal.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: where stages, categories or images do not agree in number.
    """
    _check(categories, embeddings, heads, chosen, records)
    folder.mkdir(parents=True, exist_ok=True)
    splits = [split for split in SPLITS if split in embeddings]
    scores = {split: measure(embeddings[split], heads, resamples=config.resamples, seed=seed) for split in splits}
    out: dict[str, Any] = {"categories": list(categories), "metric": metric}
    out |= {split: to_dict(scores[split]) for split in splits}
    out["images"] = {split: len(embeddings[split]) for split in ("train", *splits)}
    out |= {"chosen": list(chosen), "untuned": dict(untuned)}
    out["known"] = {split: _known(embeddings[split]) for split in ("train", *splits)}
    out["unopened"] = {split: list(embeddings[split].unopened) for split in ("train", *splits)}
    out["seconds"] = {name: float(value) for name, value in seconds.items()}
    storage.write_bytes(
        folder / "metrics.json", (json.dumps(out, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    )

    split = splits[-1]
    storage.write_bytes(folder / "table.csv", tables.to_csv(out).encode())
    plain = Console(file=io.StringIO(), width=tables.FULL_WIDTH, color_system=None, record=True)
    # A pipe or a log has no width of its own, and Rich would assume 80.
    console = console or Console(width=None if sys.stdout.isatty() else tables.FULL_WIDTH)
    for target in (plain, console):
        target.print(tables.table(out, width=target.width))
        for note in tables.notes(out):
            target.print(note, markup=False, highlight=False, emoji=False)
    storage.write_bytes(folder / "table.txt", re.sub(" +$", "", plain.export_text(), flags=re.MULTILINE).encode())

    before, after = (scores[split].points[stage][metric] for stage in ("backbone", "final"))
    bins = {"before (backbone)": scores[split].bins["backbone"], "after (final)": scores[split].bins["final"]}
    drawn = {
        "before_after": figures.before_after(categories, before, after, metric=metric, split=split),
        "reliability": figures.reliability(bins, split=split),
        "search_history": figures.search_history(categories, history["generation"], history["score"], metric=metric),
    }
    for old in SPLITS:
        (folder / f"{old}_images.png").unlink(missing_ok=True)
    if records is not None and len(embeddings[split].unopened) < len(records):
        drawn[f"{split}_images"] = _images(records, embeddings[split], heads["final"], categories, split)
    embedded = []
    for name, figure in drawn.items():
        png = _drawn(figure, "png")
        storage.write_bytes(folder / f"{name}.png", png)
        embedded.append(_embedded(name, figure, png))

    ap = scores[split].points["final"]["AP"]
    found = None if records is None else _mistakes(records, embeddings[split], heads["final"], ap, heatmaps)
    text = page.render(out, title=title, figures=embedded, mistakes=found, settings=settings, versions=versions)
    storage.write_bytes(folder / "index.html", text.encode())
    return out


def _check(
    categories: Sequence[str],
    embeddings: Mapping[str, Embeddings],
    heads: Mapping[str, Heads],
    chosen: Sequence[str],
    records: Records | None,
) -> None:
    """Refuse what does not belong together before anything is measured or written."""
    for needed, given, kind in (
        (("train",), embeddings, "split"),
        (STAGES, heads, "stage"),
    ):
        missing = [name for name in needed if name not in given]
        if missing:
            raise ValueError(f"the report lacks the {kind} {', '.join(missing)}: give {', '.join(needed)}")
    if not any(split in embeddings for split in SPLITS):
        raise ValueError("the report needs a split that nothing was learned from: give test, or at least validation")
    counts = {"chosen": len(chosen)}
    counts |= {f"heads {stage}": len(heads[stage].bias) for stage in STAGES}
    counts |= {f"embeddings {split}": x.labels.shape[1] for split, x in embeddings.items()}
    for name, count in counts.items():
        if count != len(categories):
            raise ValueError(f"{name} has {count} categories, but {len(categories)} are named")
    split = "test" if "test" in embeddings else "validation"
    if records is not None and len(records) != len(embeddings[split]):
        raise ValueError(
            f"records has {len(records)} images, but the embeddings of {split} have {len(embeddings[split])}"
        )
