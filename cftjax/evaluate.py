"""Measure runs and files of predictions, and their ensemble: `cftjax evaluate RUN… [FILE.csv…] [--options]`.

cftjax evaluate runs/a runs/b runs/c                          # each run and their ensemble, on test
cftjax evaluate a.csv b.csv --truth groundtruth.csv           # what other programs predicted
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cftjax import cli
from cftjax.config import Metric
from cftjax.data import meaning
from cftjax.evaluation import content, readers, sources
from cftjax.evaluation import files as prediction_files
from cftjax.evaluation import models as members
from cftjax.evaluation.content import Combining, Thresholds
from cftjax.evaluation.models import Reading
from cftjax.evaluation.sources import Source
from cftjax.runtime.progress import Progress
from cftjax.scores.predictions import Predictions, Truth

STOPPED = "Stopped."


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Score runs and files of predictions on known labels, with intervals, beside their ensemble.

    Files of labels and predictions are CSV or Parquet: a column that names each row, and one per category: 1, 0, blank
    (unknown) or -1 (uncertain) in labels, a probability in predictions. Rows and columns may come in any order.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs and of ensembles that `cftjax ensemble` keeps, files of predictions, or all of these."""
    split: Literal["train", "validation", "test"] | None = None
    """The split of runs that is scored; None is test, or validation where there is no test."""
    truth: Path | None = None
    """The file of labels; runs bring their own. Without one nothing is scored, and --ensemble-out has the ensemble."""
    key: tuple[str, ...] = ()
    """Columns that may name the rows of a file, best first; none means study, path, image, id."""
    categories: tuple[str, ...] = ()
    """Columns of the file of labels that count; none means all that any model gives."""
    minus_one: str = "ask"
    """What -1 in files of labels means where it does not show: negative, uncertain or unknown;
    negative-and-zero-unknown (or -uncertain, -negative) says it of 0 as well. Of single columns: Bald=negative,…"""
    scores: bool = False
    """Numbers outside of [0, 1] in files of predictions are scores that rank, however few they are."""
    combine: Combining = "mean"
    """The ensemble: mean of probabilities; mean of ranks; a mean with weights fitted on validation; a mean of members
    picked greedily on validation; or no ensemble."""
    metric: Metric | None = None
    """What tables show first and greedy picks by; None is the metric that the runs chose by, AP for files."""
    validation: tuple[Path, ...] = ()
    """Predictions of validation, one file for each file of predictions, in the same order."""
    validation_truth: Path | None = None
    """The file of labels of validation; runs bring their own."""
    aggregate: Literal["none", "max", "mean"] = "none"
    """What becomes of the rows of one study: the highest probability of its rows, or their mean."""
    study: str = r"patient\d+/study\d+"
    """What of a row's name makes the study, as a regular expression; its first group if it has one. '.+' is the whole
    name."""
    group: str | None = None
    """What of a row's name the bootstrap draws together, such as patient\\d+; None is patients where runs know
    them, else each row by itself."""
    threshold: float | None = None
    """One threshold for everything; None is each run's own, for files those fitted on validation, else 0.5."""
    thresholds: Path | None = None
    """Thresholds by category: a JSON object, a run's decisions.json, or a CSV of the columns category, threshold."""
    readers: tuple[Path, ...] = ()
    """Files of what people decided, such as radiologists, in the form of the labels: points beside the curves, and how
    many lie below."""
    resamples: int = 1000
    """Bootstrap resamples behind intervals and p values; 0 leaves them out."""
    seed: int = 0
    """Seed of the bootstrap."""
    raw: bool = False
    """Write names into a .csv as they are; else one that a spreadsheet would take for a formula (it begins with = + -
    @) has an apostrophe in front, which `cftjax evaluate` takes away again."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A folder for metrics.json, table.csv, table.md (the one that papers print), table.txt and pictures."""
    ensemble_out: Path | None = None
    """A CSV for the ensemble's probabilities, or those of the only model."""


def main() -> None:
    """Read, fit what is to be fitted, measure, write."""
    options = tyro.cli(Evaluation, prog="cftjax evaluate")
    check(options)
    runs = [sources.opened(model) for model in options.models if is_run(model)]
    split = members.split_of(runs, options.split) if runs else None
    reading = Reading(
        options.key or prediction_files.KEYS,
        options.categories,
        None if options.aggregate == "none" else options.aggregate,
        pattern("--study", options.study),
        None if options.group is None else pattern("--group", options.group),
        meaning.parse(options.minus_one, prediction_files.MINUS_ONE.option),
        options.scores,
    )
    files = [model for model in options.models if not is_run(model)]
    labels = options.truth if runs or options.truth is not None else members.unlabelled(files, reading)
    truth, models = read(options, runs, split, files, labels, reading)
    validation = read_validation(options, runs, split, truth, models, reading)
    columns = (
        () if options.truth is None or options.thresholds is None else prediction_files.read(options.truth).columns
    )
    refit = reading.aggregate is not None
    thresholds = Thresholds(options.threshold, options.thresholds, *rule_of(runs), refit, tuple(columns))
    metric: Metric = options.metric or (runs[0].config["settings"]["choose"]["metric"] if runs else "AP")
    found = content.with_ensemble(
        truth, models, options.combine, metric=metric, thresholds=thresholds, validation=validation
    )
    found = dataclasses.replace(found, notes=(*found.notes, *optimism(runs, split)))
    if options.readers:
        rows = members.rows_of(reading, "")
        found = dataclasses.replace(found, readers=tuple(readers.read(options.readers, reading.keys, rows, truth)))
    if options.ensemble_out is not None:
        key = "Study" if truth.unit == "studies" else "path"
        prediction_files.write_predictions(options.ensemble_out, truth, found.each[-1], key, raw=options.raw)
    if isinstance(labels, Truth):
        print(f"{len(truth):,} {truth.unit} of {truth.source}; without --truth nothing is scored.")
    else:
        report(options, found, metric)
    for path in (options.output, options.ensemble_out):
        if path is not None:
            print(f"Written: {path}")


def report(options: Evaluation, found: content.Models, metric: Metric) -> None:
    """Measure, print the tables, and write what is asked for."""
    with Progress("Evaluate", unit="categories") as progress:
        content.report(
            found,
            metric=metric,
            resamples=options.resamples,
            seed=options.seed,
            folder=options.output,
            progress=progress.update,
            raw=options.raw,
        )


def is_run(model: Path) -> bool:
    """Whether a name is that of a run, and not of a file."""
    return model.is_dir() or not model.suffix


def pattern(option: str, words: str) -> re.Pattern[str]:
    """A regular expression from the command line."""
    try:
        return re.compile(words)
    except re.error as error:
        raise ValueError(f"{option} {words!r} is no regular expression ({error}); quote it for the shell") from error


def check(options: Evaluation) -> None:
    """Refuse what does not go together, before anything is read.

    Raises:
        ValueError: with the mend.
    """
    if not options.models:
        raise ValueError("nothing to evaluate: name runs, or files of predictions with --truth FILE")
    runs = [model for model in options.models if is_run(model)]
    files = [model for model in options.models if not is_run(model)]
    if not runs and options.truth is None:
        check_unlabelled(options)
    if runs and options.truth is not None:
        raise ValueError(f"--truth beside {runs[0]}: runs bring their own labels; leave it out, or leave the runs out")
    if options.split and not runs:
        raise ValueError("--split chooses among the splits of runs, and only files are named: leave it out")
    if runs and options.categories:
        raise ValueError(f"--categories chooses columns of --truth; {runs[0]} brings its own categories")
    if options.validation and len(options.validation) != len(files):
        raise ValueError(
            f"--validation has {len(options.validation)} files for the {len(files)} files of predictions: "
            "name one for each, in the same order"
        )
    if not runs and bool(options.validation) != (options.validation_truth is not None):
        raise ValueError("--validation and --validation-truth go together: predictions and labels of validation")
    if runs and options.validation_truth is not None:
        raise ValueError(f"--validation-truth beside {runs[0]}: runs bring their own labels of validation")
    if options.combine in ("weighted", "greedy") and len(options.models) > 1:
        if files and not options.validation:
            more = "" if runs else " and --validation-truth with the labels"
            raise ValueError(
                f"--combine {options.combine} fits weights on validation: add --validation with one file for each of "
                f"{', '.join(map(str, files))}{more}"
            )
        if options.split == "validation":
            raise ValueError(f"--combine {options.combine} fits weights on validation: report on --split test")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold {options.threshold:g} is no probability: use a value in [0, 1]")
    if options.threshold is not None and options.thresholds is not None:
        raise ValueError("--threshold and --thresholds: give one of them")
    if options.resamples < 0:
        raise ValueError(f"--resamples {options.resamples} is negative: use 1000, or 0 to leave intervals out")


def check_unlabelled(options: Evaluation) -> None:
    """Refuse what needs labels where there are only predictions.

    Raises:
        ValueError: with the mend.
    """
    if options.ensemble_out is None:
        raise ValueError(
            f"{options.models[0]} has predictions only: name the file of the labels with --truth, or with "
            "--ensemble-out FILE.csv where the ensemble is to be written"
        )
    for option, value in (("-o", options.output), ("--readers", options.readers), ("--thresholds", options.thresholds)):
        if value:
            raise ValueError(f"{option} needs labels: name their file with --truth")


def rule_of(runs: Sequence[Source]) -> tuple[str, float | None]:
    """The rule that thresholds are fitted by: the first run's, else the highest F1."""
    if not runs:
        return "f1", None
    decided = runs[0].decisions()
    return decided.rule, decided.target


def read(
    options: Evaluation,
    runs: Sequence[Source],
    split: str | None,
    files: Sequence[Path],
    labels: Path | Truth | None,
    reading: Reading,
) -> tuple[Truth, list[Predictions]]:
    """Labels, and the predictions of all models in the order in which they were named."""
    names = members.names_of(options.models)
    of_run = [is_run(model) for model in options.models]
    truth = labels
    found: list[Predictions] = []
    if runs:
        assert split is not None
        run_names = [name for name, run in zip(names, of_run, strict=True) if run]
        truth, found = members.of_runs(runs, run_names, split, reading)
    assert truth is not None
    if files:
        file_names = [name for name, run in zip(names, of_run, strict=True) if not run]
        truth, more = members.of_files(files, file_names, truth, reading)
        found = [*found, *more]
    assert isinstance(truth, Truth)
    return truth, sorted(found, key=lambda model: names.index(model.name))


def read_validation(
    options: Evaluation,
    runs: Sequence[Source],
    split: str | None,
    truth: Truth,
    models: Sequence[Predictions],
    reading: Reading,
) -> tuple[Truth, list[Predictions]] | None:
    """Labels and predictions of validation, where all models have them; None where not.

    Raises:
        ValueError: where weights need them, or a file of them does not give what the other one does.
    """
    files = [model for model in options.models if not is_run(model)]
    lacking = [run for run in runs if "validation" not in sources.embedded(run)]
    fits = options.combine in ("weighted", "greedy") and len(models) > 1
    if fits and split == "validation":
        raise ValueError(f"--combine {options.combine} fits weights on validation, and there is no test to report on")
    if fits and lacking:
        raise ValueError(f"--combine {options.combine} fits weights on validation, which {lacking[0].folder} lacks")
    if lacking or (files and not options.validation):
        return None
    same = reading if runs else dataclasses.replace(reading, categories=truth.categories)
    found, there = read(options, runs, "validation", options.validation, options.validation_truth, same)
    given_as = dict(zip(members.names_of(options.models), options.models, strict=True))
    judged_by = dict(zip(files, options.validation, strict=True))
    for model, other in zip(models, there, strict=True):
        absent = [truth.categories[i] for i in range(len(model.given)) if model.given[i] and not other.given[i]]
        if absent:
            file = judged_by[given_as[model.name]]
            raise ValueError(f"{file}: does not give {', '.join(absent)}, which {model.name} gives; add these columns")
    return found, there


def optimism(runs: Sequence[Source], split: str | None) -> list[str]:
    """Why the scores of runs may be too good to be true."""
    notes = []
    if split in ("train", "validation"):
        used = "fit the model" if split == "train" else "choose heads and thresholds"
        notes.append(f"{split} was used to {used}, so that these scores are optimistic.")
    for run in runs:
        if note := run.decisions().fitted_on.note:
            notes.append(f"Thresholds of {run.folder.name}: {note}.")
    return notes


if __name__ == "__main__":
    cli.run(main, STOPPED)
