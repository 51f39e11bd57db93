"""The command `cftjax COMMAND …`, which is also `python -m cftjax COMMAND …` and `python -m cftjax.COMMAND …`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from cftjax import cli

# Each is the module of its name, which can be run by itself.
COMMANDS = {
    "train": "train a classifier from images with partial labels, tune its heads, report",
    "finetune": "tune the last layer of a model trained anywhere, from its embeddings",
    "predict": "probabilities and decisions for images",
    "evaluate": "score runs and files of predictions, and their ensemble",
    "ensemble": "several seeds and backbones as one model, or finished runs as one",
    "export": "a run as one file: StableHLO, safetensors or ONNX",
    "push": "a run to the Hugging Face hub, from which load and predict take it as hf:USER/NAME",
    "verify": "is a run what was written? what to delete where it is not",
    "sweep": "the paper's table: modes of unknown labels at several known proportions",
    "data": "look at a data set before training: summary, check",
    "recipes": "list the recipes, or print one to start a configuration from",
}
USAGE = f"""usage: cftjax COMMAND [OPTIONS]

{chr(10).join(f"  {name:<9} {meaning}" for name, meaning in COMMANDS.items())}

cftjax COMMAND --help lists the options of a command, cftjax --version says which version this is.
Begin with: cftjax train"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, with the words after it.

    Args:
        arguments: words after `cftjax`; None for the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(0 if words else 2)
    name, *rest = words
    if name in ("-V", "--version"):
        print(f"cftjax {importlib.metadata.version('cftjax')}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        mend = f"did you mean cftjax {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"cftjax: error: no command {name!r}; {mend}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [name, *rest]
    module = importlib.import_module(f"cftjax.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"cftjax.{name}.__main__")
    cli.run(module.main, getattr(module, "STOPPED", cli.STOPPED))


if __name__ == "__main__":
    main()
