"""Are our simulated partial labels the published ones? Compares masks with mlcpl, the library of the method's authors.

    pip install mlcpl==0.1.7      # into an environment with cftjax; brings torch and torchvision
    python benchmarks/masks_vs_mlcpl.py COCO/annotations/instances_train2014.json

Prints one line per way of hiding labels, with the share of labels that stay, and exits with 1 if any mask differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from mlcpl.datasets import core as mlcpl  # pyright: ignore[reportMissingImports]

from cftjax import types
from cftjax.data import hiding

PROPORTIONS = (0.1, 0.3, 0.5, 0.9)
KNOWN_PER_CATEGORY = (20, 100, 1000)

Record = tuple[int, str, list[int], list[int]]
Comparison = tuple[str, list[Record], types.Labels]


def read_coco(path: Path) -> tuple[list[Record], int]:
    """Records in file order, as mlcpl's loader makes them, and the number of categories, in id order."""
    annotations = json.loads(path.read_text())
    categories = sorted(category["id"] for category in annotations["categories"])
    number = {category: j for j, category in enumerate(categories)}
    positives: dict[int, set[int]] = {image["id"]: set() for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        positives[annotation["image_id"]].add(number[annotation["category_id"]])
    records = [(image["id"], image["file_name"], sorted(positives[image["id"]]), []) for image in annotations["images"]]
    return mlcpl.fill_nan_to_negative(records, len(categories)), len(categories)


def masks(records: list[Record], c: int) -> tuple[Bool[np.ndarray, "n c"], Bool[np.ndarray, "n c"]]:
    """Positive and negative labels of mlcpl's records."""
    positive, negative = np.zeros((2, len(records), c), bool)
    for i, (_, _, positives, negatives) in enumerate(records):
        positive[i, positives], negative[i, negatives] = True, True
    return positive, negative


def compare(records: list[Record], c: int) -> Iterator[Comparison]:
    """Every way of hiding labels, done by mlcpl and by us."""
    positive, negative = masks(records, c)
    complete = types.Labels(positive, positive | negative, np.zeros_like(positive))

    def theirs(hide: Callable[[mlcpl.MLCPLDataset], mlcpl.MLCPLDataset]) -> list[Record]:
        return hide(mlcpl.MLCPLDataset("", "", records, c)).records

    for p in PROPORTIONS:
        yield f"uniform {p}", mlcpl.drop_labels_uniform(records, p), hiding.hide_uniform(complete, p)
    yield (
        "single positive",
        theirs(lambda data: data.drop_labels_single_positive()),
        hiding.hide_all_but_single_positive(complete),
    )
    for k in KNOWN_PER_CATEGORY:
        yield (
            f"fixed {k} per category",
            theirs(lambda data, k=k: data.drop_labels_fix_per_category(k)),
            hiding.hide_fixed_per_category(complete, k),
        )


def main() -> int:
    """Print the comparison; 0 if all masks are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="instances_*.json of MS-COCO")
    records, c = read_coco(parser.parse_args().annotations)
    print(f"{len(records)} images, {c} categories, every category without an annotation negative")
    all_equal = True
    for name, theirs, ours in compare(records, c):
        positive, negative = masks(theirs, c)
        equal = np.array_equal(positive, ours.labels & ours.known) and np.array_equal(
            negative, ~ours.labels & ours.known
        )
        all_equal &= equal
        digest = hashlib.sha256(np.packbits([positive, negative]).tobytes()).hexdigest()[:16]
        share = (positive | negative).mean()
        print(f"{name:24} {share:7.2%} known  {'equal' if equal else 'DIFFERENT':10} {digest}")
    return 0 if all_equal else 1


if __name__ == "__main__":
    sys.exit(main())
