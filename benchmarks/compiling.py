"""How much of a command is compiling: the default training by itself, cold and with the programs that it has kept.

    python benchmarks/compiling.py                                  # cftjax train
    python benchmarks/compiling.py train digits --training.epochs 1

Each run has a process and a folder of its own; the programs are kept in a temporary folder that the second one reads.
Seconds of tracing, lowering and compiling are those that JAX reports (jax.monitoring).
"""

from __future__ import annotations

import collections
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from cftjax import __main__ as command

STEPS = {
    "traced": "/jax/core/compile/jaxpr_trace_duration",
    "lowered": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiled": "/jax/core/compile/backend_compile_duration",
}
LONGEST = 12


@dataclasses.dataclass
class Compiled:
    """What JAX has reported so far.

    Attributes:
        seconds: of each step of `STEPS`.
        programs: seconds of compiling by name, of each program one.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    programs: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    def listen(self) -> Compiled:
        """Note everything from now on."""
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        for step, name in STEPS.items():
            if event == name:
                self.seconds[step] += duration_secs
        if event == STEPS["compiled"]:
            self.programs.append((duration_secs, str(kwargs.get("fun_name", "?"))))

    def lines(self) -> list[str]:
        """For a person."""
        words = ", ".join(f"{step} {self.seconds[step]:.1f} s" for step in STEPS)
        long = sum(seconds > 0.5 for seconds, _ in self.programs)
        longest = ", ".join(f"{name} {seconds:.1f}" for seconds, name in sorted(self.programs, reverse=True)[:LONGEST])
        often = collections.Counter(name for _, name in self.programs)
        return [
            f"{len(self.programs)} programs, {long} of them compiled for longer than half a second: {words}",
            f"longest, in seconds: {longest}",
            f"most often: {', '.join(f'{name} {number}' for name, number in often.most_common(LONGEST))}",
        ]


def inside(words: list[str]) -> None:
    """Run the command in this process and print what it took."""
    compiled, began = Compiled().listen(), time.perf_counter()
    command.main(words)
    print(f"all: {time.perf_counter() - began:.1f} s, {time.process_time():.1f} s of processors", flush=True)
    print("\n".join(compiled.lines()))


def main() -> None:
    """Run the command twice."""
    words = sys.argv[1:] or ["train"]
    with tempfile.TemporaryDirectory() as folder:
        for run in ("cold", "with what it kept"):
            print(f"{run}:", flush=True)
            workdir = ["--workdir", str(Path(folder) / run.replace(" ", "-"))]
            ours = [sys.executable, __file__, "--inside", *words, *workdir]
            subprocess.run(ours, env=os.environ | {"XDG_CACHE_HOME": str(Path(folder) / "cache")}, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2:])
    else:
        main()
