"""Executes every notebook on a small run."""

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


@pytest.mark.notebooks
@pytest.mark.filterwarnings("default")  # what the kernel's libraries say is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, run, monkeypatch):
    monkeypatch.setenv("CFTJAX_RUN", str(run))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert all("outputs" in cell for cell in notebook.cells if cell.cell_type == "code")
