"""The default command on the card, by stages, and the repository's tests on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

from card.notes import REPO, SMALL, WORK, alone, note

FEW = [
    *("--training.max-steps=4", "--ga.num-generations=50", "--polish.num-steps=20", "--report.resamples=20"),
    *("--data.num-train=300", "--data.num-validation=200", "--data.num-test=200"),
]
STAGES = ("backbone", "polish", "ga", "final")
# Of what computes; the others read and write files.
TESTED = ("metrics", "ranking", "losses", "genetic", "rules", "packing", "polish", "search", "tuning", "unknowns")
TESTED += ("embed", "training_loop", "backbones", "checkpoints", "convolutions")


def train(folder_name: str, environment: dict[str, str]) -> float:
    """Seconds of `cftjax train` in a folder; the log is beside it."""
    folder = WORK / "runs" / folder_name
    command = [sys.executable, "-m", "cftjax", "train", "--workdir", str(folder), *(FEW if SMALL else ())]
    begun = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (WORK / f"{folder_name}.log").open("w") as log:
        code = subprocess.run(
            command, cwd=REPO, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    note(f"{folder_name}: exit code", code)
    return time.perf_counter() - begun


def default_run() -> None:
    """`cftjax train` as it comes, by stages; then its heads again on a CPU."""
    shutil.rmtree(WORK / "runs" / "gpu", ignore_errors=True)
    # Other parts compile meanwhile.
    with alone(pausing=False):
        note("seconds in all", train("gpu", {"JAX_LOG_COMPILES": "1"}))
    folder, text = WORK / "runs" / "gpu", (WORK / "gpu.log").read_text(errors="replace")
    compiled = [(float(s), n) for n, s in re.findall(r"Finished XLA compilation of (\S+) in ([\d.]+) sec", text)]
    note("programs compiled, and their seconds", [len(compiled), sum(s for s, _ in compiled)])
    note("longest", sorted(compiled, reverse=True)[:8])
    stages = {str(p.parent.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob("stage.json")}
    note("seconds by stage", {name: stage.get("seconds") for name, stage in stages.items()})
    report = folder / "report" / "metrics.json"
    if not report.is_file():
        note("last lines", [line[:200] for line in text.splitlines() if "ompil" not in line][-12:])
        return
    note("test mAP", scores_of("gpu"))
    beside_a_cpu()


def scores_of(name: str) -> dict[str, float]:
    """Mean AP of test by stage."""
    scores = json.loads((WORK / "runs" / name / "report" / "metrics.json").read_text())
    return {stage: scores["test"][stage]["mAP"] for stage in STAGES if stage in scores["test"]}


def beside_a_cpu() -> None:
    """The run's heads again on a CPU, from the same embeddings."""
    again = WORK / "runs" / "cpu"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(WORK / "runs" / "gpu", again)
    kept = {"backbone", "embeddings"}
    for path in [*(again / "heads").glob("*"), again / "decisions", again / "report"]:
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
    note("cpu: seconds in all", train("cpu", {"JAX_PLATFORMS": "cpu"}))
    gpu, cpu = (json.loads((WORK / "runs" / name / "report" / "metrics.json").read_text()) for name in ("gpu", "cpu"))
    note("cpu: test mAP", scores_of("cpu"))
    for stage in STAGES:
        if stage in gpu["test"]:
            pairs = zip(gpu["test"][stage]["AP"], cpu["test"][stage]["AP"], strict=True)
            note(f"largest difference of a category's AP, {stage}", max(abs(a - b) for a, b in pairs))


def tests() -> None:
    """Tests of what computes, with the card as JAX's default device, side by side."""
    names = ["losses"] if SMALL else TESTED
    files = [f"tests/test_{name}.py" for name in names if (REPO / f"tests/test_{name}.py").is_file()]
    options = ["-p", "no:cacheprovider", "-p", "no:benchmark", "-n", "1" if SMALL else "8", "-q", "--tb=line", "-rfE"]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers", *options]
    environment = {**os.environ, "CFTJAX_TEST_DEVICES": "any", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    begun, log = time.perf_counter(), WORK / "tests.txt"
    with log.open("w") as file:
        subprocess.run(
            [*command, "-m", "not notebooks and not hosts", "--durations=8", *files],
            cwd=REPO,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(errors="replace").splitlines()
    note("seconds", time.perf_counter() - begun)
    note("failed", [line[:220] for line in lines if line.startswith(("FAILED", "ERROR"))])
    note("last line", lines[-1] if lines else "")
