"""What -1 and 0 mean in a column of labels: programs disagree, so that a column that does not show it is asked about.

A column of 1 and 0 needs no answer. Nor does one of 1, 0, -1 and blank: blank is what nobody said, so that 0 is
negative and -1 uncertain, as CheXpert has it. In a column of 1 and -1, -1 may be negative; in one of 1, 0 and -1
without blanks one of the three may be what nobody said.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from cftjax.data.reading.problems import Problems
from cftjax.text import closest, few, shown

NEGATIVE, UNCERTAIN, UNKNOWN = 0.0, -1.0, float("nan")
# What -1 is, and what 0 is where it stands in the same column; None where the answer leaves that open.
ANSWERS: dict[str, tuple[float, float | None]] = {
    "negative": (NEGATIVE, None),
    "uncertain": (UNCERTAIN, NEGATIVE),
    "unknown": (UNKNOWN, NEGATIVE),
    "negative-and-zero-unknown": (NEGATIVE, UNKNOWN),
    "negative-and-zero-uncertain": (NEGATIVE, UNCERTAIN),
    "negative-and-zero-negative": (NEGATIVE, NEGATIVE),
}
# What earlier versions called not having answered.
UNANSWERED = ("ask", "refuse")
# Blanks from which on a column says by them what nobody said; fewer may be slips in a column of another kind.
BLANK_SHARE = 0.05
# Columns named one by one in an option that a message offers.
MOST_OFFERED = 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """What somebody said of -1.

    Attributes:
        option: that says it, as messages name it.
        everywhere: of every column; None where nothing is said of all.
        by_column: of some columns, before `everywhere`.
    """

    option: str = "--data.minus-one"
    everywhere: str | None = None
    by_column: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, column: str) -> str | None:
        """The answer for a column."""
        return self.by_column.get(column, self.everywhere)


def parse(words: str, option: str = "--data.minus-one") -> Answer:
    """An answer from words such as `negative` or `uncertain,Bald=negative,Young=unknown`.

    Raises:
        ValueError: the words are no answer; with the nearest that is.
    """
    everywhere, by_column, rest = None, {}, words.strip()
    known = "|".join(sorted((*ANSWERS, *UNANSWERED), key=len, reverse=True))
    # Names may hold commas: a part ends where an answer does.
    part = re.compile(rf"(?:(?P<all>{known})|(?P<column>.+?)=(?P<one>{known}))\s*(?:,\s*|$)", re.DOTALL)
    while rest:
        match = part.match(rest)
        if match is None:
            said = rest.partition(",")[0].rpartition("=")[2]
            raise ValueError(
                f"{option} {shown(words)}: {shown(said)} is no answer; say {', '.join(ANSWERS)}, for one column as in "
                f"NAME=negative; the list {closest(said, list(ANSWERS))}"
            )
        rest = rest[match.end() :]
        if match["column"] is None:
            everywhere = match["all"]
        else:
            by_column[match["column"].strip()] = match["one"]
    said_of = {name: said for name, said in by_column.items() if said not in UNANSWERED}
    return Answer(option, None if everywhere in UNANSWERED else everywhere, said_of)


class Holding(NamedTuple):
    """Which values a column of labels holds.

    Attributes:
        zero: whether there is a 0.
        minus_one: whether there is a -1.
        blank: whether so much is blank that blank is what nobody said.
    """

    zero: bool
    minus_one: bool
    blank: bool


def holding(values: Float[np.ndarray, " n"]) -> Holding:
    """What one column of 1, 0, -1 and NaN holds."""
    blank = np.count_nonzero(np.isnan(values)) >= BLANK_SHARE * max(len(values), 1)
    return Holding(bool((values == 0).any()), bool((values == -1).any()), bool(blank))


class Question(NamedTuple):
    """Why a column needs an answer, and which it may be."""

    why: str
    answers: tuple[str, ...]


NO_ZERO = Question("-1 stands there and no 0", ("negative", "uncertain", "unknown"))
ALL_THREE = Question(
    "0 and -1 stand there and hardly a blank, so that one of them may be what nobody said",
    ("uncertain", "unknown", "negative-and-zero-unknown"),
)
# Where blanks stand beside them too, but nothing is taken for granted.
BOTH = Question("0 and -1 stand there", ALL_THREE.answers)
ZERO_TOO = Question(
    "0 stands there as well as -1, which is said to be negative",
    ("negative-and-zero-unknown", "negative-and-zero-negative"),
)


def question_of(held: Holding, said: str | None, always_ask: bool) -> Question | None:
    """What must be asked about a column; None where nothing is open."""
    if not held.minus_one:
        return None
    if said is not None:
        return ZERO_TOO if held.zero and ANSWERS[said][1] is None else None
    if not held.zero:
        return NO_ZERO
    if not held.blank:
        return ALL_THREE
    return BOTH if always_ask else None


def read(
    values: Float32[np.ndarray, "n c"],
    columns: Sequence[str],
    answer: Answer,
    problems: Problems,
    *,
    always_ask: bool = False,
) -> tuple[Float32[np.ndarray, "n c"], list[str]]:
    """From labels as a file has them to labels as `labels.from_values` takes them: -1 uncertain, NaN unknown.

    Args:
        values: 1, 0, -1 and NaN.
        columns: names of the columns.
        answer: what somebody said of -1.
        problems: where the columns are noted that need an answer.
        always_ask: whether -1 is asked about even where 0 and blanks stand beside it.

    Returns:
        The labels, and what a person should be told of how they were read.
    """
    labels, held = values.copy(), [holding(values[:, place]) for place in range(len(columns))]
    meanings, told = settle(held, columns, answer, problems, always_ask=always_ask)
    for place, (minus_one, zero) in enumerate(meanings):
        labels[values[:, place] == -1, place] = minus_one
        labels[values[:, place] == 0, place] = zero
    return labels, told


class Meaning(NamedTuple):
    """What -1 and 0 stand for in a column."""

    minus_one: float
    zero: float


def settle(
    held: Sequence[Holding], columns: Sequence[str], answer: Answer, problems: Problems, *, always_ask: bool = False
) -> tuple[list[Meaning], list[str]]:
    """What -1 and 0 mean in every column, and what a person should be told of it; see `read`."""
    for name in answer.by_column:
        if name not in columns:
            problems.add(
                f"{answer.option} speaks of {shown(name)}, which is no category; the table {closest(name, columns)}"
            )
    asked: dict[Question, list[str]] = {}
    told: dict[str, list[str]] = {}
    meanings, relevant = [], 0
    for own, column in zip(held, columns, strict=True):
        said = answer.of(column)
        relevant += own.zero or own.minus_one
        question = question_of(own, said, always_ask)
        if question is not None:
            asked.setdefault(question, []).append(column)
        minus_one, zero = ANSWERS[said or "uncertain"]
        meanings.append(Meaning(minus_one, NEGATIVE if zero is None else zero))
        if question is None and (sentence := sentence_of(own, *meanings[-1])):
            told.setdefault(sentence, []).append(column)
    for question, names in asked.items():
        problems.add(f"{question.why}", column=few(names), mend=offer(question, names, relevant, answer.option))
    return meanings, [f"{sentence} in {few(names)}" for sentence, names in told.items()]


def sentence_of(held: Holding, minus_one: float, zero: float) -> str:
    """How the values of a column were read; empty where only 1, 0 and blank stand there with their usual meaning."""
    parts = [f"-1 is {word_of(minus_one)}"] if held.minus_one else []
    if held.zero and (held.minus_one or zero != NEGATIVE):
        parts.append(f"0 is {word_of(zero)}")
    return " and ".join(parts)


def word_of(value: float) -> str:
    """What a value of `labels.from_values` means."""
    return "unknown" if np.isnan(value) else {NEGATIVE: "negative", UNCERTAIN: "uncertain"}[value]


def offer(question: Question, names: Sequence[str], relevant: int, option: str) -> str:
    """The option that answers; for some columns among others it names them, so that the others stay as they are."""
    *first, last = question.answers
    answers = f"{', '.join(first)} or {last}"
    if len(names) == relevant:
        return f"say what they mean: {option} {answers}"
    if len(names) <= MOST_OFFERED:
        every = shown(",".join(f"{name}={question.answers[0]}" for name in names))
        return f"say what they mean there: {option} {every}, or {answers}"
    one = shown(f"{names[0]}={question.answers[0]}")
    return f"say what they mean: {option} {answers} for all columns, or for one as in {one}"
