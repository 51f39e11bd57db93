"""Executes every notebook on a small run."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_end_to_end import SMALL

from cftjax import train

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cftjax", "--workdir", str(folder), *SMALL])
        train.main()
    return folder


# What a notebook needs that the tests bring not.
NEEDED = {"cft_on_a_pytorch_model": "torch"}
# Folders of somebody's machine, and what only a moment knows.
FOLDERS = r"(?<![\w.])/(?:root|home|Users|tmp|work|mnt|var|opt|usr|private)\b"
MACHINES = re.compile(rf"{FOLDERS}|[A-Z]:\\|Traceback|\b\d+(\.\d+)? s\b|[Ss]econds")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ships_with_what_it_shows_and_nothing_of_a_machine(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    text = [output.get("text") or output["data"].get("text/plain", "") for output in outputs]
    assert [words for words in text if MACHINES.search(words)] == []
    assert path.stat().st_size < 500_000


@pytest.mark.notebooks
@pytest.mark.filterwarnings("default")  # what the kernel's libraries say is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, run, monkeypatch):
    pytest.importorskip(NEEDED.get(path.stem, "cftjax"), reason="the lock leaves it out")
    monkeypatch.setenv("CFTJAX_RUN", str(run))
    # One device, as a reader has: the tests' eight virtual ones are no machine's.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
