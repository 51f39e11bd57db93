"""A run: one folder that describes itself, with one sub-folder per stage, each complete or to be gone on with.

A stage is kept while its own settings and everything it was made from are unchanged; otherwise it and the later ones
are made anew, with a line saying so. Changed data or categories are refused. What a complete stage holds is recorded by
its digests, and damage to it is noticed when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from cftjax import decisions, text
from cftjax.config import Log
from cftjax.decisions import Decisions
from cftjax.embeddings import embed
from cftjax.runtime import devices, digests, hosts, storage, tracking
from cftjax.runtime.settings import differences, plain
from cftjax.runtime.tracking import Tracking
from cftjax.types import SPLITS, STAGES, Embeddings, Heads

# 2: labels beside embeddings are sparse.
FORMAT = 2
DECISIONS, OUT_OF_FOLD, REFIT = "decisions.json", "out_of_fold.npz", "refit.npz"
# Heads of validation labels that judge and that nothing learns from, which a sweep keeps beside a run's own.
JUDGED = "judged"
LIBRARIES = ("cftjax", "jax", "jaxlib", "flax", "optax", "evosax", "grain", "orbax-checkpoint", "numpy")


# What the records of a run hold, by type.
CONFIG = {"format": int, "settings": dict, "categories": list, "fingerprint": str, "versions": dict}
STAGE = {"key": str, "settings": list, "complete": bool, "seconds": int | float}
# Before records were sealed they held these and nothing else.
UNSEALED = (*CONFIG, "source", "preprocessing", *STAGE)
CONFIG_MEND = "restore it from a copy, or use another --workdir"


def _record(path: Path, fields: dict[str, Any], mend: str) -> dict[str, Any]:
    """A JSON file with at least these fields, or ValueError naming file and mend."""
    content = storage.read_json(path)
    given = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in fields.items() if not isinstance(given.get(name), kind)]
    if wrong:
        raise digests.Damaged(f"{path} is damaged ({', '.join(wrong)} missing or of another kind): {mend}")
    return given


def stage_record(path: Path) -> dict[str, Any]:
    """The stage.json of a stage, or ValueError naming file and mend."""
    record = _record(path, STAGE, f"delete the folder {path.parent}, and the command makes that stage anew")
    return digests.unsealed(path, record, UNSEALED)


@dataclasses.dataclass
class Stage:
    """One stage of a run.

    Attributes:
        folder: where it keeps its results, and before they are complete what it goes on from.
        complete: whether there is nothing left to do.
        key: a hash of its settings and of all that it was made from.
    """

    folder: Path
    complete: bool
    key: str


class Run:
    """An opened run folder. Reading one needs no lock; `writing` takes it."""

    def __init__(self, folder: Path):
        """Open a run that exists.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: for a format newer than this version reads.
        """
        self.folder = Path(folder)
        path = self.folder / "config.json"
        if not path.is_file() and self.folder.parts[:1] and self.folder.parts[0].startswith("hf:"):
            raise ValueError(
                f"{self.folder}: this needs a whole run, and embeddings, labels and settings are never pushed to the "
                "hub: give its folder, or use cftjax predict"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} is not a run (it has no config.json); give the --workdir of a training"
            )
        written = _record(path, {"format": int}, CONFIG_MEND)
        if written["format"] > FORMAT:
            raise ValueError(
                f"{path} has format {written['format']}, this version reads up to {FORMAT}: upgrade cftjax"
            )
        self.config = digests.unsealed(path, _record(path, CONFIG, CONFIG_MEND), UNSEALED)
        # Where curves go beside the run's own files, while `tracked`.
        self.tracking = Tracking()
        self.categories: tuple[str, ...] = text.names(self.config["categories"], f"the categories of {path}")

    def heads(self, stage: str) -> Heads:
        """The heads after `backbone`, `ga`, `polish` or `final`, kernel [c d] and bias [c]; `refit` or `judged`."""
        if stage == "refit":
            return storage.read_heads(self.folder / "heads" / "polish" / REFIT)
        if stage not in (*STAGES, JUDGED):
            raise ValueError(f"heads {stage!r} is not one of {', '.join(STAGES)}")
        return storage.read_heads(self.folder / "heads" / stage / "heads.npz")

    def decisions(self) -> Decisions:
        """Calibration and thresholds of the final heads, and what they were fitted on.

        Raises:
            FileNotFoundError: where the run has none yet.
        """
        path = self.folder / "decisions" / DECISIONS
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no thresholds and calibration yet: run the command that made it again, with the "
                "same options; it keeps everything else"
            )
        return decisions.read(path)

    def out_of_fold(self) -> dict[str, Float[np.ndarray, "v c"]] | None:
        """Stage -> logits of the images that judged, each by heads that have not learned from it.

        None where no heads have learned from any of them, so that the heads' own logits are as good.
        """
        path = self.folder / "heads" / "final" / OUT_OF_FOLD
        return storage.read_arrays(path) if path.is_file() else None

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that the run has embedded, in the order train, validation, test."""
        return tuple(split for split in SPLITS if (self.folder / "embeddings" / split).is_dir())

    def embeddings(self, split: str) -> Embeddings:
        """A split's embeddings, as memory maps."""
        folder = self.folder / "embeddings" / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{self.folder} has no split {split!r}; it has {', '.join(self.splits) or 'none yet'}"
            )
        return embed.load(folder)

    def names(self, split: str) -> list[str] | None:
        """What each row of a split's embeddings is called, such as its path; None in runs that do not say."""
        return embed.load_names(self.folder / "embeddings" / split)

    @contextlib.contextmanager
    def stage(self, name: str, settings: Any, made_from: Sequence[str] = ()) -> Iterator[Stage]:
        """Do a stage, unless it is complete with these settings; complete when the block ends without an error.

        Args:
            name: the folder under the run.
            settings: everything that its result depends on, in dataclasses, lists and dicts.
            made_from: keys of the stages that it reads.
        """
        folder, settings = self.folder / name, json.loads(json.dumps(plain(settings)))
        record = folder / "stage.json"
        key = hashlib.sha256(json.dumps([name, settings, list(made_from)], sort_keys=True).encode()).hexdigest()[:16]
        old = stage_record(record) if record.is_file() else None
        primary = devices.is_primary()
        # All hosts have read what is there before the first one changes it, and see the change before they go on.
        devices.barrier(f"{name} is read")
        if old is not None and old["key"] != key:
            changed = differences(old["settings"], settings) or ["an earlier stage"]
            if primary:
                print(f"{name}: made anew, since {'; '.join(changed)}", flush=True)
                shutil.rmtree(folder)
            old = None
        stage = Stage(folder, old is not None and old["complete"], key)
        if stage.complete:
            yield stage
            return
        spent = old["seconds"] if old else 0.0
        content = {"key": key, "settings": settings, "complete": False, "seconds": spent}
        if primary:
            storage.write_json(record, digests.sealed(content))
        devices.barrier(f"{name} begins")
        devices.give_back_freed_memory()
        began = time.monotonic()
        try:
            yield stage
        except BaseException:
            if primary:
                with contextlib.suppress(OSError):
                    stopped = content | {"seconds": spent + time.monotonic() - began}
                    storage.write_json(record, digests.sealed(stopped))
            raise
        devices.barrier(f"{name} ends")
        if primary:
            recorded = storage.record_digests(folder)
            done = {"complete": True, "seconds": spent + time.monotonic() - began, "digests": recorded}
            storage.write_json(record, digests.sealed(content | done))

    @contextlib.contextmanager
    def tracked(self, names: Sequence[Log]) -> Iterator[None]:
        """Until the block ends, curves, settings and results go where the option --log says, from the first host."""
        with contextlib.ExitStack() as stack:

            def begin() -> None:
                if names and devices.is_primary():
                    self.tracking = stack.enter_context(tracking.opened(names, self.folder, self.config))

            hosts.together(begin)
            yield
        self.tracking = Tracking()

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds spent on it, over all attempts that were not killed outright."""
        found = sorted(self.folder.rglob("stage.json"), key=lambda path: path.stat().st_mtime)
        return {path.parent.relative_to(self.folder).as_posix(): stage_record(path)["seconds"] for path in found}

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run for this process alone, or where there are several hosts, for them.

        Raises:
            ValueError: where another process writes into it.
        """
        with contextlib.ExitStack() as stack:

            def lock() -> None:
                if not devices.is_primary():
                    return
                file = stack.enter_context(open(self.folder / digests.LOCK, "w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise ValueError(
                        f"another process is writing into {self.folder}; wait for it, or use another --workdir"
                    ) from error

            hosts.together(lock)
            if not devices.is_primary():
                yield
                return
            storage.remove_leftovers(self.folder)
            # Of what lies beside the stages, which every command writes again.
            (self.folder / digests.RECORD).unlink(missing_ok=True)
            yield
            storage.record_digests(self.folder, deep=False)


def create(folder: Path, settings: Any, categories: Sequence[str], fingerprint: str, preprocessing: Any = None) -> Run:
    """Open the run of this experiment, or begin it.

    Args:
        folder: the --workdir.
        settings: the whole configuration; a changed one is recorded, its stages decide what must be made anew.
        categories: names, in order.
        fingerprint: of the data.
        preprocessing: what an image goes through, for those who use the model later.

    Raises:
        ValueError: where the folder holds a run on other data or categories, or something that is not a run.
    """
    hosts.agree({"categories": dict(enumerate(categories)), "data": fingerprint, "run": standing(folder)})
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file; give a folder")
    path = folder / "config.json"
    if path.is_file():
        old = Run(folder).config
        if old["categories"] != list(categories):
            raise ValueError(
                f"{folder} was begun with other categories ({', '.join(old['categories'][:5])}, …; now "
                f"{', '.join(categories[:5])}, …): use another --workdir"
            )
        if old["fingerprint"] != fingerprint:
            changed = differences(old["settings"].get("data"), plain(settings).get("data")) or [
                "labels or names in its files"
            ]
            raise ValueError(f"{folder} was begun with other data ({'; '.join(changed)}): use another --workdir")
    elif folder.is_dir() and any(item.name != ".lock" for item in folder.iterdir()):
        raise ValueError(f"--workdir {folder} is not empty and holds no run; give a new folder")
    content = {
        "format": FORMAT,
        "settings": plain(settings),
        "source": type(getattr(settings, "data", settings)).__name__,
        "categories": list(categories),
        "fingerprint": fingerprint,
        "preprocessing": plain(preprocessing),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
    }
    devices.barrier("run is read")
    if devices.is_primary():
        storage.write_json(path, digests.sealed(content))
    devices.barrier("run begins")

    def shared() -> Run:
        if not path.is_file() or storage.read_json(path)["fingerprint"] != fingerprint:
            raise ValueError(
                f"host {jax.process_index()} does not find in {path} what the first host has written: --workdir must "
                "lie on a file system that all hosts share"
            )
        return Run(folder)

    return hosts.together(shared)


def standing(folder: Path) -> dict[str, str]:
    """How far a run is, as hosts compare it: its stages, by what says whether they are complete."""
    return {path.parent.relative_to(folder).as_posix(): digests.of_file(path) for path in folder.rglob(digests.STAGE)}
