"""Damage a finished run, hand over what is hostile, start hosts that differ: nothing may change unseen.

    python benchmarks/attack.py [--flips 500] [--truncations 200] [--commands 12] [--hosts] [--names] [--run RUN]

A bit is turned, or a file cut off, somewhere in a file of a run; then everything is read that the commands read of it:
categories, settings, heads, embeddings, weights, decisions, scores, the state of the training. Allowed is that all of
it is as before, or one error that names the run and says what to do; and `cftjax verify` must name the damage, but
where the JSON of a file says the same as before. Of some of the damages real commands are given the run, and may end
as before, or with exit code 1 and one line. Bundles and images that nobody should believe must be refused by name.
With `--hosts` two processes are started that differ in something, and timed until both have ended. With `--names`
categories and files have names that no terminal, spreadsheet, page or card may obey (`attack_names.py`).

Prints a table of each, and exits with 1 where anything was wrong. A run is made first, unless one is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from attack_names import attack_names
from PIL import Image

from cftjax import runs, verify
from cftjax.data.reading import images
from cftjax.embeddings import bundles
from cftjax.inference import model as models
from cftjax.runtime import checkpoints, digests, storage
from cftjax.types import STAGES

# Options of a run that takes seconds.
OPTIONS = {
    "--data.num-train": 256,
    "--data.num-validation": 96,
    "--data.num-test": 96,
    "--training.epochs": 2,
    "--training.batch-size": 32,
    "--embed.batch-size": 32,
    "--ga.num-generations": 100,
    "--ga.population-size": 10,
    "--polish.num-steps": 50,
    "--report.resamples": 100,
}
SMALL = [str(word) for pair in OPTIONS.items() for word in pair]
# Nothing that is read may take longer: of this process's own work, and of waiting.
SECONDS, WAITING_SECONDS = 20, 300
# Two hosts that have not ended by then never will.
PATIENCE = 300


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to one file.

    Attributes:
        path: of the file.
        content: of it, afterwards.
        what: in words.
    """

    path: Path
    content: bytes
    what: str


def files(run: Path) -> list[Path]:
    """What can be damaged."""
    return sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


def damages(run: Path, flips: int, truncations: int, rng: np.random.Generator) -> Iterator[Damage]:
    """Bits turned and files cut, each file before any for the second time."""
    every = files(run)
    for kind, count in (("flip", flips), ("cut", truncations)):
        order = [path for _ in range(-(-count // len(every))) for path in rng.permutation(np.array(every, object))]
        for path in order[:count]:
            content = bytearray(path.read_bytes())
            place = int(rng.integers(len(content)))
            if kind == "flip":
                bit = int(rng.integers(8))
                content[place] ^= 1 << bit
                yield Damage(path, bytes(content), f"bit {bit} of byte {place} turned")
            else:
                yield Damage(path, bytes(content[:place]), f"cut off after {place} bytes")


def everything(run: Path, weights: bool = True) -> dict[str, Any]:
    """All that commands read of a run, by name; without its weights where they are not asked for."""
    opened = runs.Run(run)
    told = {"config": opened.config, "seconds": opened.seconds(), "decisions": str(opened.decisions())}
    for stage in STAGES:
        told[f"heads {stage}"] = dataclasses.astuple(opened.heads(stage))
    for split in opened.splits:
        read = opened.embeddings(split)
        told[split] = (np.asarray(read.z), read.labels, read.known, read.uncertain, opened.names(split))
    for name in ("report/metrics.json", "heads/final/chosen.json", "backbone/history.json"):
        told[name] = storage.read_json(run / name)
    # What a stage went on from is read by nobody once it is complete.
    for path in (run / "heads.npz", *sorted(run.glob("heads/*/*.npz"))):
        told[path.relative_to(run).as_posix()] = storage.read_arrays(path)
    told["heads.safetensors"] = storage.read_tensors(run / "heads.safetensors")
    if not weights:
        return told
    trained = models.load(run)
    told["model"] = (trained.preprocessing, trained.augmented, trained.batch_size)
    for kind in ("best", "state"):
        folder = run / "backbone" / kind
        last = checkpoints.steps(folder)[-1]
        told[f"{kind} {last}"] = (checkpoints.metadata(folder, last), checkpoints.restore(folder, last, None))
    return told


def same(one: Any, other: Any) -> bool:
    """Whether two such values are equal to the bit."""
    ours, theirs = jax.tree.flatten(one), jax.tree.flatten(other)
    if ours[1] != theirs[1]:
        return False
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() if hasattr(a, "dtype") else a == b
        for a, b in zip(ours[0], theirs[0], strict=True)
    )


def late(number: int, frame: Any) -> None:
    """Handle the alarm."""
    raise TimeoutError


def attempt(reading: Callable[[], Any]) -> tuple[Any, str]:
    """What comes of reading: the value, or how it was refused; `wrong: ` begins what may not be."""
    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING_SECONDS)
    try:
        return reading(), ""
    except TimeoutError:
        return None, f"wrong: more than {SECONDS} seconds of work, or {WAITING_SECONDS} of waiting"
    except (ValueError, OSError, ImportError) as error:
        return None, str(error)
    except Exception as error:
        return None, f"wrong: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def outcome(run: Path, damage: Damage, expected: dict[str, Any]) -> str:
    """What one damage led to; `wrong: ` begins what may not be."""
    before = damage.path.read_bytes()
    damage.path.write_bytes(damage.content)
    digests.forget()
    try:
        # Checkpoints are slow to read, and no file elsewhere but config.json has to do with them.
        weights = damage.path.name == digests.CONFIG or "backbone" in damage.path.relative_to(run).parts
        seen, refusal = attempt(lambda: everything(run, weights))
        verdict, failure = attempt(lambda: verify.verify(run))
    finally:
        damage.path.write_bytes(before)
        digests.forget()
    if wrong := next((text for text in (refusal, failure) if text.startswith("wrong: ")), ""):
        return wrong
    if refusal and str(run) not in refusal:
        return f"wrong: names no file: {refusal}"
    if not refusal and not same(seen, {name: value for name, value in expected.items() if name in seen}):
        return "wrong: read otherwise, and nothing said"
    if not verdict or not verdict.damages:
        # A space of JSON may be another one: what it says is what it said.
        return "says the same" if not refusal and damage.path.suffix == ".json" else "wrong: verify finds nothing"
    return "refused when read" if refusal else "found by verify"


def attack_run(run: Path, flips: int, truncations: int, seed: int) -> int:
    """Damage a run many times, and count what came of it; how much was wrong."""
    expected, rng = everything(run), np.random.default_rng(seed)
    counts: Counter[tuple[str, str]] = Counter()
    for i, damage in enumerate(damages(run, flips, truncations, rng)):
        if not i % 50:
            print(f"{i} of {flips + truncations}", file=sys.stderr, flush=True)
        result = outcome(run, damage, expected)
        kind = "truncations" if damage.what.startswith("cut") else "flips"
        if result.startswith("wrong: "):
            print(f"{damage.path.relative_to(run)}, {damage.what}: {result}")
        counts[kind, result.split(":")[0]] += 1
    columns = ("refused when read", "found by verify", "says the same", "wrong")
    print(f"\n{'damage':<14}{'number':>8}" + "".join(f"{name:>20}" for name in columns))
    for kind, number in (("flips", flips), ("truncations", truncations)):
        print(f"{kind:<14}{number:>8}" + "".join(f"{counts[kind, name]:>20}" for name in columns))
    print(f"in {len(files(run))} files\n", flush=True)
    return sum(number for (_, name), number in counts.items() if name == "wrong")


def command(words: list[str], **environment: str) -> tuple[int, str]:
    """Run a command to its end: exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "cftjax", *words], capture_output=True, text=True, env=os.environ | environment
    )
    return done.returncode, done.stdout + done.stderr


def attack_commands(run: Path, number: int, seed: int, folder: Path, options: list[str]) -> int:
    """Give damaged runs to real commands; how many ended otherwise than they may."""
    picture = folder / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(picture)
    calls = {
        "predict": lambda out: ["predict", str(run), str(picture), "-o", str(out / "out.csv"), "--workers", "0"],
        "evaluate": lambda out: ["evaluate", str(run), "-o", str(out), "--resamples", "20"],
        "train": lambda out: ["train", "--workdir", str(run), *options],
        "export": lambda out: ["export", str(run), "--output", str(out), "--format", "safetensors"],
    }
    sound, wrong = {}, 0
    for name, words in calls.items():
        if number:
            code, said = command(words(made(folder / f"sound {name}")))
            sound[name] = contents(folder / f"sound {name}")
            if code:
                sys.exit(f"{name} of the sound run: {said[-1500:]}")
    # Heads, weights and embeddings first: what commands read.
    every = [damage for damage in damages(run, 2000, 0, np.random.default_rng([seed, 1])) if read_often(damage.path)]
    shutil.copytree(run, folder / "kept")
    for i, damage in enumerate(every[:number]):
        name = list(calls)[i % len(calls)]
        damage.path.write_bytes(damage.content)
        out = made(folder / f"{i}")
        code, said = command(calls[name](out))
        lines = [line for line in said.splitlines() if line.startswith("cftjax: error: ")]
        fine = (code == 0 and contents(out) == sound[name]) or (code == 1 and len(lines) == 1)
        fine = fine and "Traceback" not in said
        wrong += not fine
        place = damage.path.relative_to(run)
        told = "".join(lines) if fine else f"WRONG {said[-800:]}"
        print(f"{name:<9}{place}, {damage.what}: exit code {code} {told}", flush=True)
        shutil.rmtree(run)
        shutil.copytree(folder / "kept", run)
    return wrong


def read_often(path: Path) -> bool:
    """Whether most commands read a file."""
    return (
        any(part in path.parts for part in ("best", "final", "validation", "test", "decisions"))
        or path.suffix == ".json"
    )


def made(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All tables and numbers that a command has written."""
    kinds = (".csv", ".safetensors")
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in kinds}


def bundle(folder: Path, **changes: Any) -> Path:
    """A sound bundle with some arrays changed, or left out where they are None."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "train_z": rng.normal(size=(20, 4)).astype(np.float32),
        "train_labels": rng.integers(0, 2, (20, 3)).astype(np.float32),
        "kernel": np.ones((3, 4), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    arrays |= changes
    path = folder / "mine.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def lying(folder: Path) -> Path:
    """An archive with an array that claims to be larger than any memory."""
    with zipfile.ZipFile(folder / "mine.npz", "w") as archive:
        for name in ("train_z", "train_labels", "kernel", "bias"):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 4)})
            archive.writestr(f"{name}.npy", head.getvalue())
    return folder / "mine.npz"


def bomb(folder: Path) -> Path:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return folder / "bomb.png"


def pipe(folder: Path) -> Path:
    """A pipe that nobody writes into."""
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def loop(folder: Path) -> Path:
    """A link to itself."""
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder / "loop.png"


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    """A file of this content."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


Z = np.ones((20, 4), np.float32)
BUNDLES: dict[str, Callable[[Path], Path]] = {
    "a pickled object": lambda folder: bundle(folder, categories=np.array([{}, [], None], object)),
    "NaN embeddings": lambda folder: bundle(folder, train_z=Z * np.nan),
    "numbers beyond float32": lambda folder: bundle(folder, train_z=np.full((20, 4), 1e300)),
    "text for numbers": lambda folder: bundle(folder, train_z=np.full((20, 4), "1")),
    "labels of 2": lambda folder: bundle(folder, train_labels=np.full((20, 3), 2.0)),
    "no rows": lambda folder: bundle(folder, train_z=Z[:0], train_labels=Z[:0, :3]),
    "another width": lambda folder: bundle(folder, train_z=Z[:, :3]),
    "names twice": lambda folder: bundle(folder, categories=np.array(["a", "a", "b"])),
    "too few names": lambda folder: bundle(folder, categories=np.array(["a"])),
    "no last layer": lambda folder: bundle(folder, kernel=None, bias=None),
    "arrays larger than memory": lying,
    "an empty file": written("mine.npz", b""),
    "a web page": written("mine.npz", b"<html>404</html>"),
    "brackets": written("mine.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
    "a length beyond the file": written("mine.safetensors", struct.pack("<Q", 2**62) + b"{}"),
}
IMAGES: dict[str, Callable[[Path], Path]] = {
    "a pipe": pipe,
    "a device": lambda folder: Path("/dev/zero"),
    "a folder": lambda folder: folder,
    "a link to itself": loop,
    "3,600 million pixels": bomb,
    "an empty image": written("a.png", b""),
    "a web page as image": written("a.jpg", b"<html>404</html>"),
    "a PNG without pixels": written("a.png", b"\x89PNG\r\n\x1a\n"),
    "half a DICOM": written("a.dcm", bytes(128) + b"DICM" + b"\xff" * 40),
}


def attack_readers(folder: Path) -> int:
    """Hand over what is hostile; how much was not refused by its name."""
    wrong = 0
    readers = [(name, make, bundles.read) for name, make in BUNDLES.items()]
    readers += [(name, make, images.open_image) for name, make in IMAGES.items()]
    for i, (name, make, read) in enumerate(readers):
        path = make(made(folder / f"hostile {i}"))
        value, refusal = attempt(lambda read=read, path=path: read(path))
        fine = value is None and path.name in refusal and not refusal.startswith("wrong: ")
        wrong += not fine
        if not fine:
            print(f"{name}: {refusal or 'was read'}")
    print(f"hostile bundles and images: {len(readers)}, refused by name: {len(readers) - wrong}\n", flush=True)
    return wrong


def attack_hosts(folder: Path, options: list[str]) -> int:
    """Start two hosts that differ in something; how many pairs did not end as they should."""
    other = folder / "other code"
    package = Path(runs.__file__).parent
    shutil.copytree(package, other / "cftjax", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "cftjax" / "text.py").open("a") as file:
        file.write("# another version\n")
    work = ["--workdir", str(folder / "of two")]
    # What differs -> words, environment of the second host; None: it is not started.
    cases: dict[str, tuple[list[str], dict[str, str]] | None] = {
        "--seed": ([*work, "--seed", "5"], {}),
        "--training.epochs": ([*work, "--training.epochs", "3"], {}),
        "data": ([*work, "--data.num-train", "320"], {}),
        "--workdir": (["--workdir", str(folder / "of one")], {}),
        "code": (work, {"PYTHONPATH": str(other)}),
        "--num-processes": ([*work, "--num-processes", "3"], {}),
        "--process-id": ([*work, "--process-id", "0"], {}),
        "a missing host": None,
        "a port in use": (work, {}),
    }
    wrong = 0
    print(f"{'hosts differ in':<20}{'exit codes':>12}{'seconds':>16}  what they say")
    for name, second in cases.items():
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            if name == "a port in use":
                holder.listen()
            else:
                holder.close()
            ended = two_hosts(
                folder, port, [*options, *work], None if second is None else ([*options, *second[0]], second[1])
            )
        lines = [line for _, _, said in ended for line in said.splitlines() if line.startswith("cftjax: error: ")]
        fine = all(code == 1 and "Traceback" not in said for code, _, said in ended) and len(lines) == len(ended)
        wrong += not fine
        codes, seconds = ", ".join(str(code) for code, _, _ in ended), ", ".join(f"{s:.1f}" for _, s, _ in ended)
        print(
            f"{name:<20}{codes:>12}{seconds:>16}  {' | '.join(dict.fromkeys(lines))}{'' if fine else ' WRONG'}",
            flush=True,
        )
    if (folder / "of two").exists():
        print("something was written into the run")
        wrong += 1
    return wrong


def two_hosts(
    folder: Path, port: int, first: list[str], second: tuple[list[str], dict[str, str]] | None
) -> list[tuple[int, float, str]]:
    """Start both, or the first one alone; exit code, seconds and words of each."""
    given = [(first, {})] + ([] if second is None else [second])
    processes = []
    for i, (words, environment) in enumerate(given):
        options = ["--coordinator", f"127.0.0.1:{port}"]
        # The last one counts, so that a case may say otherwise.
        place = ["--num-processes", "2", "--process-id", str(i)]
        call = [sys.executable, "-m", "cftjax.train", *options, *place, *words]
        log = (folder / f"host {i}").open("w+")
        began = time.monotonic()
        process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment, cwd=folder)
        processes.append((process, log, began))
    ended: dict[int, float] = {}
    while len(ended) < len(processes) and time.monotonic() - processes[0][2] < PATIENCE:
        for i, (process, _, began) in enumerate(processes):
            if i not in ended and process.poll() is not None:
                ended[i] = time.monotonic() - began
        time.sleep(0.02)
    results = []
    for i, (process, log, _) in enumerate(processes):
        process.kill()
        process.wait()
        log.seek(0)
        results.append((process.returncode, ended.get(i, float("inf")), log.read()))
        log.close()
    return results


def main() -> None:
    """Attack, and count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--commands", type=int, default=12, help="damages that real commands are given")
    parser.add_argument("--hosts", action="store_true", help="start hosts that differ")
    parser.add_argument("--names", action="store_true", help="send hostile names through every command")
    parser.add_argument("--run", type=Path, help="a finished run of cftjax.train, which is copied; made by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder, run = Path(temporary), Path(temporary) / "run"
        if given.run is not None:
            shutil.copytree(given.run, run)
        elif given.flips or given.truncations or given.commands:
            code, said = command(["train", "--workdir", str(run), *SMALL])
            if code:
                sys.exit(said)
        wrong = attack_run(run, given.flips, given.truncations, given.seed) if given.flips or given.truncations else 0
        wrong += attack_readers(folder)
        if given.commands:
            wrong += attack_commands(run, given.commands, given.seed, folder, SMALL)
        if given.hosts:
            wrong += attack_hosts(folder, SMALL)
        if given.names:
            wrong += attack_names(made(folder / "names"))
    print(f"wrong: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
