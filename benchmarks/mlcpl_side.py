"""What search_vs_mlcpl.py runs in mlcpl's own environment: CFT by mlcpl on the arrays of a file.

    python benchmarks/mlcpl_side.py arrays.npz results.npz --method ga --steps 1000

The file holds train_z, train_labels, validation_z, validation_labels (1, 0, NaN), kernel and bias. The results hold the
new kernel and bias, and per category the seconds spent, the steps done, and the best validation AP so far at each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from mlcpl import cft, losses, metrics  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Fine-tune every category by one method, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays")
    parser.add_argument("results")
    parser.add_argument("--method", choices=("ga", "bce", "asl"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--patience", type=int)
    parser.add_argument("--categories", type=int, help="only the first so many")
    given = parser.parse_args()
    torch.manual_seed(0)
    with np.load(given.arrays, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    kernel, bias = arrays["kernel"].clone(), arrays["bias"].clone()
    score = metrics.partial_multilabel_average_precision
    if given.method == "ga":
        optimizer = cft.GAForLinear(device="cpu", metric=score)
    else:
        loss = losses.PartialBCEWithLogitLoss() if given.method == "bce" else losses.PartialAsymmetricWithLogitLoss()
        optimizer = cft.BP(device="cpu", loss_fn=loss, optimizer_class=torch.optim.Adam, optimizer_kwargs={"lr": 1e-4})
    num = given.categories or len(kernel)
    seconds, steps = np.zeros(num), np.zeros(num, int)
    history = np.full((given.steps, num), np.nan, np.float32)
    for c in range(num):
        head = torch.nn.Linear(kernel.shape[1], 1)
        head.weight.data, head.bias.data = kernel[c : c + 1].clone(), bias[c : c + 1].clone()
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            found, records = cft.finetune_head(
                head,
                training_data=(arrays["train_z"], arrays["train_labels"][:, c : c + 1]),
                validation_data=(arrays["validation_z"], arrays["validation_labels"][:, c : c + 1]),
                optimizer=optimizer,
                epochs=given.steps,
                early_stopping=given.patience,
                validation_metric=score,
                device="cpu",
            )
        seconds[c], steps[c] = time.perf_counter() - begun, len(records)
        scores = [float(record["Valid Score"]) for record in records]
        history[: len(scores), c] = np.maximum.accumulate(scores) if scores else []
        kernel[c], bias[c] = found.weight.detach()[0], found.bias.detach()[0]
    np.savez(
        given.results,
        kernel=kernel.numpy(),
        bias=bias.numpy(),
        seconds=seconds,
        steps=steps,
        history=history,
        allow_pickle=False,
    )


if __name__ == "__main__":
    main()
