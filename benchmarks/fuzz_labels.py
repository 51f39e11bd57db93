"""Tables of labels in all spellings and meanings: each is read as its writer meant it, or refused; none wrongly.

    python benchmarks/fuzz_labels.py                  # 500 tables
    python benchmarks/fuzz_labels.py --tables 5000 --seed 1

A writer draws what is true of every image and category (present, absent, hedged, not said), a convention that says how
to write it, and a way to spell table, columns, cells and paths. The oracle is what was drawn; it knows nothing of the
code that reads. A table is written as CSV or Parquet, as a file of labels beside predictions, or as a bundle of
embeddings. Where the reader asks what -1 means, it is answered as the writer meant it, and asked again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import random
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from cftjax.data import meaning
from cftjax.data.table import TableData
from cftjax.embeddings import bundles
from cftjax.evaluation import models

T = TypeVar("T")

PRESENT, ABSENT, HEDGED, SILENT = "present", "absent", "hedged", "silent"
# How programs write what is true; None is a blank. The answer is what a person would say of it when asked.
CONVENTIONS: dict[str, tuple[dict[str, int | None], str]] = {
    "complete": ({PRESENT: 1, ABSENT: 0}, "uncertain"),
    "partial, blank": ({PRESENT: 1, ABSENT: 0, SILENT: None}, "uncertain"),
    "CheXpert": ({PRESENT: 1, ABSENT: 0, HEDGED: -1, SILENT: None}, "uncertain"),
    "hedged, nothing silent": ({PRESENT: 1, ABSENT: 0, HEDGED: -1}, "uncertain"),
    "attributes": ({PRESENT: 1, ABSENT: -1}, "negative"),
    "attributes, blank": ({PRESENT: 1, ABSENT: -1, SILENT: None}, "negative"),
    "three values": ({PRESENT: 1, ABSENT: -1, SILENT: 0}, "negative-and-zero-unknown"),
    "three values, 0 hedged": ({PRESENT: 1, ABSENT: -1, HEDGED: 0}, "negative-and-zero-uncertain"),
    "-1 is silent": ({PRESENT: 1, ABSENT: 0, SILENT: -1}, "unknown"),
    "positives alone": ({PRESENT: 1, SILENT: -1}, "unknown"),
}
NUMBERS = {
    1: ["1", "1.0", "1.00", " 1", "1 ", "+1", "1e0"],
    0: ["0", "0.0", " 0.0 ", "-0", "00"],
    -1: ["-1", "-1.0", " -1", "-1.00 "],
    None: ["", " ", "nan", "NaN"],
}
# Cells that mean nothing that may be guessed.
ODD_CELLS = ["2", "0.5", "yes", "0_1", "True", "-", "?", "NA", "1;0"]
NAMES = [
    "dog",
    "cat",
    "Pleural Effusion",
    "sea, rough",
    "Zoë",
    "Male",
    "sex",
    "group",
    "split",
    "fold",
    "path",
    "age",
    "id",
]


@dataclasses.dataclass(frozen=True)
class Written:
    """What a writer has written.

    Attributes:
        truth: category -> what is true of each image.
        conventions: category -> how it was written.
        cells: category -> text of every cell.
        oddities: what was done besides that a reader may refuse.
    """

    truth: dict[str, list[str]]
    conventions: dict[str, str]
    cells: dict[str, list[str]]
    oddities: list[str]


def write_labels(rng: random.Random) -> Written:
    """Draw categories, what is true, and how each is written: mostly alike, at times one column of another kind."""
    names = rng.sample(NAMES, rng.randint(1, 4)) if rng.random() < 0.4 else ["dog", "cat", "bird"][: rng.randint(1, 3)]
    n, general = rng.choice((1, 3, 8, 20, 40)), rng.choice(list(CONVENTIONS))
    truth, conventions, cells, oddities = {}, {}, {}, []
    plain = rng.random() < 0.5
    for name in names:
        convention = general if rng.random() < 0.8 else rng.choice(list(CONVENTIONS))
        values, _ = CONVENTIONS[convention]
        truth[name] = [rng.choice(list(values)) for _ in range(n)]
        if convention.startswith("three values") and ABSENT not in truth[name]:
            # Without a single -1 it is a column of 1 and 0 to anybody, its writer included.
            truth[name][rng.randrange(n)] = ABSENT
        conventions[name] = convention
        numbers = [values[one] for one in truth[name]]
        cells[name] = [NUMBERS[number][0] if plain else rng.choice(NUMBERS[number]) for number in numbers]
    if rng.random() < 0.15:
        name = rng.choice(names)
        cells[name][rng.randrange(n)] = rng.choice(ODD_CELLS)
        oddities.append("a cell that is no label")
    return Written(truth, conventions, cells, oddities)


def answer(written: Written) -> str:
    """What the writer would say of -1 and 0, column by column."""
    return ",".join(f"{name}={CONVENTIONS[kind][1]}" for name, kind in written.conventions.items())


def spelled(rng: random.Random, path: str) -> str:
    """A path as other programs spell it."""
    ways = [
        lambda p: p.replace("/", "\\"),
        lambda p: "C:\\data\\" + p.replace("/", "\\"),
        lambda p: p.upper(),
        lambda p: p.replace(" ", "%20"),
        lambda p: p + " ",
        lambda p: p.replace(".png", ".jpg"),
        lambda p: unicodedata.normalize("NFD", p),
        lambda p: "/elsewhere/" + p,
        lambda p: "./" + p,
    ]
    return rng.choice(ways)(path)


def write_table(rng: random.Random, written: Written, folder: Path) -> tuple[Path, list[str], dict[str, str]]:
    """Images and a table of them; its path, the paths as written, and options that say which column is what."""
    n = len(next(iter(written.cells.values())))
    files = [f"img/Zoë {i}.png" for i in range(n)]
    for i, name in enumerate(files):
        (folder / name).parent.mkdir(exist_ok=True)
        # The pixel tells which image was opened.
        Image.fromarray(np.full((1, 1, 3), i, np.uint8)).save(folder / name)
    paths = [spelled(rng, name) for name in files] if rng.random() < 0.3 else list(files)
    if "path" in written.cells:
        key, options = "file", {"path_column": "file"}
    else:
        key, options = "path", {}
    columns = {key: paths, **written.cells}
    header = list(columns)
    if rng.random() < 0.2 and "sex" not in header:
        columns["age"] = [str(rng.randint(20, 90)) for _ in range(n)]
        header = list(columns)
    if rng.random() < 0.5 and key == "path":
        rng.shuffle(header)
    named = {name: name for name in header}
    if rng.random() < 0.2:
        # A saved index, or a column that lost its name.
        lost = "" if rng.random() < 0.5 else rng.choice([name for name in header if name != key])
        if lost:
            named[lost] = ""
        else:
            columns["index"] = [str(i) for i in range(n)]
            header, named = ["index", *header], named | {"index": ""}
    for name in ("group", "split"):
        if name in written.cells and rng.random() < 0.5:
            options[f"{name}_column"] = ""
    if rng.random() < 0.3:
        file = folder / "labels.parquet"
        pyarrow.parquet.write_table(
            pa.table([columns[name] for name in header], names=[named[h] for h in header]), file
        )
        return file, paths, options
    lines = [",".join(quoted(named[name]) for name in header)]
    lines += [",".join(quoted(columns[name][i]) for name in header) for i in range(n)]
    before = rng.choice(["", "", "", "\n", "# made by hand\n", "\ufeff"])
    file = folder / "labels.csv"
    file.write_bytes((before + rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n"])).encode())
    return file, paths, options


def quoted(cell: str) -> str:
    """A cell of a CSV."""
    return '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in ',"\n') else cell


def read_with(read: Callable[[str], T], written: Written) -> tuple[T, str] | None:
    """What a reader makes of an input, and what it was told of -1; None where it refuses.

    Args:
        read: reads, given what is said of -1.
        written: by a writer who answers where the reader asks.
    """
    for said in ("ask", answer(written)):
        try:
            return read(said), said
        except ValueError as error:
            if "minus-one" not in str(error):
                return None
    return None


# Whether a label is known, positive where it is, and uncertain.
RIGHT = {
    PRESENT: (True, True, False),
    ABSENT: (True, False, False),
    HEDGED: (False, None, True),
    SILENT: (False, None, False),
}


def matches(known: np.ndarray, positive: np.ndarray, uncertain: np.ndarray | None, truth: list[str]) -> bool:
    """Whether a column was read as it was meant."""
    for row, one in enumerate(truth):
        is_known, is_positive, is_uncertain = RIGHT[one]
        if bool(known[row]) != is_known or (is_known and bool(positive[row]) != is_positive):
            return False
        if uncertain is not None and bool(uncertain[row]) != is_uncertain:
            return False
    return True


def try_table(rng: random.Random, written: Written, folder: Path) -> str:
    """Read a table of one's own: `read`, `refused`, or what is wrong."""
    file, _, options = write_table(rng, written, folder)
    reader = TableData(str(file), **options)  # pyright: ignore[reportArgumentType]
    outcome = read_with(lambda said: dataclasses.replace(reader, minus_one=said).load(), written)
    if outcome is None:
        return "refused"
    dataset, said = outcome
    if written.oddities:
        return f"wrong: read in spite of {written.oddities[0]}"
    lost = [name for name in written.truth if name not in dataset.categories]
    if lost:
        return f"wrong: {lost[0]} vanished"
    train = dataset.splits["train"]
    for place, name in enumerate(dataset.categories):
        if name not in written.truth:
            return f"wrong: {name} became a category"
        labels = train.labels
        if not matches(
            labels.known[:, place], labels.labels[:, place], labels.uncertain[:, place], written.truth[name]
        ):
            return f"wrong: {name} ({written.conventions[name]}) with {said}"
    for row in range(len(train)):
        if int(train.image(row)[0, 0, 0]) != row:
            return "wrong: another image was opened"
    return "read" if said == "ask" else "read when answered"


def try_truth(rng: random.Random, written: Written, folder: Path) -> str:
    """Read a file of labels beside predictions."""
    n = len(next(iter(written.cells.values())))
    key = "Study"
    ids = [f"s{i}" if rng.random() < 0.5 else f"{i:04d}" for i in range(n)]
    lines = [",".join([key, *map(quoted, written.cells)])]
    lines += [",".join([ids[i], *(quoted(cells[i]) for cells in written.cells.values())]) for i in range(n)]
    (folder / "truth.csv").write_text("\n".join(lines) + "\n")
    shortened = rng.random() < 0.2
    theirs = [str(int(name)) if name.isdigit() and shortened else name for name in ids]
    lines = [",".join([key, *map(quoted, written.cells)])]
    lines += [",".join([theirs[i], *(["0.5"] * len(written.cells))]) for i in rng.sample(range(n), n)]
    (folder / "model.csv").write_text("\n".join(lines) + "\n")
    model, labels = folder / "model.csv", folder / "truth.csv"
    outcome = read_with(
        lambda said: models.of_files(
            [model], ["model"], labels, models.Reading(minus_one=meaning.parse(said, "--minus-one"))
        ),
        written,
    )
    if outcome is None:
        return "refused"
    (truth, _), said = outcome
    known, positive = np.asarray(truth.known), np.asarray(truth.labels)
    if written.oddities:
        return f"wrong: read in spite of {written.oddities[0]}"
    for place, name in enumerate(truth.categories):
        if not matches(known[:, place], positive[:, place], None, written.truth[name]):
            return f"wrong: {name} ({written.conventions[name]}) with {said}"
    return "read" if said == "ask" else "read when answered"


def try_bundle(rng: random.Random, written: Written, folder: Path) -> str:
    """Read labels as arrays beside embeddings."""
    names = list(written.truth)
    values = [[CONVENTIONS[written.conventions[name]][0][one] for one in written.truth[name]] for name in names]
    labels = np.array([[np.nan if cell is None else cell for cell in row] for row in values], np.float32).T
    wrong = bool(written.oddities)
    if wrong:
        labels[rng.randrange(len(labels)), 0] = rng.choice((2, 0.5, 3))
    arrays = {"train_z": np.ones((len(labels), 2), np.float32), "train_labels": labels, "categories": np.array(names)}
    arrays |= {"kernel": np.ones((len(names), 2), np.float32), "bias": np.zeros(len(names), np.float32)}
    np.savez(folder / "mine.npz", **arrays)  # pyright: ignore[reportArgumentType]
    outcome = read_with(lambda said: bundles.read(folder / "mine.npz", minus_one=said), written)
    if outcome is None:
        return "refused"
    train, said = outcome[0].embeddings["train"], outcome[1]
    if wrong:
        return "wrong: a number that is no label was read"
    for place, name in enumerate(names):
        known, positive, hedged = (np.asarray(part)[:, place] for part in (train.known, train.labels, train.uncertain))
        if not matches(known, positive, hedged, written.truth[name]):
            return f"wrong: {name} ({written.conventions[name]}) with {said}"
    return "read" if said == "ask" else "read when answered"


SOURCES = {"table": try_table, "truth": try_truth, "bundle": try_bundle}


def main() -> None:
    """Try all, and count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in SOURCES}
    wrong = []
    for number in range(given.tables):
        rng = random.Random(f"{given.seed} {number}")
        # Tables are what people have most.
        source = rng.choice(("table", "table", "truth", "bundle"))
        with tempfile.TemporaryDirectory() as folder:
            outcome = SOURCES[source](rng, write_labels(rng), Path(folder))
        counts[source][outcome.partition(":")[0]] += 1
        if outcome.startswith("wrong"):
            wrong.append(f"{source} {number}: {outcome}")
    kinds = ("read", "read when answered", "refused", "wrong")
    print(f"{'source':<10}{'inputs':>8}" + "".join(f"{kind:>20}" for kind in kinds))
    for source, count in counts.items():
        print(f"{source:<10}{count.total():>8}" + "".join(f"{count[kind]:>20}" for kind in kinds))
    print(*wrong, sep="\n")
    print(f"{given.tables} inputs, {len(wrong)} read wrongly")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
