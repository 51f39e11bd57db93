"""Is a run what was written? `cftjax verify RUN…` reads every file and compares it with its digest.

Every command compares what it reads; this one reads all of it, and says what to delete where something is damaged.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from cftjax import cli, runs
from cftjax.runs import Run
from cftjax.runtime import digests, storage


@dataclasses.dataclass(frozen=True)
class Verifying:
    """Compare all files of runs with the digests that were recorded when they were written.

    Exits with 0 where nothing is damaged, with 1 where something is.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs: the --workdir of a training or fine-tuning each."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a look at a run, or a part of it, has shown.

    Attributes:
        damages: one line each, with the mend.
        compared: how many files were compared and are what was written.
        unchecked: stages without digests: unfinished, or made before there were any.
    """

    damages: tuple[str, ...] = ()
    compared: int = 0
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: Verdict) -> Verdict:
        """Both together."""
        return Verdict(self.damages + other.damages, self.compared + other.compared, self.unchecked + other.unchecked)


def verify(folder: Path) -> Verdict:
    """Look at every file of a run.

    Raises:
        FileNotFoundError: where there is none.
    """
    try:
        Run(folder)
        verdict = Verdict(compared=1)
    except digests.Damaged as error:
        verdict = Verdict((str(error),))
    verdict += of_folder(folder)
    for record in sorted(folder.rglob(digests.STAGE)):
        verdict += of_stage(folder, record)
    return verdict


def of_stage(run: Path, record: Path) -> Verdict:
    """Look at one stage, by its stage.json."""
    folder = record.parent
    name = folder.relative_to(run).as_posix()
    try:
        stage = runs.stage_record(record)
    except ValueError as error:
        return Verdict((str(error),))
    if not stage["complete"]:
        pieces = [verdict for verdict in _pieces(folder, stage)]
        return sum(pieces, Verdict(unchecked=(f"{name} (unfinished)",)))
    if "digests" not in stage:
        return Verdict(unchecked=(f"{name} (made by an older version)",))
    own = folder / digests.RECORD
    if not own.is_file() or digests.of_file(own) != stage["digests"]:
        return Verdict((f"{own} is damaged (it is not what was written): {digests.mend(own)}",))
    return of_folder(folder) + Verdict(compared=1)


def of_folder(folder: Path) -> Verdict:
    """Compare what the record of a folder names; nothing where it has none."""
    compared, wrong = digests.compare(folder)
    damages = [
        f"{path} is {'damaged (it is not what was written)' if path.exists() else 'missing'}: {digests.mend(path)}"
        for path in wrong
    ]
    return Verdict(tuple(damages), compared)


def _pieces(folder: Path, stage: dict[str, Any]) -> Iterator[Verdict]:
    """What an unfinished stage would go on from."""
    for record in sorted(folder.rglob(digests.RECORD)):
        if record.parent != folder:
            yield of_folder(record.parent)
    for kept in sorted(folder.glob("categories*")):
        store = storage.FolderStore(kept, stage["key"])
        for name in store:
            try:
                store.get(name)
                yield Verdict(compared=1)
            except ValueError as error:
                yield Verdict((str(error),))


def main() -> None:
    """Look at all runs, and say what was seen."""
    options = tyro.cli(Verifying, prog="cftjax verify")
    if not options.runs:
        raise ValueError("nothing to verify: name one or more runs")
    verdicts = {folder: verify(folder) for folder in options.runs}
    for folder, verdict in verdicts.items():
        for damage in verdict.damages:
            print(damage)
        unchecked = f"; not checked: {', '.join(verdict.unchecked)}" if verdict.unchecked else ""
        print(f"{folder}: {verdict.compared:,} files are what was written, {len(verdict.damages):,} are not{unchecked}")
    if any(verdict.damages for verdict in verdicts.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
