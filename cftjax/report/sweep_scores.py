"""What a sweep has found: scores of every run, what CFT gains with intervals, as CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cftjax.config import ORDERS, Metric
from cftjax.report import tables
from cftjax.scores import bootstrap
from cftjax.scores.bootstrap import Interval


class Mode(NamedTuple):
    """How a mode of unknown labels is called in tables, and in the names of its runs' folders."""

    title: str
    folder: str


MODES = {
    "assume_negative": Mode("Negative", "negative"),
    "ignore": Mode("Ignore", "ignore"),
    "weak_negative": Mode("WAN", "weak_negative"),
    "smooth_negative": Mode("AN-LS", "smooth_negative"),
    "selective": Mode("CSL", "selective"),
    "reject_large_loss": Mode("LL-R", "reject_large_loss"),
    "correct_large_loss": Mode("LL-Ct", "correct_large_loss"),
    "correct_large_loss_permanently": Mode("LL-Cp", "correct_large_loss_permanently"),
    "curriculum": Mode("Curriculum", "curriculum"),
}
FINAL = "CFT final"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run on one split.

    Attributes:
        scores: stage of the heads -> mean score in [0, 1]; NaN where undefined.
        samples: `backbone` and, where CFT was put on top, `final` -> [r] mean scores under the same resamples.
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
class Scores:
    """What a sweep has found.

    Attributes:
        found: mode -> seed by seed, proportion by proportion.
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

    found: Mapping[str, Sequence[Sequence[Measured]]]
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
        rows = {MODES[mode].title: (mode, "backbone") for mode in self.found}
        if "assume_negative" in self.tuned:
            first, second = (tables.TITLES[stage] for stage in ORDERS[self.order])
            stages = (*ORDERS[self.order], "final")
            for name, stage in zip((f"CFT {first}", f"CFT {first}, then {second}", FINAL), stages, strict=True):
                rows[name] = ("assume_negative", stage)
        others = [mode for mode in self.found if mode in self.tuned and mode != "assume_negative"]
        return rows | {f"CFT on {MODES[mode].title}": (mode, "final") for mode in others}

    @property
    def methods(self) -> dict[str, Float[np.ndarray, "s p"]]:
        """Name of each row -> mean score of each seed and proportion in [0, 1]; NaN where undefined."""
        return {
            name: np.array([[one.scores[stage] for one in runs] for runs in self.found[mode]])
            for name, (mode, stage) in self.rows.items()
        }

    @property
    def columns(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Name of each row -> column, a proportion's or `mean` -> mean and standard deviation over the seeds."""
        found = {}
        for name, values in self.methods.items():
            every = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
            spread = every.std(axis=0, ddof=1) if len(every) > 1 else np.full(every.shape[1], np.nan)
            titles = [*(f"{p:g}" for p in self.proportions), "mean"]
            found[name] = dict(zip(titles, zip(every.mean(axis=0).tolist(), spread.tolist(), strict=True), strict=True))
        return found

    @property
    def gains(self) -> list[Gain]:
        """Every row after CFT over its own backbone, and over that of Ignore mode."""
        rows, ignore = self.rows, MODES["ignore"].title
        found = []
        for name, (mode, stage) in rows.items():
            if stage != "final":
                continue
            own = MODES[mode].title
            for over in (own, ignore) if ignore in rows and own != ignore else (own,):
                for place, proportion in enumerate(self.proportions):
                    found.append(Gain(name, over, proportion, self.gain(rows[name], rows[over], place)))
        return found

    def gain(self, one: tuple[str, str], other: tuple[str, str], place: int) -> Interval:
        """The mean over seeds of what one row exceeds another by, at the proportion of this place."""

        def over_seeds(row: tuple[str, str]) -> tuple[float, Float[np.ndarray, " r"]]:
            mode, stage = row
            runs = [runs[place] for runs in self.found[mode]]
            score = float(np.mean([run.scores[stage] for run in runs]))
            return score, np.mean([run.samples[stage] for run in runs], axis=0)

        (score, samples), (other_score, other_samples) = over_seeds(one), over_seeds(other)
        return bootstrap.interval(score - other_score, samples - other_samples)


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


def gains_to_csv(scores: Scores) -> str:
    """Every comparison at full precision, in [-1, 1]; undefined ones empty."""
    file = io.StringIO(newline="")
    titles = ["method", "over", "known_proportion", "value", "low", "high", "resamples"]
    writer = csv.DictWriter(file, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_gain_record(gain) for gain in scores.gains)
    return file.getvalue()


def _gain_record(gain: Gain) -> dict[str, Any]:
    ends = {name: _defined(getattr(gain.interval, name)) for name in ("value", "low", "high")}
    named = {"method": gain.name, "over": gain.over, "known_proportion": gain.proportion}
    return {**named, **ends, "resamples": gain.interval.resamples}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def to_json(scores: Scores) -> dict[str, Any]:
    """Every seed's scores in [0, 1], their means and deviations, and the gains; null where undefined."""
    methods, columns = scores.methods, scores.columns
    return {
        "metric": tables.MEAN[scores.metric],
        "split": scores.split,
        "images": scores.num_images,
        "categories": scores.num_categories,
        "known_proportions": list(scores.proportions),
        "seeds": list(scores.seeds),
        "methods": {
            name: {
                "unknown": mode,
                "stage": stage,
                "scores": [[_defined(value) for value in row] for row in methods[name].tolist()],
                "columns": {
                    title: {"mean": _defined(mean), "std": _defined(spread)}
                    for title, (mean, spread) in columns[name].items()
                },
            }
            for name, (mode, stage) in scores.rows.items()
        },
        "resampled": scores.unit,
        "gains": [_gain_record(gain) for gain in scores.gains],
    }
