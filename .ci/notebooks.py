"""Execute the notebooks and keep what they show in them: `make outputs`, after `make run`.

What depends on machine and moment is taken out: times, warnings of libraries, folders. A test holds the committed ones
to that.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
# Kinds of output that are kept, the best first; a figure's words (`<Figure size …>`) say nothing.
KINDS = ("image/png", "text/plain")
COUNTING = re.compile(r"^.*(?:compiling|\d+/\d+ \w+|, \d+(?:\.\d+)? s left).*\n", re.MULTILINE)


def main() -> None:
    """Execute those named, or all."""
    names = sys.argv[1:] or sorted(str(path) for path in (ROOT / "notebooks").glob("*.ipynb"))
    os.environ.setdefault("CFTJAX_RUN", str(ROOT / "runs" / "digits"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for name in names:
        notebook = nbformat.read(name, as_version=4)
        NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = joined([clean(output) for output in cell.outputs if kept(output)])
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, name)
        print(f"{name}: {Path(name).stat().st_size / 1e3:.0f} kB")


def kept(output: Any) -> bool:
    """Whether an output says something of the work, as standard error does not."""
    return not (output.output_type == "stream" and output.name == "stderr")


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs of which text that came piece by piece is one."""
    whole: list[Any] = []
    for output in outputs:
        if whole and output.output_type == whole[-1].output_type == "stream":
            whole[-1].text += output.text
        elif output.output_type != "stream" or output.text.strip():
            whole.append(output)
    return whole


def clean(output: Any) -> Any:
    """An output without what would differ on another machine."""
    if output.output_type == "stream":
        text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", output.text)  # colours, and what hides the cursor
        text = COUNTING.sub("", re.sub(r"^.*\r(?!\n)", "", text, flags=re.MULTILINE))
        output.text = text.replace(str(ROOT) + os.sep, "").replace(tempfile.gettempdir() + os.sep, "")
        return output
    kind = next(kind for kind in KINDS if kind in output.data)
    output.data = {kind: output.data[kind]}
    output.metadata = {}
    return output


if __name__ == "__main__":
    main()
