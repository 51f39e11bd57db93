"""The page from its parts."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from cftjax.metrics import MEAN
from cftjax.report import tables
from cftjax.report.mistakes import Mistakes
from cftjax.report.page import settings as settings_of
from cftjax.report.page import table, text, thumbnails
from cftjax.report.page.settings import Setting

SEARCH_FROM = 15
CAPTIONS = {
    "before_after": "Each category's score before (circle) and after (arrow) fine-tuning, the largest rise first. Blue "
    "rose, orange fell; the two upright lines are the means of all categories.",
    "search_history": "The best validation score that the search found after each generation, on the left its mean. "
    "The choice of the final heads does not rest on it alone: it has looked at validation too often.",
    "reliability": "Probabilities against what is true: of all labels given 30 %, how many are present? The nearer to "
    "the dashed line, the better; where few labels say so (right), a point may lie off it by chance.",
    "images": "Images drawn at random, with what is true of them and what the final heads say.",
}
# Rem of the page's width that an inch of a figure takes, so that all are lettered alike; they are drawn for 13 inches.
REM_PER_INCH = 6.3


@dataclasses.dataclass(frozen=True)
class Figure:
    """An embedded picture.

    Attributes:
        name: of CAPTIONS.
        content: of the file.
        kind: its media type, such as image/svg+xml.
        inches: its width as drawn.
    """

    name: str
    content: bytes
    kind: str
    inches: float = 8.0


def render(
    metrics: dict[str, Any],
    *,
    title: str,
    figures: Sequence[Figure] = (),
    mistakes: Sequence[Mistakes] | None = None,
    settings: Sequence[Setting] = (),
    versions: Mapping[str, str] | None = None,
    calibrated: bool = False,
) -> str:
    """The page.

    Args:
        metrics: the contents of metrics.json.
        title: what the run is called.
        figures: in the order to show.
        mistakes: the worst of some categories; None where the images are not at hand.
        settings: all of the run's.
        versions: library -> version.
        calibrated: whether the probabilities beside the mistakes are.
    """
    split = tables.reported_split(metrics)
    changed = sum(setting.changed for setting in settings)
    frame = Template(importlib.resources.files("cftjax.report.page").joinpath("page.html").read_text(encoding="utf-8"))
    ordered = sorted(MEAN, key=lambda name: name != metrics["metric"])
    versions = versions or {}
    return frame.substitute(
        title=f"Report of {text.name(title, table.LONGEST_NAME)}",
        lead=_lead(metrics),
        means="".join(_mean(metrics[split], MEAN[name], split) for name in ordered),
        table_words=table.words(metrics),
        search_hidden="" if len(metrics["categories"]) >= SEARCH_FROM else "hidden",
        columns="".join(table.column_heads(metrics)),
        rows="\n".join(table.rows(metrics)),
        footer="".join(table.footer(metrics)),
        notes="".join(f"<li>{escape(note)}" for note in _notes(metrics)),
        figures="".join(_figure(figure) for figure in figures) or "<p>This report has no figures.</p>",
        mistakes=thumbnails.section(metrics, mistakes, calibrated),
        facts=_facts(metrics, versions),
        settings=settings_of.table(settings),
        settings_count=f"{len(settings)}, of which {changed} differ from the defaults" if settings else "not recorded",
        settings_open="" if len(settings) > 30 else " open",
        rows_at_first=table.ROWS_AT_FIRST,
        made_by=f"Made by cftjax {escape(versions['cftjax'])}. " if "cftjax" in versions else "",
    )


def _lead(metrics: dict[str, Any]) -> str:
    """What was measured, and on what, in words."""
    split, metric = tables.reported_split(metrics), metrics["metric"]
    images, known = metrics["images"], metrics["known"]["train"]
    num = len(metrics["categories"])
    share = (sum(known["positive"]) + sum(known["negative"])) / max(images["train"] * num, 1)
    change = metrics[split]["difference"][metric]
    signs = [text.direction(low, high) for low, high in zip(change["low"], change["high"], strict=True)]
    rose, fell = signs.count("up"), signs.count("down")
    kept = sum(name == "backbone" for name in metrics["chosen"])
    data = (
        f"{text.count(num, 'category', 'categories')}; {text.count(images['train'], 'training image')} with "
        f"{100 * share:.3g} % of their labels known; measured on {text.count(images[split], split + ' image')}."
    )
    each = (
        f"{metric} rose in {rose:,} of {text.count(num, 'category', 'categories')} and fell in {fell:,} by more than "
        f"the drawing of the images explains; {kept:,} kept the head that training gave."
    )
    out = f"<p><strong>{escape(_headline(metrics))}</strong> {escape(each)}</p>"
    out += f'<p class="soft">{escape(data)}</p>'
    if split == "validation":
        out += (
            '<p class="warning"><strong>No test split.</strong> Validation was used to choose, so that these '
            "scores are optimistic.</p>"
        )
    return out


def _headline(metrics: dict[str, Any]) -> str:
    """The mean before and after in one sentence."""
    split, mean = tables.reported_split(metrics), MEAN[metrics["metric"]]
    before, after = (metrics[split][stage][mean] for stage in ("backbone", "final"))
    change = metrics[split]["difference"][mean]
    if before is None or after is None:
        return f"{mean} on {split} is undefined."
    if text.percent(before) == text.percent(after):
        return f"Category-wise fine-tuning left {mean} on {split} at {text.percent(after)} %."
    low, high = change["low"], change["high"]
    verb = {"up": "raised", "down": "lowered", "": "moved"}[text.direction(low, high)]
    chance = "" if text.direction(low, high) else ", which the drawing of the images may explain"
    interval = "" if low is None else f" (95 % interval {text.points(low)} to {text.points(high)})"
    return (
        f"Category-wise fine-tuning {verb} {mean} on {split} from {text.percent(before)} % to {text.percent(after)} %, "
        f"by {text.points(change['value'])} points{interval}{chance}."
    )


def _notes(metrics: dict[str, Any]) -> list[str]:
    """Those of the printed table, but for what stands elsewhere on the page."""
    return tables.notes(metrics | {"seconds": {}}, most_rows=len(metrics["categories"]))


def _mean(scores: dict[str, Any], mean: str, split: str) -> str:
    """One mean before and after, in numbers, as a picture and in words."""
    before, after, change = scores["backbone"][mean], scores["final"][mean], scores["difference"][mean]
    head = f'<section class="card"><h2>{mean} on {split}</h2>'
    if before is None or after is None:
        return f"{head}<p>Undefined: no category has the known labels that it needs.</p></section>"
    low, high = change["low"], change["high"]
    sign = text.direction(low, high)
    words = {
        "up": "A rise: the interval of the change excludes 0.",
        "down": "A fall: the interval of the change excludes 0.",
        "": "The interval of the change includes 0: another draw of images might show none.",
    }[sign]
    if low is None or high is None:
        words = "The change has no interval: no resample defines it."
    return (
        f'{head}<div class="numbers"><span class="from">{text.percent(before)} %</span>'
        f'<span aria-hidden="true">→</span><span class="to">{text.percent(after)} %</span>'
        f'<span class="by {sign}">{text.points(change["value"])} points</span>'
        f'<span class="soft">{text.interval(low, high)}</span></div>{text.scale(before, after)}'
        f'<p class="small soft">{words}</p></section>'
    )


def _figure(figure: Figure) -> str:
    """A picture with its caption."""
    caption = escape(CAPTIONS[figure.name])
    drawn = "" if figure.name == "images" else " drawn"
    # On a phone a figure scrolls in its box: shrunken to the screen its words could not be read.
    return (
        f'<figure class="plot{drawn}"><div class="box" style="--w:{REM_PER_INCH * figure.inches:.1f}rem" tabindex="0" '
        f'role="region" aria-label="{caption}"><img src="{text.data_url(figure.content, figure.kind)}" alt="{caption}">'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def _facts(metrics: dict[str, Any], versions: Mapping[str, str]) -> str:
    """Data, time and versions: small tables side by side."""
    unopened = any(metrics["unopened"].values())
    data = [["split", "images", "known +", "known -", "known", *(["not opened"] if unopened else [])]]
    for split, images in metrics["images"].items():
        positive, negative = (sum(metrics["known"][split][kind]) for kind in ("positive", "negative"))
        share = (positive + negative) / max(images * len(metrics["categories"]), 1)
        data.append([split, *(f"{x:,}" for x in (images, positive, negative)), f"{100 * share:.3g} %"])
        data[-1] += [f"{len(metrics['unopened'][split]):,}"] if unopened else []
    seconds = [["stage", "seconds"], *([name, f"{value:,.1f}"] for name, value in metrics["seconds"].items())]
    seconds.append(["all together", f"{sum(metrics['seconds'].values()):,.1f}"])
    about_data = (
        "Labels of all categories that are known to be present (+) or absent (-); the last share is of all labels that "
        "there could be. Unknown ones enter no score."
    )
    about_time = "Of each stage when it was last made; one that was kept from an earlier command is not counted twice."
    out = _fact("Data", about_data, data) + _fact("Time", about_time, seconds)
    if versions:
        about = "Other versions give other last digits."
        out += _fact("Versions", about, [["library", "version"], *([name, value] for name, value in versions.items())])
    return out


def _fact(title: str, about: str, rows: Sequence[Sequence[str]]) -> str:
    """A card with a table whose first row is its head, and a line that says how to read it."""
    head = "".join(f'<th scope="col">{escape(word)}' for word in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}' + "".join(f"<td>{escape(word)}" for word in row[1:]) for row in rows[1:]
    )
    return (
        f'<section class="card"><h3>{title}</h3><p class="soft small">{about}</p>'
        f'<div class="box" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{head}</thead><tbody>{body}</tbody></table></div></section>"
    )
