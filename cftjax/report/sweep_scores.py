"""What a sweep has come to: scores of every run, what CFT gains with intervals, as CSV and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cftjax.config import ORDERS, Metric
from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.report.printing import defined
from cftjax.runs import JUDGED, Run
from cftjax.scores import bootstrap, measure, predictions
from cftjax.scores.bootstrap import Interval
from cftjax.scores.measure import Asked
from cftjax.types import word
from cftjax.unknowns import MODES

FINAL = "CFT final"
# Not a mode: runs of which no label is hidden. And what Ignore comes to by learning from validation labels as well.
FULL, FULL_TITLE = "full_labels", "Full labels"
REFIT = "Ignore, refit on all known labels"
# What CFT comes to where validation labels are kept out of learning, as protocols of papers want it.
ONLY_JUDGES = ", validation only judges"
# The same resamples for all runs, so that any two of them can be compared.
BOOTSTRAP_SEED = 0


def title_of(mode: str) -> str:
    """What a table calls a mode, or the runs without hidden labels."""
    return FULL_TITLE if mode == FULL else MODES[mode].title


@dataclasses.dataclass(frozen=True)
class RunScores:
    """One run on one split.

    Attributes:
        scores: stage of the heads -> mean score in [0, 1]; NaN where undefined.
        samples: `backbone` and, where CFT was put on top, `final` and others -> [r] mean scores under the same
            resamples.
        num_images: in the split.
        unit: what a resample draws, "images" or "groups".
    """

    scores: dict[str, float]
    samples: dict[str, Float[np.ndarray, " r"]]
    num_images: int
    unit: str


class Gain(NamedTuple):
    """What one row exceeds another by.

    Attributes:
        name: of the row.
        over: the name of the other row.
        proportion: known share of the labels.
        interval: of the mean over seeds, in [-1, 1]; of images drawn anew, the trained models being what they are.
    """

    name: str
    over: str
    proportion: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class SweepScores:
    """What a sweep has come to.

    Attributes:
        runs: mode, or `FULL` -> seed by seed, proportion by proportion.
        tuned: modes that CFT was put on top of.
        order: of the stages of CFT.
        proportions: of the columns.
        seeds: of each proportion's runs.
        metric: "AP" or "AUROC".
        split: the images scored.
        num_images: in that split.
        num_categories: scored.
        unit: what a resample draws, "images" or "groups".
    """

    runs: Mapping[str, Sequence[Sequence[RunScores]]]
    tuned: Sequence[str]
    order: str
    proportions: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: Metric
    split: str
    num_images: int
    num_categories: int
    unit: str

    @property
    def rows(self) -> dict[str, tuple[str, str]]:
        """Name of each row -> mode and stage of the heads, in the order of the table."""
        rows = {title_of(mode): (mode, "backbone") for mode in self.runs}
        if "assume_negative" in self.tuned:
            first, second = (word(stage) for stage in ORDERS[self.order])
            stages = (*ORDERS[self.order], "final")
            for name, stage in zip((f"CFT {first}", f"CFT {first}, then {second}", FINAL), stages, strict=True):
                rows[name] = ("assume_negative", stage)
        others = [mode for mode in self.runs if mode in self.tuned and mode != "assume_negative"]
        rows |= {f"CFT on {MODES[mode].title}": (mode, "final") for mode in others}
        finals = {name: mode for name, (mode, stage) in rows.items() if stage == "final"}
        rows |= {name + ONLY_JUDGES: (mode, JUDGED) for name, mode in finals.items() if self._all_have(mode, JUDGED)}
        if "ignore" in self.tuned and self._all_have("ignore", "refit"):
            rows[REFIT] = ("ignore", "refit")
        return rows

    def _all_have(self, mode: str, stage: str) -> bool:
        """Whether every run of a mode has heads of a stage."""
        return all(stage in run.scores for runs in self.runs[mode] for run in runs)

    @property
    def methods(self) -> dict[str, Float[np.ndarray, "s p"]]:
        """Name of each row -> mean score of each seed and proportion in [0, 1]; NaN where undefined."""
        return {
            name: np.array([[run.scores[stage] for run in runs] for runs in self.runs[mode]])
            for name, (mode, stage) in self.rows.items()
        }

    @property
    def columns(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Name of each row -> column, a proportion's or `mean` -> mean and standard deviation over the seeds."""
        columns = {}
        for name, values in self.methods.items():
            every = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
            spread = every.std(axis=0, ddof=1) if len(every) > 1 else np.full(every.shape[1], np.nan)
            titles = [*(f"{p:g}" for p in self.proportions), "mean"]
            columns[name] = dict(
                zip(titles, zip(every.mean(axis=0).tolist(), spread.tolist(), strict=True), strict=True)
            )
        return columns

    @property
    def gains(self) -> list[Gain]:
        """Every row after CFT over its own backbone, and over that of Ignore mode, as it is and refitted."""
        rows, ignore = self.rows, MODES["ignore"].title
        gains = []
        for name, (mode, stage) in rows.items():
            if stage not in ("final", JUDGED):
                continue
            own = MODES[mode].title
            # What has not learned from validation labels is not held to what has.
            rivals = (ignore, REFIT) if stage == "final" else (ignore,)
            others = [other for other in rivals if other in rows and other != own]
            for over in (own, *others):
                for place, proportion in enumerate(self.proportions):
                    gains.append(Gain(name, over, proportion, self.gain(rows[name], rows[over], place)))
        return gains

    def gain(self, row: tuple[str, str], over: tuple[str, str], place: int) -> Interval:
        """The mean over seeds of what one row exceeds another by, at the proportion of this place."""

        def over_seeds(of: tuple[str, str]) -> tuple[float, Float[np.ndarray, " r"]]:
            mode, stage = of
            of_seeds = [runs[place] for runs in self.runs[mode]]
            score = float(np.mean([run.scores[stage] for run in of_seeds]))
            return score, np.mean([run.samples[stage] for run in of_seeds], axis=0)

        (score, samples), (other_score, other_samples) = over_seeds(row), over_seeds(over)
        return bootstrap.interval(score - other_score, samples - other_samples)


def of_run(run: Run, split: str, metric: Metric, stages: Sequence[str], resamples: int) -> RunScores:
    """What a run's heads score on a split, and the same under resampling.

    Args:
        run: with embeddings of the split.
        split: that is scored.
        metric: of `metrics.METRICS`.
        stages: of the heads.
        resamples: of the bootstrap, over images, or patients where the images have groups.
    """
    embeddings = run.embeddings(split)
    truth = predictions.of_embeddings(embeddings, run.categories, split)
    models = predictions.of_heads(embeddings, {stage: run.heads(stage) for stage in stages})
    measured = measure.measure(truth, models, Asked(resamples, BOOTSTRAP_SEED, decisions=False))
    return RunScores(
        {scores.name: scores.overall[MEAN[metric]] for scores in measured.scores},
        {stage: measure.means(measured.resampled[metric][place]) for place, stage in enumerate(stages)},
        len(truth),
        measured.drawn,
    )


def to_csv(scores: SweepScores) -> str:
    """The table at full precision, scores in [0, 1], undefined ones empty; with several seeds their deviations too."""
    several = len(scores.seeds) > 1
    titles = [*(f"{proportion:g}" for proportion in scores.proportions), "mean"]
    rows: list[list[Any]] = [["method", *titles, *(f"{title}_std" for title in titles if several)]]
    for name, columns in scores.columns.items():
        means, spreads = zip(*columns.values(), strict=True)
        rows.append([name, *map(defined, [*means, *(spreads if several else ())])])
    return printing.to_csv(rows)


def gains_to_csv(scores: SweepScores) -> str:
    """Every comparison at full precision, in [-1, 1]; undefined ones empty."""
    titles = ("method", "over", "known_proportion", "value", "low", "high", "resamples")
    return printing.to_csv([titles, *([_gain_record(gain)[title] for title in titles] for gain in scores.gains)])


def _gain_record(gain: Gain) -> dict[str, Any]:
    named = {"method": gain.name, "over": gain.over, "known_proportion": gain.proportion}
    return named | defined(dataclasses.asdict(gain.interval))


def to_json(scores: SweepScores) -> dict[str, Any]:
    """Every seed's scores in [0, 1], their means and deviations, and the gains; null where undefined."""
    methods, columns = scores.methods, scores.columns
    return {
        "metric": MEAN[scores.metric],
        "split": scores.split,
        "images": scores.num_images,
        "categories": scores.num_categories,
        "known_proportions": list(scores.proportions),
        "seeds": list(scores.seeds),
        "methods": {
            name: {
                "unknown": mode,
                "stage": stage,
                "scores": [[defined(value) for value in row] for row in methods[name].tolist()],
                "columns": {
                    title: {"mean": defined(mean), "std": defined(spread)}
                    for title, (mean, spread) in columns[name].items()
                },
            }
            for name, (mode, stage) in scores.rows.items()
        },
        "resampled": scores.unit,
        "gains": [_gain_record(gain) for gain in scores.gains],
    }
