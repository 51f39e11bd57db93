"""The stages of the rule `shared`: search, the committee that learns in folds, and the share of the heads that came.

heads/ga holds the search's winners, `lanes.npz` those without each fold; heads/polish the regression from them, and in
`committee.npz` all that the choice takes; heads/final the heads and `out_of_fold.npz`, their logits of the judging
images, each by heads that have not learned from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from cftjax import runs
from cftjax.cft import crossfit, sampling
from cftjax.cft.committee import Committee
from cftjax.cft.crossfit import Problem
from cftjax.config import TuningConfig
from cftjax.report.printing import defined
from cftjax.runs import Run, Stage
from cftjax.runtime import devices, storage
from cftjax.stages.watching import watched
from cftjax.text import few
from cftjax.types import Embeddings, Heads

T = TypeVar("T")


def tune(run: Run, embeddings: dict[str, Embeddings], config: TuningConfig, made_from: Sequence[str]) -> str:
    """Go through the three stages, keeping what is complete, and give the key of the last.

    Args:
        run: holds the heads of the backbone.
        embeddings: by split.
        config: its ga, polish, choose and seed are read.
        made_from: keys of the stages before.
    """
    problem = Problem(embeddings["train"], embeddings.get("validation"), run.heads("backbone"), config)
    lanes, key = _search(run, problem, made_from)
    whole, key = _learn(run, problem, lanes, [*made_from, key])
    return _share(run, problem, whole, key)


def _search(run: Run, problem: Problem, made_from: Sequence[str]) -> tuple[list[Heads], str]:
    """The search's winners in every lane; none without a validation split."""
    config = problem.config
    searched = sampling.recorded(config.ga, len(problem.train))
    settings = [searched, config.seed, config.choose.refit, config.polish.folds]
    with run.stage("heads/ga", settings, made_from) as stage:
        if not stage.complete and problem.validation is None and devices.is_primary():
            storage.write_heads(stage.folder / "heads.npz", problem.heads)
            storage.write_arrays(
                stage.folder / "history.npz", {"generation": np.zeros(0, int), "score": np.zeros((0, 0))}
            )
            storage.write_arrays(stage.folder / "lanes.npz", _stacked([]))
        elif not stage.complete and problem.validation is not None:
            found = _watched(stage, "Search", "generations", f"validation m{config.ga.metric}")(
                lambda **given: crossfit.find(problem, jax.random.key(config.seed), **given)
            )
            if devices.is_primary():
                history = np.concatenate([found.before[None], found.history])
                storage.write_heads(stage.folder / "heads.npz", found.heads)
                content = {"generation": np.arange(len(history)), "score": history}
                storage.write_arrays(stage.folder / "history.npz", content)
                storage.write_arrays(stage.folder / "lanes.npz", _stacked(crossfit.lanes_of(found)))
    if config.log and devices.is_primary():
        scores = storage.read_arrays(stage.folder / "history.npz")["score"]
        run.tracking.write(stage.folder, f"search/m{config.ga.metric}", run.categories, scores)
    arrays = storage.read_arrays(stage.folder / "lanes.npz")
    return [Heads(k, b) for k, b in zip(arrays["kernel"], arrays["bias"], strict=True)], stage.key


def _stacked(heads: Sequence[Heads]) -> dict[str, np.ndarray]:
    """Heads as arrays with the lanes first."""
    return {
        name: np.stack([np.asarray(getattr(head, name)) for head in heads]) if heads else np.zeros((0, 0), np.float32)
        for name in ("kernel", "bias")
    }


def _learn(run: Run, problem: Problem, lanes: list[Heads], made_from: Sequence[str]) -> tuple[Committee, str]:
    """The committee, learned or read."""
    config = problem.config
    with run.stage("heads/polish", [config.polish, config.choose.refit, config.seed], made_from) as stage:
        path = stage.folder / "committee.npz"
        if not stage.complete:
            whole = _watched(stage, "Polish", "categories", "")(lambda **given: crossfit.learn(problem, lanes, **given))
            if devices.is_primary():
                storage.write_arrays(path, _arrays(whole))
                storage.write_json(stage.folder / "learned.json", {"recipes": whole.recipes})
                storage.write_heads(stage.folder / "heads.npz", whole.parts[whole.polished])
                storage.write_heads(stage.folder / runs.REFIT, whole.refit)
                _print_recipes(whole)
    return _committee(storage.read_arrays(path), storage.read_json(stage.folder / "learned.json")["recipes"]), stage.key


def _arrays(whole: Committee) -> dict[str, np.ndarray]:
    """A committee as arrays."""
    arrays = {"kernel": whole.heads.kernel, "bias": whole.heads.bias, "out_of_fold": whole.out_of_fold}
    arrays |= {
        "polish_out_of_fold": whole.polish_out_of_fold,
        "base_mean": whole.base_mean,
        "base_deviation": whole.base_deviation,
    }
    parts = {**whole.parts, "refit": whole.refit}
    arrays |= {f"kernel_{name}": part.kernel for name, part in parts.items()}
    arrays |= {f"bias_{name}": part.bias for name, part in parts.items()}
    arrays |= {f"score_{name}": scores for name, scores in whole.scores.items()}
    return arrays | {
        "untuned": np.array([*whole.untuned], np.int64),
        "reasons": np.array([*whole.untuned.values()], str),
    }


def _committee(arrays: dict[str, np.ndarray], recipes: dict[str, str]) -> Committee:
    """What `_arrays` gave."""
    return Committee(
        Heads(arrays["kernel"], arrays["bias"]),
        arrays["out_of_fold"],
        arrays["polish_out_of_fold"],
        {name: Heads(arrays[f"kernel_{name}"], arrays[f"bias_{name}"]) for name in recipes},
        Heads(arrays["kernel_refit"], arrays["bias_refit"]),
        recipes,
        {name.removeprefix("score_"): scores for name, scores in arrays.items() if name.startswith("score_")},
        dict(zip(arrays["untuned"].tolist(), arrays["reasons"].tolist(), strict=True)),
        arrays["base_mean"],
        arrays["base_deviation"],
    )


def _print_recipes(whole: Committee) -> None:
    """How each head of the committee is learned."""
    print("Learned: " + "; ".join(f"{name} ({recipe})" for name, recipe in whole.recipes.items()) + ".")


def _share(run: Run, problem: Problem, whole: Committee, made_from: str) -> str:
    """The final heads, their out-of-fold logits and what was chosen."""
    with run.stage("heads/final", [problem.config.choose], [made_from]) as stage:
        if not stage.complete and devices.is_primary():
            chosen = crossfit.share(problem, whole)
            storage.write_json(
                stage.folder / "chosen.json",
                {
                    "chosen": chosen.names,
                    "untuned": {run.categories[c]: reason for c, reason in chosen.untuned.items()},
                    "scores": defined(chosen.scores),
                    "share": chosen.share,
                    "unjudged": [run.categories[c] for c in chosen.unjudged],
                },
            )
            storage.write_heads(stage.folder / "heads.npz", chosen.heads)
            if problem.refit:
                logits = {"final": np.asarray(chosen.out_of_fold), "polish": whole.polish_out_of_fold}
                storage.write_arrays(stage.folder / runs.OUT_OF_FOLD, logits)
            if problem.validation is not None:
                print(f"Share of the heads that came: {chosen.share:.0%}.")
            if chosen.unjudged:
                names = [run.categories[c] for c in chosen.unjudged]
                print(f"Tuned as the others, for no validation label of them could judge: {few(names)}.")
    return stage.key


def judge_only(run: Run, config: TuningConfig, made_from: Sequence[str]) -> None:
    """Keep beside a run's final heads those of `--choose.refit none`: validation judges, and nothing learns from it.

    Args:
        run: with a validation split, and tuned under the rule `shared`.
        config: its polish, choose and seed are read.
        made_from: keys of the stages before the search, whose winners do not enter these heads.
    """
    config = dataclasses.replace(config, choose=dataclasses.replace(config.choose, refit="none"))
    settings = [config.polish, config.choose, config.seed]
    with run.stage(f"heads/{runs.JUDGED}", settings, made_from) as stage:
        if stage.complete:
            return
        problem = Problem(run.embeddings("train"), run.embeddings("validation"), run.heads("backbone"), config)
        title = "Polish, validation only judges"
        whole = _watched(stage, title, "categories", "")(lambda **given: crossfit.learn(problem, [], **given))
        if devices.is_primary():
            storage.write_heads(stage.folder / "heads.npz", crossfit.share(problem, whole).heads)


def _watched(stage: Stage, title: str, unit: str, words: str) -> Callable[[Callable[..., T]], T]:
    """What calls work with a store in the stage's folder, news on the screen, and all devices."""

    def call(work: Callable[..., T]) -> T:
        mesh = devices.mesh() if jax.device_count() > 1 else None
        with watched(title, unit, words) as news_of:
            store = storage.FolderStore(stage.folder / "categories", stage.key)
            return work(store=store, progress=news_of(0), mesh=mesh)

    return call
