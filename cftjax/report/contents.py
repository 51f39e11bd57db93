"""What a report says, as numbers: the contents of its metrics.json, from which tables and page are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cftjax.config import Metric, ReportConfig
from cftjax.data import leaks, sparse
from cftjax.decisions import Decisions
from cftjax.metrics import MEAN
from cftjax.report.mistakes import Heatmaps
from cftjax.report.page import Setting
from cftjax.report.printing import defined
from cftjax.scores import measure, predictions
from cftjax.scores.bootstrap import Interval
from cftjax.scores.measure import Asked, Measured
from cftjax.types import JUDGED_SPLITS, STAGES, Embeddings, Heads, Records

BEFORE, AFTER = STAGES.index("backbone"), STAGES.index("final")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What a run has come to, of which its report is made.

    Attributes:
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
        stages: in the order in which they ran, for the tables.
        decisions: of the final heads, whose probabilities the pictures show; None shows sigmoids.
        out_of_fold: stage -> [v c] logits of validation by heads that have not learned from it, where others have.
    """

    categories: Sequence[str]
    embeddings: Mapping[str, Embeddings]
    heads: Mapping[str, Heads]
    chosen: Sequence[str]
    untuned: Mapping[str, str]
    history: Mapping[str, np.ndarray]
    metric: Metric
    seconds: Mapping[str, float]
    config: ReportConfig
    title: str
    settings: Sequence[Setting] = ()
    versions: Mapping[str, str] | None = None
    records: Records | None = None
    heatmaps: Heatmaps | None = None
    seed: int = 0
    stages: Sequence[str] = STAGES
    decisions: Decisions | None = None
    out_of_fold: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def judged(self) -> list[str]:
        """The splits that are measured; the last of them is reported."""
        return [split for split in JUDGED_SPLITS if split in self.embeddings]

    @property
    def reported(self) -> str:
        """Test where there is one, else validation."""
        return self.judged[-1]


def check(results: Results) -> None:
    """Refuse what does not belong together before anything is measured or written.

    Raises:
        ValueError: where stages, categories or images do not agree in number.
    """
    for needed, there, kind in ((("train",), results.embeddings, "split"), (STAGES, results.heads, "stage")):
        missing = [name for name in needed if name not in there]
        if missing:
            raise ValueError(f"the report lacks the {kind} {', '.join(missing)}: give {', '.join(needed)}")
    if not results.judged:
        raise ValueError("the report needs a split that nothing was learned from: give test, or at least validation")
    counts = {"chosen": len(results.chosen)}
    counts |= {f"heads {stage}": len(results.heads[stage].bias) for stage in STAGES}
    counts |= {f"embeddings {split}": x.labels.shape[1] for split, x in results.embeddings.items()}
    for name, count in counts.items():
        if count != len(results.categories):
            raise ValueError(f"{name} has {count} categories, but {len(results.categories)} are named")
    split = results.reported
    if results.records is not None and len(results.records) != len(results.embeddings[split]):
        raise ValueError(
            f"records has {len(results.records)} images, but the embeddings of {split} have "
            f"{len(results.embeddings[split])}"
        )


def measured(results: Results, split: str) -> Measured:
    """Every stage's heads on one split; backbone and final under resampling, and with their reliability."""
    embeddings = results.embeddings[split]
    truth = predictions.of_embeddings(embeddings, results.categories, split)
    models = predictions.of_heads(
        embeddings,
        {stage: results.heads[stage] for stage in STAGES},
        {} if results.decisions is None else {"final": results.decisions},
        results.out_of_fold if split == "validation" else None,
    )
    models = [dataclasses.replace(m, calibrated=place in (BEFORE, AFTER)) for place, m in enumerate(models)]
    asked = Asked(results.config.resamples, results.seed, resampled=(BEFORE, AFTER), decisions=False)
    return measure.measure(truth, models, asked)


def of_results(results: Results, by_split: Mapping[str, Measured]) -> dict[str, Any]:
    """The contents of metrics.json.

    Args:
        results: what is reported.
        by_split: split -> what was measured, of the splits that are judged.
    """
    content: dict[str, Any] = {"categories": list(results.categories), "metric": results.metric}
    content["stages"] = list(results.stages)
    content |= {split: of_split(one) for split, one in by_split.items()}
    splits = ("train", *by_split)
    content["images"] = {split: len(results.embeddings[split]) for split in splits}
    content |= {"chosen": list(results.chosen), "untuned": dict(results.untuned)}
    content["known"] = {split: _known(results.embeddings[split]) for split in splits}
    content["leaks"] = [str(leak) for leak in leaks.find({split: results.embeddings[split].groups for split in splits})]
    content["unopened"] = {split: list(results.embeddings[split].unopened) for split in splits}
    content["seconds"] = {name: float(value) for name, value in results.seconds.items()}
    return content


def of_split(measured: Measured) -> dict[str, Any]:
    """A split's part: each stage's scores, and final less backbone with intervals."""
    content: dict[str, Any] = {}
    for stage, scores in zip(STAGES, measured.scores, strict=True):
        content[stage] = {mean: defined(scores.overall[mean]) for mean in MEAN.values()}
        content[stage] |= {metric: defined(scores.each[metric]) for metric in MEAN}
    means, each = {}, {}
    for metric, mean in MEAN.items():
        means[mean] = defined(dataclasses.asdict(measure.difference(measured, AFTER, BEFORE, metric).interval))
        c = len(measured.positive)
        each[metric] = _columns([measure.difference(measured, AFTER, BEFORE, metric, i).interval for i in range(c)])
    resamples = len(measured.resampled["AP"][AFTER])
    content["difference"] = means | each | {"resampled": measured.drawn, "resamples": resamples}
    return content


def _columns(intervals: Sequence[Interval]) -> dict[str, list[Any]]:
    return {
        field.name: [defined(getattr(interval, field.name)) for interval in intervals]
        for field in dataclasses.fields(Interval)
    }


def _known(embeddings: Embeddings) -> dict[str, list[int]]:
    counts = sparse.of(embeddings.given).counts()
    return {"positive": counts.positive.tolist(), "negative": counts.negative.tolist()}
