"""Every option of a run, and whether the key of its stage reads it: an old run is not made anew unnoticed.

Whoever adds an option finds it refused here. It changes the key of all runs that there are, unless it is left out
while it is off (`config.TRAINING_EXTRAS`, `unknowns.Mode.options`): say below which of the two it does.
"""

import dataclasses
import typing
from pathlib import Path

import pytest

from cftjax.cft import sampling
from cftjax.config import (
    BackboneConfig,
    ChooseConfig,
    ClassifierConfig,
    Config,
    DecideConfig,
    EmbedConfig,
    GAConfig,
    InputConfig,
    LabelsConfig,
    PolishConfig,
    ReportConfig,
    TrainingConfig,
)
from cftjax.runs import plain
from cftjax.runtime import storage
from cftjax.stages import backbone
from cftjax.unknowns import MODES

OLD = Path(__file__).parent / "data" / "run-format-1"
# Options that a training's key always reads.
ALWAYS = {
    "labels": "unknown uncertain hide known_proportion known_per_category hide_seed",
    "input": "augment flip crop_min_area randaugment_operations randaugment_magnitude cutout cache cache_dir",
    "backbone": "name weights image_size pooling remat",
    "training": "loss epochs max_steps batch_size optimizer learning_rate head_learning_rate_scale weight_decay "
    "schedule warmup clip_norm ema_decay metric patience compute_dtype",
}
# Those that it reads where the settings beside them say that they are used.
USED = {
    "labels.unknown_warmup": {"labels.unknown": "curriculum"},
    "labels.unknown_weight": {"labels.unknown": "weak_negative"},
    "labels.unknown_smoothing": {"labels.unknown": "smooth_negative"},
    "labels.likelihood_top": {"labels.unknown": "selective"},
    "labels.prior_threshold": {"labels.unknown": "selective"},
    "labels.large_loss_share": {"labels.unknown": "reject_large_loss"},
    "labels.curriculum_score": {"labels.unknown": "curriculum"},
    "labels.known_negatives": {"labels.hide": "positives_first"},
    "training.frozen_learning_rate": {"training.freeze_backbone": True},
    "classifier.places_weight": {"classifier.places": 5},
}
# Those that it reads where they are not as by default.
EXTRAS = ("freeze_backbone", "layer_decay", "positive_weight_power", "mixup", "accumulate")
CHANGED = {f"training.{name}" for name in EXTRAS} | {"classifier.places"}
# Those that change no result.
NEVER = {"input.workers", "input.on_bad_image", "training.checkpoint_seconds"}
# In the order of the key; a section that this version added is not in old ones.
OLD_SECTIONS = {"labels": LabelsConfig, "input": InputConfig, "backbone": BackboneConfig, "training": TrainingConfig}
SECTIONS = OLD_SECTIONS | {"classifier": ClassifierConfig}
# Stages after the training read all options of theirs.
LATER = {
    GAConfig: "metric algorithm population_size num_generations patience dimensions selection parent_share "
    "crossover_rate mutation mutation_rate mutation_scale row_share most_rows seeds restarts embeddings_dtype "
    "refit_bias categories_at_once",
    PolishConfig: "metric loss optimizer learning_rate num_steps patience dimensions pull_towards l2 spreads strengths "
    "unknown_weights judging_weights folds rule refit_bias",
    ChooseConfig: "metric rule refit mixes",
    DecideConfig: "rule precision sensitivity calibration",
    ReportConfig: "resamples",
    EmbedConfig: "batch_size",
}


def config(**changes):
    """The defaults, but for options by their dotted names."""
    parts = {name: {} for name in SECTIONS}
    for name, value in changes.items():
        section, option = name.split(".")
        parts[section][option] = value
    return Config(data=None, **{name: kind(**parts[name]) for name, kind in SECTIONS.items()})


def another(section, option):
    """A value of an option that is not its default."""
    kind = SECTIONS[section]
    hint, default = typing.get_type_hints(kind)[option], getattr(kind(), option)
    if typing.get_origin(hint) is typing.Literal:
        return next(value for value in typing.get_args(hint) if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if option == "unknown_weight":
        return 0.5
    if isinstance(default, float):
        return default / 2 if default else 0.5
    return "other" if option in ("name", "weights", "cache_dir") else 1


def recorded(**changes):
    return plain(backbone.recorded(config(**changes)))


EVERY = [f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)]


def test_every_option_is_listed_once():
    always = [f"{section}.{name}" for section, names in ALWAYS.items() for name in names.split()]
    assert sorted([*always, *USED, *CHANGED, *NEVER]) == sorted(EVERY)
    assert {f"labels.{name}" for mode in MODES.values() for name in mode.options} <= set(USED)
    for kind, names in LATER.items():
        assert {field.name for field in dataclasses.fields(kind)} == set(names.split()), kind


@pytest.mark.parametrize("name", EVERY)
def test_the_key_of_a_training_reads_an_option_as_it_is_listed(name):
    value = another(*name.split("."))
    assert (recorded(**{name: value}) == recorded()) == (name in USED or name in NEVER)
    if name in USED:
        assert recorded(**USED[name], **{name: value}) != recorded(**USED[name])


def test_an_old_training_is_kept_by_the_code_of_today():
    stored = storage.read_json(OLD / "backbone" / "stage.json")["settings"]
    parts = {name: kind(**stored[i]) for i, (name, kind) in enumerate(OLD_SECTIONS.items())}
    assert plain(backbone.recorded(Config(data=None, **parts, seed=stored[-1]))) == stored
    assert (
        plain([EmbedConfig(batch_size=48)]) == storage.read_json(OLD / "embeddings" / "test" / "stage.json")["settings"]
    )


def test_an_old_search_is_kept_where_no_category_has_more_rows_than_candidates_are_scored_on():
    stored = storage.read_json(OLD / "heads" / "ga" / "stage.json")["settings"][0]
    old = GAConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})
    assert sampling.recorded(old, 16_384) == stored
    assert sampling.recorded(old, 16_385) == stored | {"most_rows": 16_384}
    everything = dataclasses.replace(old, most_rows=None)
    assert sampling.recorded(everything, 10**6) == stored
