"""Damage files of every kind that the commands read, and watch what the readers say.

    python benchmarks/fuzz.py [--inputs 1000] [--seed 0]

Each kind is read in a process of its own: bytes of a sound file are overwritten, taken out, doubled or cut off, and
the file is given to what the commands call. Allowed is success, or one error that the user can mend (ValueError,
OSError) and that names the file. Everything else is counted as wrong: other errors, the end of the process, more than
20 seconds, and whatever Python's audit hooks see of a pickle's functions, of other programs and of connections. Prints
the counts and the memory that each process held at most; exits with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.numpy
from PIL import Image

from cftjax import decisions, runs
from cftjax.backbones import pretrained, torch_files
from cftjax.config import Config, DecideConfig
from cftjax.data.coco import CocoData
from cftjax.data.digits import DigitsData
from cftjax.data.reading import images
from cftjax.data.table import TableData
from cftjax.embeddings import bundles, embed
from cftjax.evaluation import models
from cftjax.runtime import storage
from cftjax.types import Embeddings, Heads

SECONDS = 20
EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
CHUNKS = (
    b"",
    b"-1",
    b"0",
    b"9" * 30,
    b"\xff",
    b"\r\n",
    b"../",
    b"/etc/passwd",
    b"\0",
    b"[" * 5000,
    b"nan",
    b'"',
    b"{}",
)


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: makes a sound folder, and says which file of it is damaged.
        read: the folder, as the commands read it.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with some places overwritten, taken out, doubled or cut off, or with single bits turned."""
    for _ in range(rng.geometric(0.6)):
        start = int(rng.integers(0, len(data) + 1))
        end = min(start + int(rng.integers(0, 30)), len(data))
        # Small changes most often: large ones are refused by the first check.
        way = rng.choice(5, p=[0.1, 0.4, 0.15, 0.15, 0.2])
        if way == 0:
            data = data[:start]
        elif way == 1 and start < len(data):
            data = data[:start] + bytes([data[start] ^ (1 << int(rng.integers(8)))]) + data[start + 1 :]
        elif way == 2:
            data = data[:end] + data[start:]
        elif way == 3:
            data = data[:start] + rng.bytes(end - start) + data[end:]
        else:
            data = data[:start] + CHUNKS[rng.integers(len(CHUNKS))] + data[start if rng.random() < 0.5 else end :]
    return data


def picture(folder: Path, name: str) -> Path:
    """A small image with structure."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8)
    Image.fromarray(np.repeat(pixels, 2, axis=0)).save(folder / name)
    return folder / name


def table(folder: Path) -> dict[str, list[Any]]:
    """Columns of a table of images that are there."""
    for i in range(4):
        picture(folder, f"{i}.png")
    paths, split = [f"{i}.png" for i in range(4)], ["train", "train", "validation", "test"]
    return {"path": paths, "split": split, "cat": ["1", "0", "", "1"], "dog": ["-1", "1", "0", ""]}


def write_csv(folder: Path) -> Path:
    """A table as text."""
    lines = zip(*([name, *cells] for name, cells in table(folder).items()), strict=True)
    (folder / "labels.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    return folder / "labels.csv"


def write_parquet(folder: Path) -> Path:
    """The same as Parquet."""
    pyarrow.parquet.write_table(pa.table(table(folder)), folder / "labels.parquet")
    return folder / "labels.parquet"


def write_coco(folder: Path) -> Path:
    """MS-COCO as released, of two images."""
    (folder / "annotations").mkdir()
    for name in ("val", "train"):
        (folder / f"{name}2014").mkdir()
        picture(folder / f"{name}2014", "a.png")
        content = {
            "images": [{"id": 10, "file_name": "a.png", "height": 48}],
            "annotations": [{"id": 1, "image_id": 10, "category_id": 7, "segmentation": [[1.5, 2.0]], "iscrowd": 0}],
            "categories": [{"id": 7, "name": "kite"}, {"id": 1, "name": "person"}],
        }
        (folder / f"annotations/instances_{name}2014.json").write_text(json.dumps(content))
    return folder / "annotations/instances_train2014.json"


def bundle() -> dict[str, np.ndarray]:
    """Embeddings, labels and a last layer."""
    rng = np.random.default_rng(0)
    made = {"kernel": rng.normal(size=(2, 3)).astype(np.float32), "bias": np.zeros(2, np.float32)}
    for split in ("train", "validation"):
        made[f"{split}_z"] = rng.normal(size=(6, 3)).astype(np.float32)
        made[f"{split}_labels"] = np.array([[1, 0], [0, np.nan], [np.nan, 1], [0, 0], [1, 1], [0, 1]], np.float32)
    return made


def write_npz(folder: Path) -> Path:
    """A bundle as an .npz, its members packed."""
    np.savez_compressed(folder / "mine.npz", allow_pickle=False, **bundle())  # pyright: ignore[reportArgumentType]
    return folder / "mine.npz"


def write_safetensors(folder: Path) -> Path:
    """A bundle as .safetensors."""
    safetensors.numpy.save_file(bundle(), folder / "mine.safetensors", {"categories": '["a", "b"]'})
    return folder / "mine.safetensors"


def state_dict() -> bytes:
    """The pickle of a state dict with one transposed 2 x 3 tensor, as torch 2 writes it."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x01K\x02\x86\x89ccollections\nOrderedDict\n)Rt"
        b"Rs."
    )


def write_zip_checkpoint(folder: Path) -> Path:
    """A checkpoint in torch's present container."""
    with zipfile.ZipFile(folder / "weights.pth", "w") as file:
        file.writestr("archive/data.pkl", state_dict())
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return folder / "weights.pth"


def write_old_checkpoint(folder: Path) -> Path:
    """A checkpoint in the container before torch 1.6."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (torch_files.LEGACY_MAGIC, torch_files.LEGACY_PROTOCOL, machine)]
    # Here a storage says as well of what larger one it is a view: of none.
    body = state_dict().replace(b"K\x06tQ", b"K\x06NtQ")
    values = np.arange(6, dtype=np.float32)
    content = b"".join(parts) + body + pickle.dumps(["0"], 2) + (6).to_bytes(8, sys.byteorder) + values.tobytes()
    (folder / "old.pth").write_bytes(content)
    return folder / "old.pth"


def write_run(folder: Path) -> runs.Run:
    """A run of two categories with everything but a backbone."""
    config = Config(data=DigitsData())
    run = runs.create(folder / "run", config, ("cat", "dog"), "f1f2")
    made = bundle()
    with run.stage("heads/final", [config.choose], ["before"]) as stage:
        storage.write_heads(stage.folder / "heads.npz", Heads(made["kernel"], made["bias"]))
    z, values = made["validation_z"], made["validation_labels"]
    seen = Embeddings(z, values == 1, ~np.isnan(values))
    embed.save(run.folder / "embeddings" / "validation", seen)
    logits = np.asarray(run.heads("final")(z))
    fitted = decisions.fit(
        logits, seen.labels, seen.known, DecideConfig(), categories=run.categories, split="validation"
    )
    decisions.write(run.folder / "decisions" / runs.DECISIONS, fitted)
    return run


def open_run(folder: Path) -> None:
    """Everything that reads a run without its backbone, and going on with it."""
    run = runs.Run(folder / "run")
    run.heads("final")
    run.decisions()
    seen = run.embeddings("validation")
    np.asarray(seen.z).sum()
    run.seconds()
    run = runs.create(folder / "run", Config(data=DigitsData()), ("cat", "dog"), "f1f2")
    with run.writing(), run.stage("heads/final", [Config(data=DigitsData()).choose], ["before"]):
        pass


def file_of_run(name: str) -> Kind:
    """One file of a run."""

    def write(folder: Path) -> Path:
        return write_run(folder).folder / name

    return Kind(write, open_run)


def predictions(folder: Path) -> Path:
    """Predictions of another program, and the truth."""
    (folder / "truth.csv").write_text("study,cat,dog\np1,1,0\np2,0,1\np3,1,\n")
    (folder / "model.csv").write_text("study,cat,dog\np3,0.5,0.1\np1,0.25,0.75\np2,1,0\n")
    return folder / "model.csv"


def read_predictions(folder: Path) -> None:
    """As `evaluate` reads them."""
    _, read = models.of_files([folder / "model.csv"], ["model"], folder / "truth.csv", models.Reading())
    read[0].block(slice(0, 2))


def read_image(folder: Path) -> None:
    """Header and pixels of the one image."""
    (file,) = folder.iterdir()
    images.read_header(file)
    images.open_image(file.name, root=folder)


KINDS = {
    "table .csv": Kind(write_csv, lambda folder: TableData(file=str(folder / "labels.csv")).load()),
    "table .parquet": Kind(write_parquet, lambda folder: TableData(file=str(folder / "labels.parquet")).load()),
    "COCO .json": Kind(write_coco, lambda folder: CocoData(root=str(folder)).load()),
    **{f"image .{k}": Kind(lambda f, k=k: picture(f, f"a.{k}"), read_image) for k in ("png", "jpg", "gif", "tif")},
    "bundle .npz": Kind(write_npz, lambda folder: bundles.read(folder / "mine.npz")),
    "bundle .safetensors": Kind(write_safetensors, lambda folder: bundles.read(folder / "mine.safetensors")),
    "weights .npz": Kind(write_npz, lambda folder: pretrained.load(folder / "mine.npz")),
    "weights .safetensors": Kind(write_safetensors, lambda folder: pretrained.load(folder / "mine.safetensors")),
    "weights .pth": Kind(write_zip_checkpoint, lambda folder: pretrained.load(folder / "weights.pth")),
    "weights .pth before 1.6": Kind(write_old_checkpoint, lambda folder: pretrained.load(folder / "old.pth")),
    "predictions .csv": Kind(predictions, read_predictions),
    **{
        f"run: {name}": file_of_run(name)
        for name in (
            "config.json",
            "heads/final/stage.json",
            "heads/final/heads.npz",
            "decisions/decisions.json",
            "embeddings/validation/z.npy",
            "embeddings/validation/labels.npz",
        )
    },
}


def late(number: int, frame: Any) -> None:
    """Handle the alarm."""
    raise TimeoutError


def try_one(kind: Kind, folder: Path, seed: list[int], seen: list[str]) -> dict[str, Any]:
    """Damage a file and read it; what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = kind.write(folder)
    file.write_bytes(damaged(file.read_bytes(), np.random.default_rng(seed)))
    seen.clear()
    signal.alarm(SECONDS)
    try:
        kind.read(folder)
        outcome, wrong = "read", ""
    except TimeoutError:
        outcome, wrong = "wrong", f"more than {SECONDS} seconds"
    except (ValueError, OSError) as error:
        outcome = type(error).__name__
        # A run's folder, or the annotations', may stand for the file.
        named = any(part.name in str(error) for part in (file, file.parent))
        wrong = "" if named else f"names no file: {error}"
    except Exception as error:
        outcome, wrong = "wrong", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    wrong += "".join(f"; {event}" for event in seen)
    return {"outcome": "wrong" if wrong else outcome, "wrong": wrong[:500]}


def work(name: str, first: int, last: int, seed: int) -> None:
    """Try some inputs of one kind, with a line for each."""
    seen: list[str] = []
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        KINDS[name].read(_made(KINDS[name], Path(folder) / "sound"))  # which also imports what is imported late
        sys.addaudithook(lambda event, arguments: seen.append(f"{event} {arguments}") if event in EVENTS else None)
        for i in range(first, last):
            found = try_one(KINDS[name], Path(folder) / "input", [seed, *name.encode(), i], seen)
            found["MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(json.dumps(found), flush=True)


def _made(kind: Kind, folder: Path) -> Path:
    folder.mkdir()
    kind.write(folder)
    return folder


def main() -> None:
    """Try all, and count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], int(given.work[1]), int(given.work[2]), given.seed)
        return
    each, wrong, total = -(-given.inputs // len(KINDS)), 0, 0
    print(f"{'kind':<34}{'inputs':>7}{'read':>6}{'refused':>9}{'wrong':>7}{'most MB':>9}")
    for name in KINDS:
        results: list[dict[str, Any]] = []
        while len(results) < each:
            words = [__file__, "--seed", str(given.seed), "--work", name, str(len(results)), str(each)]
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
            # Readers may say something as well.
            results += [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"outcome')]
            if done.returncode > 0 or (done.returncode and not done.stdout):
                sys.exit(f"{name}: {done.stderr}")
            if done.returncode:
                results.append({"outcome": "wrong", "wrong": f"ended by signal {-done.returncode}", "MB": 0})
        counts = Counter(result["outcome"] for result in results)
        refused = each - counts["read"] - counts["wrong"]
        most = max(result["MB"] for result in results)
        print(f"{name:<34}{each:>7}{counts['read']:>6}{refused:>9}{counts['wrong']:>7}{most:>9}", flush=True)
        for text in dict.fromkeys(result["wrong"] for result in results if result["wrong"]):
            print(f"  {text}")
        wrong, total = wrong + counts["wrong"], total + each
    print(f"{total} inputs, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
