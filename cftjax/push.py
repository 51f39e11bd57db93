"""A run on the Hugging Face hub: `cftjax push RUN USER/NAME`, which `cftjax.load("hf:USER/NAME")` gets back."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from cftjax import cli
from cftjax.inference import hub, model, packed
from cftjax.inference.hub import Repository
from cftjax.report import card
from cftjax.runs import Run

# Images that the uploaded files must see as the run does.
NUM_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class Pushing:
    """Upload what predicting with a run needs to the Hugging Face hub: weights, heads, thresholds, categories, card.

    Nothing else of the run is uploaded: no images, names of images, labels or embeddings, and no settings of the data.
    The card counts images and labels, and names categories. The token is that of `hf auth login`, or HF_TOKEN.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --workdir of a training or fine-tuning."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """The repository, which is made if need be."""
    private: bool = False
    """Nobody else sees it. A repository that is there already must be private then."""
    revision: str | None = None
    """The branch, which is made if need be; None is the main one."""
    message: str = "Upload by cftjax push"
    """Of the commit."""
    dry_run: bool = False
    """Say what would be uploaded, and upload nothing."""


def main() -> None:
    """Pack, look at what was packed, say what is in it, and upload it in one commit."""
    options = tyro.cli(Pushing, prog="cftjax push")
    repository = hub.named(options.repository)
    if options.revision and repository.revision:
        raise ValueError(f"{options.repository} names a revision already: leave out --revision")
    repository = Repository(repository.name, options.revision or repository.revision)
    run = Run(options.run)
    if not options.dry_run:
        hub.check_token()
    with tempfile.TemporaryDirectory(prefix="cftjax-push-") as made:
        folder = Path(made)
        files = packed.write(run, folder, card.text(run, str(repository)))
        check(run, folder)
        for file in files:
            print(f"{file.stat().st_size:>15,} bytes  {file.name}")
        if options.dry_run:
            print(f"Nothing was uploaded to {repository}: leave out --dry-run.")
            return
        address = hub.upload(folder, repository, private=options.private, message=options.message)
    print(f"Uploaded: {address}")
    if run.config["preprocessing"] is not None:
        print(f"Use it: cftjax predict {repository} IMAGES -o predictions.csv")


def check(run: Run, folder: Path) -> None:
    """See that the files say of some images what the run says.

    Raises:
        ValueError: where they do not.
    """
    packed.check(folder, str(folder))
    if run.config["preprocessing"] is None:
        return
    size = run.config["preprocessing"]["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, size, size, 3), np.uint8)
    if not np.array_equal(packed.load(folder).logits(images), model.load(run.folder).logits(images)):
        raise ValueError(f"what was packed of {run.folder} does not say what the run says: nothing was uploaded")


if __name__ == "__main__":
    cli.run(main)
