"""A run as Weights & Biases keeps it. WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and the others work as W&B says."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = "cftjax"


class WandbRun:
    """A run of W&B; its files lie in the folder of ours, also those that `wandb sync` sends later."""

    title = "Weights & Biases"

    def __init__(self, folder: Path, name: str, past: str | None, position: int) -> None:
        """Begin a run, or go on with one.

        Args:
            folder: for its files.
            name: as people see it.
            past: id of the run to go on with.
            position: how many lines it has.
        """
        import wandb  # pyright: ignore[reportMissingImports]  (an extra)

        self.wandb: Any = wandb
        self.id = past or uuid.uuid4().hex[:8]
        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.id,
            name=os.environ.get("WANDB_NAME") or name,
            dir=str(folder),
            # Offline there is nobody to ask; `wandb sync` joins what has the same id.
            resume=None if offline else "allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        # Without it, lines that were sent before and are on the server already would be counted from 0 again.
        self.position = max(position, self.run.step)
        self.groups: set[str] = set()
        # The folder, whose last part is of no use to `wandb sync`.
        local = Path(self.run.dir).parent
        self.where = f"{local} (wandb sync {local})" if offline else str(self.run.url)

    def settings(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Keep all settings, and the versions of the libraries."""
        self.run.config.update({**settings, "versions": dict(versions)}, allow_val_change=True)

    def points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Add points to curves, each group of which is drawn over steps of its own."""
        for step, values in points:
            line: dict[str, float] = {}
            for group in {name.partition("/")[0] for name in values}:
                if group not in self.groups:
                    self.groups.add(group)
                    self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
                line[f"{group}/step"] = step
            self.run.log({**line, **values}, step=self.position)
            self.position += 1

    def results(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        """Keep the last scores in the summary, pictures to be looked at, and all files as an artifact."""
        self.run.summary.update(dict(scores))
        pictures = {f"report/{file.stem}": self.wandb.Image(str(file)) for file in files if file.suffix == ".png"}
        if pictures:
            self.run.log(pictures, step=self.position)
            self.position += 1
        artifact = self.wandb.Artifact(f"report-{self.id}", type="report")
        for file in files:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def close(self, ended: BaseException | None) -> None:
        """The run has ended, perhaps by an error."""
        self.run.finish(exit_code=0 if ended is None else 1)
