"""NUS-WIDE (Chua et al., CIVR 2009): 269,648 photographs from Flickr with 81 concepts, from its files as released.

`Groundtruth/TrainTestLabels/Labels_{concept}_{Train,Test}.txt` has one line, 1 or 0, for each line of
`ImageList/{Train,Test}Imagelist.txt`; every label is known. Photographs without a concept count.
"""

from __future__ import annotations

import dataclasses
import os.path
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from cftjax import types
from cftjax.data.reading import files
from cftjax.data.reading.problems import Problems, list_names, nearest, read_lines, require
from cftjax.text import shown

SETS = {"train": "Train", "test": "Test"}
# Copies of the release spell its folders in several ways, such as GroundTruth and Groundtruth.
LABELS = ("Groundtruth", "TrainTestLabels")
LISTS = ("ImageList",)


@dataclasses.dataclass(frozen=True)
class NusWideData:
    """NUS-WIDE as released: Groundtruth/, ImageList/ and the photographs; Train trains, Test tests."""

    root: str = "NUS-WIDE"
    """The folder with Groundtruth/ and ImageList/."""
    images: str | None = None
    """The folder of the photographs; None is Flickr/ in the root."""
    flat: bool = False
    """Whether all photographs lie side by side, without the folders (actor\\0001_2124494179.jpg) of the lists."""
    check_files: bool = True
    """Whether every image must exist before anything starts; images are not opened for it."""

    def load(self) -> types.Dataset:
        """Read lists and labels; images are opened later.

        Raises:
            DataError: everything that is wrong with lists and labels, or the images that are missing.
        """
        root = require(Path(self.root).expanduser())
        labels_folder, lists_folder = (find(root, parts) for parts in (LABELS, LISTS))
        problems = Problems(root)
        categories = find_concepts(root, labels_folder, problems)
        places, paths, labels = [], {}, {}
        for split, name in SETS.items():
            file = find(lists_folder, (f"{name}Imagelist.txt",))
            paths[split] = [line.strip().replace("\\", "/") for line in read_lines(file)]
            if self.flat:
                paths[split] = [path.rpartition("/")[2] for path in paths[split]]
            if not paths[split]:
                problems.add(f"{file.name} lists no image")
            places += [f"{file.name}, row {row + 1}" for row in range(len(paths[split]))]
            positive = np.zeros((len(paths[split]), len(categories)), bool)
            for column, concept in enumerate(categories):
                source = labels_folder / f"Labels_{concept}_{name}.txt"
                if source.exists():
                    positive[:, column] = read_labels(source, len(positive), problems)
            labels[split] = types.Labels(positive, np.ones_like(positive), np.zeros_like(positive))
        problems.raise_if_any()
        images = root / "Flickr" if self.images is None else Path(self.images).expanduser()
        if self.check_files:
            images = find(images.parent, (images.name,))
        everything = [path for split in SETS for path in paths[split]]
        checked = iter(
            files.relative_names(everything, images, problems, place=places.__getitem__, check_files=self.check_files)
        )
        problems.raise_if_any()
        splits = {}
        for split in SETS:
            own = [next(checked) for _ in paths[split]]
            splits[split] = types.Records(files.ImageFiles(images, own), labels[split], own)
        return types.Dataset(categories, splits, files.fingerprint(categories, splits))


def find(folder: Path, parts: tuple[str, ...]) -> Path:
    """A path below a folder, whichever way its parts are capitalised.

    Raises:
        DataError: there is none.
    """
    for part in parts:
        present = list_names(folder)
        alike = [name for name in present if name.lower() == part.lower()]
        folder = require(folder / (alike[0] if part not in present and len(alike) == 1 else part))
    return folder


def find_concepts(root: Path, folder: Path, problems: Problems) -> tuple[str, ...]:
    """The concepts, sorted; one that lacks the label file of a set is a problem.

    Args:
        root: where Concepts81.txt, or ConceptsList/Concepts81.txt, may name the concepts.
        folder: of the label files, which name them as well.
        problems: where problems are noted.
    """
    present = set(list_names(folder))
    endings = [f"_{name}.txt" for name in SETS.values()]
    labelled = [file.removeprefix("Labels_") for file in present if file.startswith("Labels_")]
    concepts = {file.removesuffix(end) for file in labelled for end in endings if file.endswith(end)}
    for source in (root / "Concepts81.txt", root / "ConceptsList" / "Concepts81.txt"):
        if os.path.exists(source):
            concepts |= {line.strip() for line in read_lines(source)}
    concepts.discard("")
    if not concepts:
        instead = nearest("Labels_airport_Train.txt", folder)
        problems.add(f"{folder} has no file like Labels_airport_Train.txt; it {instead}")
    for concept in sorted(concepts):
        for end in endings:
            if f"Labels_{concept}{end}" not in present:
                problems.add(f"{shown(f'Labels_{concept}{end}')} is missing from {folder}", mend="unpack it again")
    return tuple(sorted(concepts))


def read_labels(path: Path, num_images: int, problems: Problems) -> Bool[np.ndarray, " n"]:
    """One concept's labels of a set; lines that are not 1 or 0, too many or too few, are problems."""
    lines = [line.strip() for line in read_lines(path)]
    if len(lines) != num_images:
        what = f"{path.name} has {len(lines)} labels, the image list {num_images} images"
        problems.add(what, mend="unpack both again")
        return np.zeros(num_images, bool)
    # Sound files, 22 million lines in all, are judged at C speed.
    if not set(lines) <= {"1", "0"}:
        for number, line in enumerate(lines, 1):
            if line not in ("1", "0"):
                problems.add(f"{shown(line)} is no label", row=f"{path.name}, row {number}", mend="write 1 or 0")
    return np.fromiter(map("1".__eq__, lines), bool, num_images)
