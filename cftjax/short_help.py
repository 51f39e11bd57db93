"""The short help: what is set first, in the order in which it is set; --help-all has the rest."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

# What --help shows of the sections of options; None for all of a section.
FIRST: dict[str, tuple[str, ...] | None] = {
    "data": None,
    "backbone": ("name", "weights", "image_size"),
    "training": ("freeze_backbone", "epochs", "max_steps", "batch_size", "learning_rate", "metric"),
    "labels": ("unknown", "uncertain", "hide", "known_proportion"),
    "split": None,
    "input": ("augment", "flip", "workers", "on_bad_image"),
    "ga": ("num_generations",),
    "decide": ("rule", "calibration"),
}
# Options outside of sections that --help leaves to --help-all.
RARE = ("order", "hosts")


def parse(kind: Any, default: Any, words: Sequence[str], command: str, description: str) -> Any:
    """The options of a command; --help shows those that are set first, --help-all every one.

    Args:
        kind: a dataclass, perhaps with its type parameter.
        default: what is not named keeps its value here.
        words: the options, as typed.
        command: what they were typed after.
        description: first line of --help.
    """
    if any(word in ("-h", "--help") for word in words):
        kind = brief(kind)
        default, description = converted(default, kind), f"{description}\n--help-all lists every option."
    words = ["--help" if word == "--help-all" else word for word in words]
    with warnings.catch_warnings():
        # The subclass of a short help has no type parameter left; its base, whose documentation is read, has.
        warnings.filterwarnings("ignore", message="Could not resolve type parameter")
        return tyro.cli(kind, default=default, args=words, description=description, prog=command)


def brief(kind: Any) -> Any:
    """A dataclass of the same options, of which the help leaves out what is rarely set."""
    hints = hints_of(kind)
    for name, hint in hints.items():
        inner, marks = split(hint)
        if name == "config":
            hints[name] = marked(brief(inner), marks)
        elif name in RARE or (is_section(inner) and name not in FIRST):
            hints[name] = tyro.conf.Suppress[hint]
        elif (kept := FIRST.get(name)) is not None:
            hints[name] = marked(with_only(inner, kept), marks)
    return subclass(kind, hints)


def with_only(kind: Any, kept: Sequence[str]) -> Any:
    """A section whose help shows these of its options."""
    hints = {name: hint if name in kept else tyro.conf.Suppress[hint] for name, hint in hints_of(kind).items()}
    return subclass(kind, hints)


def converted(value: Any, kind: Any) -> Any:
    """The same options as an instance of what `brief` made."""
    inner, _ = split(kind)
    if not is_section(inner):
        return value
    values = {name: converted(getattr(value, name), hint) for name, hint in hints_of(inner).items()}
    return (typing.get_origin(inner) or inner)(**values)


def subclass(kind: Any, hints: dict[str, Any]) -> Any:
    """A subclass with other annotations; names, defaults and words of the options stay."""
    origin = typing.get_origin(kind) or kind
    fields = [(field.name, hints[field.name], dataclasses.field(kw_only=True)) for field in dataclasses.fields(origin)]
    made = dataclasses.make_dataclass(origin.__name__, fields, bases=(origin,), frozen=True)
    made.__doc__ = origin.__doc__
    return made


def hints_of(kind: Any) -> dict[str, Any]:
    """Annotations of a dataclass's fields, its type parameter filled in."""
    origin, parameters = typing.get_origin(kind) or kind, typing.get_args(kind)
    hints = typing.get_type_hints(origin, include_extras=True)
    return {field.name: filled(hints[field.name], parameters) for field in dataclasses.fields(origin)}


def filled(hint: Any, parameters: tuple[Any, ...]) -> Any:
    """An annotation with the type that its parameter stands for."""
    if isinstance(hint, TypeVar):
        return parameters[0]
    return hint[parameters] if getattr(hint, "__parameters__", ()) else hint


def split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type and its marks."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ()
    inner, *marks = typing.get_args(hint)
    return inner, tuple(marks)


def marked(kind: Any, marks: tuple[Any, ...]) -> Any:
    """The type with these marks."""
    return Annotated[(kind, *marks)] if marks else kind


def is_section(kind: Any) -> bool:
    """Whether a type, perhaps with a parameter, holds options of its own."""
    return dataclasses.is_dataclass(typing.get_origin(kind) or kind)
