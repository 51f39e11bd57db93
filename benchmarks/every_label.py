"""What learning from every known label is worth: frozen features, labels hidden in several ways, from two heads.

    python benchmarks/coco_embeddings.py COCO coco.npz
    python benchmarks/every_label.py coco.npz [--results every_label.jsonl] [--seeds 3] [--ablation]

A tenth of the photographs judges, with complete labels. Negative and Ignore are ridge regressions on the learning
images alone, one strength for all categories by the judging ones; "refit" is Ignore's on all known labels of both, its
strength cross-fitted; "full labels" learns from the complete labels of all of them. CFT is the default from each of
the two heads. With --ablation each lever is taken away in turn. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cftjax import cli, metrics
from cftjax.cft import committee, crossfit
from cftjax.cft.polish import polish
from cftjax.config import ChooseConfig, LabelsConfig, PolishConfig, TuningConfig
from cftjax.data import hiding
from cftjax.data.splits import stratify
from cftjax.runtime import storage
from cftjax.scores import bootstrap
from cftjax.types import Embeddings, Heads, Labels

PROBLEMS = {
    "uniform 10 %": LabelsConfig(hide="uniform", known_proportion=0.1),
    "uniform 30 %": LabelsConfig(hide="uniform", known_proportion=0.3),
    "uniform 50 %": LabelsConfig(hide="uniform", known_proportion=0.5),
    "uneven 10 %": LabelsConfig(hide="uneven", known_proportion=0.1),
    "uneven 30 %": LabelsConfig(hide="uneven", known_proportion=0.3),
    "uneven 50 %": LabelsConfig(hide="uneven", known_proportion=0.5),
    "positives first 50 + 3 %": LabelsConfig(hide="positives_first", known_proportion=0.5, known_negatives=0.03),
    "positives first 30 + 10 %": LabelsConfig(hide="positives_first", known_proportion=0.3, known_negatives=0.1),
}
ROWS = ("Negative", "Ignore", "refit", "full labels", "CFT on Negative", "CFT on Ignore")
STRENGTHS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
PLAIN = PolishConfig(unknown_weights=(0.0,), judging_weights=(1.0,))
NO_SEARCH = "no search: pulled to the head that came"
ABLATIONS = {
    "validation labels only judge": TuningConfig(choose=ChooseConfig(refit="none")),
    "unlabelled images count for nothing": TuningConfig(polish=dataclasses.replace(PLAIN, spreads=(0.0,))),
    "unknown labels are never negatives": TuningConfig(polish=PLAIN),
    "no pull to the search's winners": TuningConfig(polish=PolishConfig(pull_towards=("zero",))),
    NO_SEARCH: TuningConfig(),
}
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Problem:
    """Splits of one problem: train with hidden labels, the others complete; `complete` is train without hiding."""

    train: Embeddings
    validation: Embeddings
    test: Embeddings
    complete: Embeddings


def make(file: Path, hide: LabelsConfig, seed: int) -> Problem:
    """Hide and carve by one seed."""
    arrays = storage.read_arrays(file)
    positive = arrays["train_labels"]
    complete = Labels(positive, np.ones_like(positive), np.zeros_like(positive))
    hidden = hiding.hide(complete, dataclasses.replace(hide, hide_seed=seed))
    judging = stratify(positive, 0.1, seed)
    learning = np.setdiff1d(np.arange(len(positive)), judging)

    def split(labels: Labels, rows: np.ndarray) -> Embeddings:
        return Embeddings(arrays["train_z"][rows], labels.labels[rows], labels.known[rows])

    known = np.ones_like(arrays["test_labels"])
    test = Embeddings(arrays["test_z"], arrays["test_labels"], known)
    return Problem(split(hidden, learning), split(complete, judging), test, split(complete, learning))


def probe(train: Embeddings, validation: Embeddings) -> Heads:
    """Ridge regressions on train, of one strength for all categories, the best by validation."""
    c, d = train.labels.shape[1], train.z.shape[1]
    zero, best = Heads(np.zeros((c, d), np.float32), np.zeros(c, np.float32)), (-1.0, None)
    for l2 in STRENGTHS:
        config = PolishConfig(pull_towards=("zero",), l2=(l2,), rule="best", refit_bias=False)
        heads = polish(zero, train, validation, config=config).heads
        score = float(np.nanmean(scores(heads, validation)))
        best = (score, heads) if score > best[0] else best
    assert best[1] is not None
    return best[1]


def logits(heads: Heads, split: Embeddings) -> np.ndarray:
    """[n c]."""
    return np.asarray(heads(split.z))


def scores(heads: Heads, split: Embeddings) -> np.ndarray:
    """[c] AP in percent."""
    return 100 * np.asarray(metrics.average_precision(logits(heads, split), split.labels, split.known))


def negative(train: Embeddings) -> Embeddings:
    """Unknown labels called negative."""
    return dataclasses.replace(train, labels=train.labels & train.known, known=np.ones_like(train.known))


def tuned(
    p: Problem, heads: Heads, config: TuningConfig, seed: int, *, search: bool = True
) -> tuple[Heads, committee.Committee, float]:
    """What CFT makes of heads, the committee, and the share of the heads that came."""
    problem = crossfit.Problem(p.train, p.validation, heads, dataclasses.replace(config, seed=seed))
    lanes = crossfit.lanes_of(crossfit.find(problem, jax.random.key(seed))) if search else []
    whole = crossfit.learn(problem, lanes)
    chosen = crossfit.share(problem, whole)
    return chosen.heads, whole, float(chosen.share or 0.0)


def rows_of(p: Problem, seed: int, ablation: bool) -> dict[str, Any]:
    """Every row's heads, with notes of what was picked."""
    came = {"Negative": probe(negative(p.train), p.validation), "Ignore": probe(p.train, p.validation)}
    heads, notes = dict(came), {}
    for name, head in came.items():
        heads[f"CFT on {name}"], whole, share = tuned(p, head, TuningConfig(), seed)
        notes[name] = {"recipes": whole.recipes, "share": share}
        heads["refit"] = whole.refit
        heads |= {f"{part} from {name}": own for part, own in whole.parts.items()}
        for word, config in ABLATIONS.items() if ablation else ():
            heads[f"{word} on {name}"] = tuned(p, head, config, seed, search=word != NO_SEARCH)[0]
    everything = crossfit.Problem(p.complete, p.validation, came["Ignore"], TuningConfig(polish=PLAIN, seed=seed))
    heads["full labels"] = crossfit.learn(everything, []).refit
    return {"heads": heads, "notes": notes}


def results(file: Path, path: Path, seeds: int, ablation: bool) -> Iterator[dict[str, Any]]:
    """Run what is not in the results yet."""
    done = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            done[row["problem"], row["seed"]] = row
    for seed in range(seeds):
        for name, hide in PROBLEMS.items():
            if (name, seed) not in done:
                jax.clear_caches()  # so many programs at once exhaust what a process may map of memory
                p = make(file, hide, seed)
                made = rows_of(p, seed, ablation)
                row = {"problem": name, "seed": seed, "notes": made["notes"]}
                row["AP"] = {key: scores(heads, p.test).tolist() for key, heads in made["heads"].items()}
                row["resampled"] = resampled(p.test, made["heads"])
                with path.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                done[name, seed] = row
                print(name, seed, {key: round(float(np.nanmean(v)), 2) for key, v in row["AP"].items()}, flush=True)
            yield done[name, seed]


def resampled(test: Embeddings, heads: dict[str, Heads]) -> dict[str, list[float]]:
    """Mean AP under the same resamples of the test images for every row."""
    each = np.stack([logits(heads[name], test) for name in ROWS])
    labels, known = (np.asarray(x, bool) for x in (test.labels, test.known))
    drawn = bootstrap.resample(each, labels, known, groups=None, resamples=RESAMPLES)["AP"]
    means = 100 * np.asarray(metrics.mean_defined(drawn))
    return {name: np.round(values, 4).tolist() for name, values in zip(ROWS, means, strict=True)}


def print_tables(found: list[dict[str, Any]]) -> None:
    """Mean AP by problem; gains with intervals; harm; and what each lever is worth."""
    print(f"| mAP on test, mean of the seeds | {' | '.join(ROWS)} |\n|---|{'---:|' * len(ROWS)}")
    for name in (*PROBLEMS, "mean"):
        mine = [row for row in found if name in (row["problem"], "mean")]
        if mine:
            cells = [f"{np.mean([np.nanmean(row['AP'][key]) for row in mine]):.2f}" for key in ROWS]
            print(f"| {name} | {' | '.join(cells)} |")
    pairs = [
        ("CFT on Negative", "Negative"),
        ("CFT on Negative", "Ignore"),
        ("CFT on Negative", "refit"),
        ("CFT on Ignore", "Ignore"),
    ]
    print(f"\n| gain in points [95 %] | {' | '.join(f'{a} over {b}' for a, b in pairs)} |\n|---|{'---:|' * len(pairs)}")
    for name in (*PROBLEMS, "mean"):
        mine = [row for row in found if name in (row["problem"], "mean")]
        if not mine:
            continue
        cells = []
        for a, b in pairs:
            gain = np.mean([np.nanmean(row["AP"][a]) - np.nanmean(row["AP"][b]) for row in mine])
            drawn = np.mean([np.subtract(row["resampled"][a], row["resampled"][b]) for row in mine], axis=0)
            low, high = np.percentile(drawn, [2.5, 97.5])
            cells.append(f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]")
        print(f"| {name} | {' | '.join(cells)} |")
    for name in ("Negative", "Ignore"):
        drop = np.concatenate([np.subtract(row["AP"][f"CFT on {name}"], row["AP"][name]) for row in found])
        print(f"\nFrom {name}: {np.mean(drop < -1):.1%} of categories lose over a point, {np.mean(drop < 0):.1%} any.")
    print("\nCategories that lose over a point on test in brackets.")
    print("\n| mean mAP, all problems | on Negative | on Ignore |\n|---|---:|---:|")
    words = [key.removesuffix(" on Negative") for key in found[0]["AP"] if key.endswith(" on Negative")]
    parts = [key.removesuffix(" from Negative") for key in found[0]["AP"] if key.endswith(" from Negative")]
    for word, joint in [*((w, "on") for w in words), *((p, "from") for p in parts)]:
        cells = []
        for name in ("Negative", "Ignore"):
            # Rows of an earlier call may have been made without --ablation.
            rows = [row for row in found if f"{word} {joint} {name}" in row["AP"]]
            after = [row["AP"][f"{word} {joint} {name}"] for row in rows]
            drop = np.concatenate([np.subtract(x, row["AP"][name]) for x, row in zip(after, rows, strict=True)])
            mean = np.mean([np.nanmean(x) for x in after])
            cells.append(f"{mean:.2f} ({np.mean(drop < -1):.1%}; {len(rows)} problems)")
        print(f"| {word if joint == 'on' else word + ' alone'} | {' | '.join(cells)} |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that coco_embeddings.py wrote")
    parser.add_argument("--results", type=Path, default=Path("every_label.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation", action="store_true", help="take each lever away in turn as well")
    given = parser.parse_args()
    print_tables(list(results(given.file, given.results, given.seeds, given.ablation)))


if __name__ == "__main__":
    cli.run(main)
