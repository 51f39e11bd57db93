"""Checkpoints: pytrees of arrays and a little JSON, one folder per step, seen whole or not at all.

The only module that knows orbax. On several hosts every function here is called by all of them. A complete checkpoint
holds the digests of its files, which are compared before it is read.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

from orbax.checkpoint import v1 as ocp

from cftjax.runtime import devices, digests, storage

T = TypeVar("T")

# The file in which orbax describes a checkpoint.
DESCRIPTION = "_CHECKPOINT_METADATA"
# Suffix of a checkpoint that another of the same step replaces.
REPLACED = ".replaced"

# What a system says where nothing more can be written: no space, or no more of it for this user.
FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
    """Writes checkpoints while the computation goes on.

    Arrays are copied before `save` returns, so that their buffers may be donated afterwards. A checkpoint takes its
    name only when all of it is written; `wait` returns when that has happened.
    """

    def __init__(self) -> None:
        """Nothing is being written yet."""
        self._pending: list[tuple[futures.Future[None], Path, int]] = []
        # Beside the computation, as is orbax.
        self._digesting = futures.ThreadPoolExecutor(1, thread_name_prefix="digests")

    def save(self, folder: Path, step: int, tree: Any, metadata: dict[str, Any], keep: int = 1) -> None:
        """Begin to write `folder/step`; in one folder, the one before must have been waited for.

        Args:
            folder: of this kind of checkpoint.
            step: its name; an existing one of that name is replaced.
            tree: arrays.
            metadata: of numbers, strings, lists and dicts.
            keep: how many of the latest checkpoints stay when this one is complete.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.absolute() / str(step)
        # Out of the way in one step: deleting it under its name could leave half of it there.
        if devices.is_primary() and path.exists():
            path.rename(path.with_suffix(REPLACED))
        devices.barrier("checkpoint replaced")
        response = ocp.save_async(str(path), tree, custom_metadata=metadata)
        finished = self._digesting.submit(_finish, response, path, devices.is_primary())
        self._pending.append((finished, folder, keep))

    def wait(self) -> None:
        """Wait until everything is written, then delete what is not to be kept."""
        pending, self._pending = self._pending, []
        for finished, folder, _ in pending:
            try:
                finished.result()
            except Exception as error:
                # Writers in threads, and in another language, tell of a full disk in their own words.
                full = next((code for code in FULL if os.strerror(code) in str(error)), None)
                if full is None:
                    raise
                raise OSError(full, os.strerror(full), str(folder)) from error
        for _, folder, keep in pending:
            if devices.is_primary():
                for step in steps(folder)[:-keep]:
                    shutil.rmtree(folder / str(step))
                for pattern in (f"*{REPLACED}", "*.orbax-checkpoint-tmp*"):
                    for left_over in folder.glob(pattern):
                        shutil.rmtree(left_over, ignore_errors=True)


def _finish(response: Any, path: Path, primary: bool) -> None:
    """Wait until a checkpoint is complete, and record what is in it."""
    response.result()
    if primary:
        storage.record_digests(path)


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending; those half-written have other names."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(int(name) for name in names if (folder / name / DESCRIPTION).is_file())


def metadata(folder: Path, step: int, needed: Collection[str] = ()) -> dict[str, Any]:
    """The JSON of a checkpoint, with what is needed in it.

    Raises:
        ValueError: where it is damaged.
    """
    path = (folder / str(step)).absolute()
    digests.check_folder(path)
    try:
        content = ocp.metadata(str(path)).custom_metadata
    # Whatever a damaged file makes the reader raise: the folder is what the user needs to know.
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or not all(name in content for name in needed):
        raise _unreadable(path, "it does not say what it holds")
    return content


def restore(folder: Path, step: int, like: T) -> T:
    """The arrays of a checkpoint.

    Args:
        folder: of this kind of checkpoint.
        step: one of `steps(folder)`.
        like: the pytree as it was saved, of `jax.ShapeDtypeStruct` with the shardings wanted.

    Raises:
        ValueError: where it is damaged.
    """
    path = (folder / str(step)).absolute()
    digests.check_folder(path)
    try:
        return ocp.load(str(path), like)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, why: object) -> ValueError:
    return digests.Damaged(f"{path} is damaged, it cannot be read ({why}): {digests.mend(path / DESCRIPTION)}")
