"""How long it takes to read a table and to see that all its images are there: CheXpert's folders, or one flat folder.

    python benchmarks/table_files.py --rows 200000                  # a folder per study, as CheXpert has them
    python benchmarks/table_files.py --rows 200000 --layout flat    # one folder

The images are empty files, made in a temporary folder, or in --folder, where a second run finds them again.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from cftjax.data.chexpert import FINDINGS, CheXpertData
from cftjax.data.table import TableData


def write(folder: Path, rows: int, layout: str) -> None:
    """The images and train.csv, valid.csv (CheXpert) or labels.csv (flat)."""
    rng = np.random.default_rng(0)
    # CheXpert has 64,540 patients with 2.9 studies each, and 1.2 images in a study.
    patients = np.sort(rng.integers(0, max(rows * 29 // 100, 1), rows))
    studies, views = rng.integers(1, 4, rows), np.zeros(rows, int)
    names = []
    for row, (patient, study) in enumerate(zip(patients.tolist(), studies.tolist(), strict=True)):
        views[row] = row
        inner = f"patient{patient:05d}/study{study}" if layout == "chexpert" else "img"
        names.append(f"train/{inner}/view{row}_frontal.jpg" if layout == "chexpert" else f"{inner}/{row:07d}.jpg")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cells = rng.choice(["1.0", "0.0", "-1.0", ""], (rows, len(FINDINGS)), p=[0.2, 0.1, 0.1, 0.6])
    lines = [",".join([name, *row]) for name, row in zip(names, cells.tolist(), strict=True)]
    if layout == "flat":
        (folder / "labels.csv").write_text("\n".join([",".join(["path", *FINDINGS]), *lines]) + "\n")
        return
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS])
    lines = [line.replace(",", ",Male,50,Frontal,AP,", 1) for line in lines]
    (folder / "train.csv").write_text("\n".join([header, *lines]) + "\n")
    valid = folder / "valid/patient99999/study1/view1_frontal.jpg"
    valid.parent.mkdir(parents=True, exist_ok=True)
    valid.touch()
    row = ",".join([valid.relative_to(folder).as_posix(), "Male,50,Frontal,AP", *["1.0"] * len(FINDINGS)])
    (folder / "valid.csv").write_text(f"{header}\n{row}\n")


def main() -> None:
    """Make the files where there are none, and read them with and without looking for the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--layout", choices=("chexpert", "flat"), default="chexpert")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        file = folder / ("labels.csv" if given.layout == "flat" else "train.csv")
        if not file.is_file():
            write(folder, given.rows, given.layout)
        for check_files in (True, False):
            source = (
                TableData(str(file), check_files=check_files)
                if given.layout == "flat"
                else CheXpertData(str(folder), check_files=check_files)
            )
            seconds = []
            for _ in range(given.repeats):
                began = time.process_time()
                dataset = source.load()
                seconds.append(time.process_time() - began)
            rows = sum(map(len, dataset.splits.values()))  # pyright: ignore[reportPossiblyUnboundVariable]
            what = "images looked for" if check_files else "images not looked for"
            print(f"{given.layout}, {rows:,} rows, {what}: {min(seconds):.2f} s of a core (best of {given.repeats})")


if __name__ == "__main__":
    main()
