"""The card of a run, README.md in its folder: what it was made from, how good it is, and what it is not for.

Plain Markdown, with the front matter that model hubs read. Everything in it comes from the run's own files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cftjax import decisions, runs
from cftjax.config import Config, LabelsConfig
from cftjax.data import leaks, meaning, sparse
from cftjax.metrics import MEAN
from cftjax.report import tables
from cftjax.report.printing import MOST_ROWS, UNDEFINED, percent, points
from cftjax.runs import Run
from cftjax.runtime import storage
from cftjax.runtime.settings import flat
from cftjax.text import for_markdown
from cftjax.types import word

UNCERTAIN = {
    "negative": "as negative",
    "positive": "as positive",
    "ignore": "not at all",
    "smooth_negative": "as a draw from U[0, 0.3]",
    "smooth_positive": "as a draw from U[0.55, 0.85]",
}


def write(run: Run) -> None:
    """Write the card of a finished run."""
    storage.write_bytes(run.folder / "README.md", text(run).encode())


def text(run: Run, where: str | None = None) -> str:
    """The card of a finished run.

    Args:
        run: finished.
        where: what to call it instead of its folder, such as `hf:USER/NAME`.

    Raises:
        FileNotFoundError: where it is not finished.
    """
    metrics_file = run.folder / "report" / "metrics.json"
    metrics = storage.read_json(metrics_file) if metrics_file.is_file() else None
    sections = (
        _front_matter(run, metrics, _name(run, where)),
        _summary(run, _name(run, where)),
        _use(run, where),
        _data(run),
        _labels(run),
        _scores(metrics) if metrics else _cross_validated(run),
        _decisions(run),
        _limits(run, metrics),
        _settings(run),
        _versions(run),
    )
    return "\n".join(line for section in sections for line in (*section, "")).rstrip() + "\n"


def _has_backbone(run: Run) -> bool:
    return run.config["preprocessing"] is not None


def _front_matter(run: Run, metrics: Mapping[str, Any] | None, name: str) -> Iterator[str]:
    yield "---"
    yield "library_name: cftjax"
    if _has_backbone(run):
        yield "pipeline_tag: image-classification"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("jax", "multi-label", "partial-labels", "category-wise-fine-tuning"))
    if metrics:
        split = tables.reported_split(dict(metrics))
        # JSON strings are YAML strings, whatever characters a name has.
        yield "model-index:"
        yield f"- name: {json.dumps(name)}"
        yield "  results:"
        yield "  - task:"
        yield "      type: image-classification"
        yield "      name: Multi-label image classification"
        yield "    dataset:"
        yield f"      name: {json.dumps(_source(run))}"
        yield f"      type: {json.dumps(_source(run))}"
        yield f"      split: {split}"
        yield "    metrics:"
        for mean in MEAN.values():
            if (value := metrics[split]["final"][mean]) is not None:
                yield f"    - type: {mean}"
                yield f"      value: {value:.4f}"
    yield "---"


def _summary(run: Run, name: str) -> Iterator[str]:
    yield f"# {for_markdown(name)}"
    yield ""
    what = "A multi-label image classifier" if _has_backbone(run) else "The last layer of a multi-label classifier"
    yield (
        f"{what} of {len(run.categories):,} categories, trained from partial labels. After training, each category's "
        "logistic regression in the last layer was fine-tuned alone, on its known labels only (category-wise "
        "fine-tuning, [arXiv 2401.16991](https://arxiv.org/abs/2401.16991))."
    )
    yield ""
    yield f"Categories, in order: {_names(run.categories)}."


def _use(run: Run, where: str | None) -> Iterator[str]:
    place = where or "RUN"
    yield "## Use"
    yield ""
    if where is None:
        yield "`RUN` is the folder of the run, where this card was made."
    if where is None or _has_backbone(run):
        yield "```"
        if _has_backbone(run):
            yield f"cftjax predict {place} images/ -o predictions.csv"
        if where is None:
            yield "cftjax export RUN        # one file that runs without cftjax"
        yield "```"
    yield "```python"
    if _has_backbone(run):
        yield "import cftjax"
        yield ""
        yield f'model = cftjax.load("{place}")'
        yield 'probabilities = model(["image.png"])  # [n c], calibrated'
        yield "present = model.decide(probabilities)  # by the thresholds below"
    else:
        yield "from safetensors.torch import load_file"
        if where is None:
            yield ""
        file = '"RUN/heads.safetensors"'
        if where is not None:
            yield "from huggingface_hub import hf_hub_download"
            yield ""
            yield f'file = hf_hub_download("{where.removeprefix("hf:")}", "heads.safetensors")'
            file = "file"
        yield f"model.fc.load_state_dict(load_file({file}))  # weight [c d], bias [c]"
    yield "```"
    if _has_backbone(run):
        size = run.config["preprocessing"]["image_size"]
        yield (
            f"Images are RGB and brought to {size} x {size} pixels (`{run.config['preprocessing']['resize']}`, "
            f"{run.config['preprocessing']['interpolation']})."
        )
    else:
        yield "Logits of this layer become probabilities by the calibration below" + (
            " (`cftjax.open_run(RUN).decisions()`)." if where is None else " (`decisions.json`)."
        )


def _name(run: Run, where: str | None) -> str:
    return where.partition("@")[0].rpartition("/")[2] if where else run.folder.resolve().name


def _source(run: Run) -> str:
    """What the data are called, without the place where they lay."""
    settings = run.config["settings"]
    return Path(settings["file"]).name if "file" in settings else run.config.get("source", "unknown")


def _data(run: Run) -> Iterator[str]:
    yield "## Data"
    yield ""
    given = run.config["settings"].get("data", {})
    chosen = [f"{key} {_without_folder(value)}" for key, value in given.items() if value not in (None, [], "")]
    settings = f" ({for_markdown(', '.join(chosen))})" if chosen else ""
    yield f"Source: {for_markdown(_source(run))}{settings}."
    yield f"Fingerprint of names, labels and settings: `{run.config['fingerprint']}`."
    yield ""
    yield "| split | images | known positive | known negative | uncertain | unknown | could not be opened |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for split in run.splits:
        x = run.embeddings(split)
        told = [int(count.sum()) for count in sparse.of(x.given).counts()]
        counts = (len(x), *told, len(x) * len(run.categories) - sum(told), len(x.unopened))
        yield f"| {split} | {' | '.join(f'{count:,}' for count in counts)} |"
    yield ""
    yield "Labels are counted over all categories."
    for leak in leaks.find({split: run.embeddings(split).groups for split in run.splits}):
        yield ""
        yield f"Beware: {leak}."


def _without_folder(value: Any) -> Any:
    """Settings as they are, but of a path the last part alone."""
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _labels(run: Run) -> Iterator[str]:
    yield "## What the labels mean"
    yield ""
    yield (
        "A label is positive, negative, uncertain (the source gave one and hedged) or unknown (nobody said). "
        "Fine-tuning, thresholds, calibration and scores use positive and negative ones only."
    )
    settings = run.config["settings"]
    if "labels" in settings:
        labels = LabelsConfig(**settings["labels"])
        trained = "head" if settings["training"].get("freeze_backbone") else "backbone"
        yield (
            f"While the {trained} was trained, unknown labels "
            f"{labels.mode.fate} (`{labels.unknown}`); uncertain ones counted {UNCERTAIN[labels.uncertain]}."
        )
        if labels.hide != "none":
            yield f"Labels of the training split were hidden on purpose (`{labels.hide}`): see the settings."
    else:
        yield "How the backbone was trained is not known here."
    answer = settings.get("minus_one") or settings.get("data", {}).get("minus_one", "ask")
    if answer not in meaning.UNANSWERED:
        yield f"A -1 in the file was read as {answer}."


def _names(names: Sequence[str], most: int = 100) -> str:
    """Names in a sentence of the card, the first of too many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(for_markdown, names[:most])) + more


def _change(difference: Mapping[str, Any]) -> str:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    ends = [UNDEFINED] if low is None or high is None else [points(low), points(high)]
    return f"{points(value)} | {', '.join(ends)}"


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    split, metric = tables.reported_split(dict(metrics)), metrics["metric"]
    before, after, difference = (metrics[split][key] for key in ("backbone", "final", "difference"))
    yield "## Scores"
    yield ""
    yield f"In % on {split}, before and after fine-tuning. Changes are in points, with the 95 % interval of a paired"
    yield f"bootstrap over {difference['resampled']} ({difference['resamples']} resamples)."
    if split == "validation":
        yield "There was no test split: validation was used to choose, so that these scores are optimistic."
    yield ""
    yield "| | before | after | change | 95 % interval |"
    yield "|---|---:|---:|---:|---:|"
    for mean in MEAN.values():
        yield f"| {mean} | {percent(before[mean])} | {percent(after[mean])} | {_change(difference[mean])} |"
    yield ""
    names = metrics["categories"]
    if len(names) > MOST_ROWS:
        yield f"The run's `report/table.csv` has all {len(names):,} categories."
        return
    yield f"| category | {metric} before | after | change | 95 % interval | head kept |"
    yield "|---|---:|---:|---:|---:|---|"
    for c, name in enumerate(names):
        own = {key: difference[metric][key][c] for key in ("value", "low", "high")}
        yield (
            f"| {for_markdown(name)} | {percent(before[metric][c])} | {percent(after[metric][c])} | {_change(own)} | "
            f"{word(metrics['chosen'][c])} |"
        )


def _cross_validated(run: Run) -> Iterator[str]:
    yield "## Scores"
    yield ""
    yield "There was neither a validation nor a test split. Cross-validated on the known training labels, in %:"
    yield ""
    chosen = storage.read_json(run.folder / "heads" / "final" / "chosen.json")
    for name, scores in chosen["scores"].items():
        defined = [score for score in scores if score is not None]
        metric = run.config["settings"]["choose"]["metric"]
        yield f"- {word(name)}: {MEAN[metric]} {percent(float(np.mean(defined)) if defined else None)}"


def _decisions(run: Run) -> Iterator[str]:
    found = run.decisions()
    yield "## Thresholds and probabilities"
    yield ""
    target = "" if found.target is None else f" of at least {found.target:g}"
    yield (
        f"Probabilities are calibrated per category (`{found.calibration}`), thresholds on them are set by "
        f"`{found.rule}`{target}. Both were fitted on the known labels of {found.fitted_on.split}."
    )
    if found.fitted_on.note:
        note = found.fitted_on.note
        yield f"Beware: {note}." if note == decisions.OPTIMISTIC else f"{note[0].upper()}{note[1:]}."
    if len(found.categories) > MOST_ROWS:
        yield f"`{runs.DECISIONS}` has all of them."
        return
    yield ""
    yield "| category | threshold | fitted on positives | negatives | note |"
    yield "|---|---:|---:|---:|---|"
    for c, category in enumerate(found.categories):
        value = float(found.thresholds[c])
        shown = f"{decisions.UNFITTED}" if math.isnan(value) else "never" if value > 1 else f"{value:.4f}"
        positive, negative = int(found.fitted_on.positive[c]), int(found.fitted_on.negative[c])
        yield (
            f"| {for_markdown(category)} | {shown} | {positive:,} | {negative:,} | "
            f"{for_markdown(found.notes.get(category, ''))} |"
        )


def _limits(run: Run, metrics: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Intended use and limits"
    yield ""
    yield "- Made to say which of the categories above are present in images like those it was trained on."
    yield "- Nothing was measured on other images: other cameras, places, patients or times may score lower."
    yield (
        "- Scores, thresholds and calibration rest on known labels. Where labels were known for a selection of images, "
        "they hold for that selection."
    )
    yield "- A category outside the list is never found, and images without any of the categories are not rejected."
    yield (
        "- No decision about a person, such as a diagnosis, should rest on it without a validation made for that "
        "purpose."
    )
    untuned = storage.read_json(run.folder / "heads" / "final" / "chosen.json")["untuned"]
    yield from (f"- Not fine-tuned: {for_markdown(category)} ({reason})." for category, reason in untuned.items())
    if metrics:
        split, metric = tables.reported_split(dict(metrics)), metrics["metric"]
        values = zip(metrics["categories"], metrics[split]["final"][metric], strict=True)
        undefined = [name for name, value in values if value is None]
        if undefined:
            yield f"- Without a score on {split}, and left out of the means: {_names(undefined)}."


def _settings(run: Run) -> Iterator[str]:
    yield "## Settings that differ from the defaults"
    yield ""
    default = runs.plain(Config(data=None))
    settings = {key: value for key, value in run.config["settings"].items() if key in default and key != "data"}
    usual = flat(json.loads(json.dumps(default)))
    changed = [(name, value, usual.get(name)) for name, value in flat(settings).items() if value != usual.get(name)]
    if not changed:
        yield "None."
        return
    yield "| option | value | default |"
    yield "|---|---|---|"
    for name, value, before in changed:
        yield f"| `--{name}` | {_shown(value)} | {_shown(before)} |"


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return for_markdown(" ".join(map(str, value)) or "none")
    return for_markdown(str(_without_folder(value)))


def _versions(run: Run) -> Iterator[str]:
    yield "## Versions"
    yield ""
    yield ", ".join(f"{name} {version}" for name, version in run.config["versions"].items()) + "."
