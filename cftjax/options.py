"""Options that a person calls by another name, or that belong to another recipe: what to type."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cftjax import recipes

DEVICES = (
    "JAX takes the accelerator that it was installed for (pip install 'jax[cuda13]', 'jax[tpu]'). JAX_PLATFORMS=cpu "
    "before the command keeps to the CPU, CUDA_VISIBLE_DEVICES=0 to one GPU"
)
# Names of other programs -> options here; what has no dash in front is said as it is.
MEANT = {
    **dict.fromkeys(("--lr", "--learning-rate"), "--training.learning-rate"),
    **dict.fromkeys(("--epochs", "--num-epochs", "--max-epochs"), "--training.epochs"),
    **dict.fromkeys(("--bs", "--batch-size", "--batch"), "--training.batch-size"),
    **dict.fromkeys(("--wd", "--weight-decay"), "--training.weight-decay"),
    **dict.fromkeys(("--max-steps", "--steps"), "--training.max-steps"),
    **dict.fromkeys(("--arch", "--model", "--backbone"), "--backbone.name"),
    **dict.fromkeys(("--weights", "--pretrained", "--checkpoint"), "--backbone.weights"),
    **dict.fromkeys(("--image-size", "--img-size", "--imgsz", "--size"), "--data.image-size"),
    **dict.fromkeys(("--num-workers", "--workers"), "--input.workers"),
    **dict.fromkeys(("--output", "--output-dir", "--out", "--save-dir", "--run"), "--workdir, or -o,"),
    **dict.fromkeys(("--gpu", "--gpus", "--device", "--devices", "--cuda", "--cpu"), DEVICES),
    **dict.fromkeys(("--tensorboard", "--tensorboard-dir"), "--log tensorboard"),
    **dict.fromkeys(("--wandb", "--use-wandb"), "--log wandb"),
    "--mlflow": "--log mlflow",
    "--resume": "The same command with the same --workdir goes on where it stood",
}


def check(words: Sequence[str], command: str, *, sections: bool = True) -> None:
    """Answer options that other programs have with the option meant.

    Args:
        words: the options, as typed.
        command: what they were typed after, such as `cftjax train`.
        sections: whether the command has the sections of training.

    Raises:
        ValueError: with what to type.
    """
    for word in words:
        name = word.partition("=")[0]
        meant = MEANT.get(name, "")
        if meant and (sections or "." not in meant.partition(" ")[0]):
            said = f"the option is {meant} here" if meant.startswith("--") else meant
            raise ValueError(f"{name}: {said}. {command} --help lists the options.")


def check_recipe(words: Sequence[str], command: str, data: type) -> None:
    """Answer options of a recipe's data where no recipe is named.

    Args:
        words: the options, as typed.
        command: what they were typed after.
        data: the type of the default configuration's data.

    Raises:
        ValueError: with what to type.
    """
    own = {field.name for field in dataclasses.fields(data)}
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if not name.startswith("--data.") or option_field(name) in own:
            continue
        others = [recipe for recipe in recipes.names() if option_field(name) in fields_of(recipe)]
        if others:
            shown = f"{name} {value or (words[i + 1] if i + 1 < len(words) else '…')}"
            raise ValueError(
                f"{name} is an option of the recipe{'s' if len(others) > 1 else ''} {', '.join(others)}, and none is "
                f"named: {command} {others[0]} {shown}"
            )


def option_field(name: str) -> str:
    """The field of the data that `--data.some-name` sets."""
    return name.removeprefix("--data.").replace("-", "_")


def fields_of(recipe: str) -> set[str]:
    """Options of a recipe's data."""
    return {field.name for field in dataclasses.fields(recipes.read(recipe).data)}
