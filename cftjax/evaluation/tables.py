"""An evaluation as tables, made from the contents of its metrics.json alone: for the console, as text and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from cftjax.evaluation import readers_table
from cftjax.evaluation.ensemble import NAME
from cftjax.metrics import MEAN
from cftjax.report import printing
from cftjax.report.printing import FULL_WIDTH, MOST_ROWS, UNDEFINED, begun, change, percent
from cftjax.scores.measure import OVERALL, PER_CATEGORY
from cftjax.text import few

SCORE_WIDTH = 22  # of a score with its interval
MEMBER_WIDTH = 9
TITLES = {"micro_AP": "micro AP"}


def with_interval(found: Mapping[str, Any]) -> str:
    """A score and its interval in %."""
    if found["value"] is None or found["low"] is None:
        return percent(found["value"])
    return f"{percent(found['value'])} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def p_value(p: float | None) -> str:
    """Three decimals; the smallest that so many resamples can give is no 0."""
    return UNDEFINED if p is None else f"{p:.3f}" if p >= 0.0015 else f"{p:.1g}"


def one_of(values: Mapping[str, list[Any]], place: int) -> dict[str, Any]:
    """One category's entry of columns by name."""
    return {key: column[place] for key, column in values.items()}


def rows_shown(out: Mapping[str, Any], most: int) -> list[int]:
    """All categories, or of too many the lowest and highest by the last model, in their order."""
    return printing.extremes(out["models"][-1]["each"][out["metric"]], most)


def tables_of(out: Mapping[str, Any], *, width: int = FULL_WIDTH, most_rows: int = MOST_ROWS) -> list[Table]:
    """All tables of an evaluation.

    Args:
        out: the contents of metrics.json.
        width: characters at hand.
        most_rows: of more categories than this, the lowest and highest are shown.
    """
    people = readers_table.tables(out, width, rows_shown(out, most_rows)) if out["readers"] else []
    if len(out["models"]) == 1:
        return [categories(out, 0, width, most_rows), overall(out, width), *people]
    found = [beside(out, width, most_rows), overall(out, width), *people, differences(out, width)]
    fitted = out["ensemble"] and out["ensemble"]["validation"]
    return [*found, weights(out, width, most_rows)] if fitted else found


def categories(out: Mapping[str, Any], place: int, width: int, most_rows: int) -> Table:
    """One model: every score of every category."""
    model = out["models"][place]
    table = begun(f"{model['name']} on {out['source']}, in %")
    wide = width >= FULL_WIDTH
    table.add_column("category", no_wrap=True, overflow="ellipsis")
    table.add_column("known +", justify="right", no_wrap=True)
    if wide:
        table.add_column("known -", justify="right", no_wrap=True)
    for metric in MEAN:
        table.add_column(metric, justify="right", no_wrap=True, min_width=18)
    shown = ("threshold", "precision", "recall", "F1", "ECE") if wide else ("F1",)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for i in rows_shown(out, most_rows):
        known = [f"{out['known'][kind][i]:,}" for kind in ("positive", "negative")]
        table.add_row(
            printing.named(out["categories"][i]),
            *(known if wide else known[:1]),
            *(with_interval(one_of(model["intervals"][metric], i)) for metric in MEAN),
            *(percent(model["each"][name][i]) for name in shown),
        )
    printing.fit_names(table, width)
    return table


def overall(out: Mapping[str, Any], width: int) -> Table:
    """A row per model: the scores over all categories."""
    several = len(out["models"]) > 1
    table = begun(f"{'Models' if several else 'Over all categories'} on {out['source']}, in %")
    wide = width >= FULL_WIDTH
    shown = [name for name in OVERALL if name not in MEAN.values()]
    shown = [name for name in shown if wide or name in ("micro_AP", "CF1", "OF1", "ECE")]
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    for mean in MEAN.values():
        table.add_column(mean, justify="right", no_wrap=True, min_width=18)
    for name in shown:
        table.add_column(TITLES.get(name, name), justify="right", no_wrap=True, min_width=5)
    for model in out["models"]:
        table.add_row(
            printing.named(model["name"]),
            *(with_interval(model["intervals"][mean]) for mean in MEAN.values()),
            *(percent(model["overall"][name]) for name in shown),
            style="bold" if model["name"] == NAME else "",
        )
    printing.fit_names(table, width)
    return table


def beside(out: Mapping[str, Any], width: int, most_rows: int) -> Table:
    """A row per category: each model's score, and the ensemble's with its interval and what it gains over the best."""
    metric, models = out["metric"], out["models"]
    *others, last = models
    whole = last["name"] == NAME
    # Means over other categories are of another difficulty.
    alike = [model for model in others if model["not_given"] == last["not_given"]]
    table = begun(f"{metric} in % of each category on {out['source']}")
    names_width = 24 if width >= FULL_WIDTH else 16
    room = max((width - names_width - 9 - SCORE_WIDTH - (10 if whole else 0)) // (MEMBER_WIDTH + 1), 1)
    listed = others[:room]
    table.add_column("category", no_wrap=True, max_width=names_width, overflow="ellipsis")
    table.add_column("known +", justify="right", no_wrap=True)
    for model in listed:
        table.add_column(
            printing.named(model["name"]),
            justify="right",
            no_wrap=True,
            max_width=MEMBER_WIDTH,
            min_width=6,
            overflow="ellipsis",
        )
    table.add_column(printing.named(last["name"]), justify="right", no_wrap=True, min_width=18, max_width=SCORE_WIDTH)
    if whole:
        table.add_column("over best", justify="right", no_wrap=True)
    shown = rows_shown(out, most_rows)
    for i in shown:
        table.add_row(
            printing.named(out["categories"][i]),
            f"{out['known']['positive'][i]:,}",
            *(percent(model["each"][metric][i]) for model in listed),
            with_interval(one_of(last["intervals"][metric], i)),
            *([_over_best([m["each"][metric][i] for m in others], last["each"][metric][i])] if whole else []),
            end_section=i == shown[-1],
        )
    for name in sorted(MEAN, key=lambda name: name != metric):
        mean = MEAN[name]
        table.add_row(
            mean,
            "",
            *(percent(model["overall"][mean]) for model in listed),
            with_interval(last["intervals"][mean]),
            *([_over_best([m["overall"][mean] for m in alike], last["overall"][mean])] if whole else []),
            style="bold",
        )
    return table


def _over_best(others: Sequence[float | None], value: float | None) -> str:
    found = [other for other in others if other is not None]
    return f"{100 * (value - max(found)):+.2f}" if found and value is not None else UNDEFINED


def differences(out: Mapping[str, Any], width: int) -> Table:
    """A row per pair of models: how much the first exceeds the second."""
    table = begun(f"Differences on {out['source']}, in points, with 95 % interval and two-sided p value")
    table.add_column("first less second", no_wrap=True, overflow="ellipsis")
    for mean in MEAN.values():
        table.add_column(mean, justify="right", no_wrap=True, min_width=24)
        table.add_column("p", justify="right", no_wrap=True, min_width=5)
    for pair in pairs_shown(out):
        cells: list[Any] = []
        for mean in MEAN.values():
            cells += [change(pair[mean]), p_value(pair[mean]["p"])]
        table.add_row(printing.named(f"{pair['first']} - {pair['second']}"), *cells)
    printing.fit_names(table, width, most=60)
    return table


def pairs_shown(out: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All pairs of few models; of many, those with the last one."""
    last = out["models"][-1]["name"]
    return [pair for pair in out["differences"] if len(out["models"]) <= 4 or pair["first"] == last]


def weights(out: Mapping[str, Any], width: int, most_rows: int) -> Table:
    """A row per category: how much each member counts, and what that gained on validation over equal weights."""
    found = out["ensemble"]
    judged, metric = found["validation"], found["validation"]["metric"]
    even, fitted = judged["models"][-2:]
    table = begun(f"Weights of the members in %, fitted on {judged['source']}, and {metric} in % there (optimistic)")
    names_width = 24 if width >= FULL_WIDTH else 16
    room = max((width - names_width - 30) // (MEMBER_WIDTH + 1), 1)
    listed = list(found["weights"])[:room]
    table.add_column("category", no_wrap=True, max_width=names_width, overflow="ellipsis")
    for name in listed:
        table.add_column(
            printing.named(name), justify="right", no_wrap=True, max_width=MEMBER_WIDTH, overflow="ellipsis"
        )
    for title in ("equal", "fitted", "gain"):
        table.add_column(title, justify="right", no_wrap=True, min_width=6)
    shown = rows_shown(out, most_rows)
    for i in shown:
        pair = even[metric][i], fitted[metric][i]
        table.add_row(
            printing.named(out["categories"][i]),
            *(f"{100 * found['weights'][name][i]:.0f}" for name in listed),
            *map(percent, pair),
            _over_best(pair[:1], pair[1]),
            end_section=i == shown[-1],
        )
    pair = even[MEAN[metric]], fitted[MEAN[metric]]
    means = [100 * sum(found["weights"][name]) / len(out["categories"]) for name in listed]
    cells = [*(f"{mean:.0f}" for mean in means), *map(percent, pair), _over_best(pair[:1], pair[1])]
    table.add_row(MEAN[metric], *cells, style="bold")
    return table


COMBINED = {
    "mean": "the mean of its members' probabilities",
    "rank": "the mean of its members' ranks among these rows; it has no probabilities, hence no ECE",
    "weighted": "a weighted mean of probabilities; per category, weights make the known labels of {0} most likely",
    "greedy": "a mean of probabilities; per category, members were picked with replacement for {1} on {0}",
}


def notes(out: Mapping[str, Any], most_rows: int = MOST_ROWS) -> list[str]:
    """What a reader of the tables must know besides: how scores are made, and what is undefined and why."""
    lines = [f"{out['rows']:,} {out['unit']}; unknown and uncertain labels count nowhere."]
    if whole := out["ensemble"]:
        judged = whole["validation"]
        on = (judged["source"], judged["metric"]) if judged else ("", "")
        lines.append(f"The ensemble is {COMBINED[whole['combine']].format(*on)}.")
        reasons: dict[str, list[str]] = {}
        for category, reason in judged["unfitted"].items() if judged else ():
            reasons.setdefault(reason, []).append(category)
        lines += [f"Equal weights ({reason}): {few(names)}." for reason, names in reasons.items()]
    for model in out["models"]:
        if model["not_given"] and model["name"] != NAME:
            lines.append(f"{model['name']} does not give {few(model['not_given'])}; left out of its means.")
    lines += out["notes"]
    lines += undefined(out)
    lines += [readers_table.NOTE] if out["readers"] else []
    drawn = out["bootstrap"]
    if drawn["resamples"]:
        what = "groups, each with all its rows" if drawn["drawn"] == "groups" else out["unit"]
        lines.append(f"Intervals: 95 % percentiles of {drawn['resamples']:,} bootstrap resamples of the {what}.")
        lines.append("Those of a score are moved until the mean of its resamples is the score.")
        least = min(
            (count, out["categories"][i])
            for model in out["models"][-1:]
            for i, count in enumerate(model["intervals"][out["metric"]]["resamples"])
        )
        if 0 < least[0] < drawn["resamples"]:
            lines.append(f"Resamples in which a category is undefined do not count: {least[1]} rests on {least[0]:,}.")
        if out["differences"]:
            lines.append(
                "p: twice the smaller share of the same resamples of both models in which the difference is at most, "
                "or at least, 0; not corrected for several comparisons."
            )
    if len(out["models"]) > 4:
        lines.append("Of more than four models, differences with the last one are shown; metrics.json has all pairs.")
    if len(out["categories"]) > most_rows:
        lines.append(f"{most_rows} of {len(out['categories']):,} categories shown, lowest and highest.")
    return lines


def undefined(out: Mapping[str, Any]) -> list[str]:
    """Which scores of which categories are undefined, and why: by labels first, then by model."""
    positive, negative = out["known"]["positive"], out["known"]["negative"]
    names, lines = out["categories"], []
    without = [name for name, count in zip(names, positive, strict=True) if count == 0]
    if without:
        lines.append(f"No known positive, so that AP, AUROC, recall and F1 are undefined: {few(without)}.")
    only = [name for name, p, n in zip(names, positive, negative, strict=True) if p and n == 0]
    if only:
        lines.append(f"No known negative, so that AP and AUROC are undefined: {few(only)}.")
    for model in out["models"]:
        silent = [
            name
            for name, count, precision, threshold in zip(
                names, positive, model["each"]["precision"], model["each"]["threshold"], strict=True
            )
            if count and precision is None and threshold is not None
        ]
        if silent:
            lines.append(f"{model['name']} decides nothing positive, so that precision is undefined: {few(silent)}.")
    return lines


def to_csv(out: Mapping[str, Any], *, raw: bool = False) -> str:
    """A row per model and category and, last, its overall scores; in [0, 1] at full precision, undefined ones empty."""
    ends = ("low", "high", "resamples")
    header = ["model", "category", "known_positive", "known_negative"]
    for metric in MEAN:
        header += [metric, *(f"{metric}_{end}" for end in ends)]
    rest = [name for name in PER_CATEGORY if name not in MEAN]
    pooled = [name for name in OVERALL if name not in (*MEAN.values(), "ECE")]
    whole = out["ensemble"]
    lines: list[list[Any]] = [[*header, "threshold", *rest, "weight", *pooled]]
    for model in out["models"]:
        for i, category in enumerate(out["categories"]):
            row = [model["name"], category, out["known"]["positive"][i], out["known"]["negative"][i]]
            for metric in MEAN:
                row += [model["intervals"][metric][key][i] for key in ("value", *ends)]
            weight = whole["weights"].get(model["name"]) if whole else None
            row += [model["each"]["threshold"][i], *(model["each"][name][i] for name in rest)]
            lines.append([*row, weight[i] if weight else None, *[None] * len(pooled)])
        row = [model["name"], "mean", sum(out["known"]["positive"]), sum(out["known"]["negative"])]
        for mean in MEAN.values():
            row += [model["intervals"][mean][key] for key in ("value", *ends)]
        means = {"precision": "CP", "recall": "CR", "F1": "mF1", "ECE": "ECE"}
        row += [None, *(model["overall"][means[name]] for name in rest), None]
        lines.append([*row, *(model["overall"][name] for name in pooled)])
    return printing.to_csv(lines, raw=raw)
