"""What the commands share: recipes, configuration files and options, one clear line for an error, compiled programs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TextIO, TypeVar

import jax
import tyro

from cftjax import options, recipes, short_help
from cftjax.config import RECIPES, Config, HostsConfig, with_recipe
from cftjax.runtime import checkpoints, devices, hosts, interruption
from cftjax.text import printable

D = TypeVar("D")

# Said after SIGTERM or Ctrl-C.
# What of a message may break and indent its lines.
LINES = "\n\t"
STOPPED = "Stopped. The same command goes on from here."


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[D]):
    """A configuration and where its run lives."""

    config: Annotated[Config[D], tyro.conf.arg(name="")]
    workdir: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/digits")
    """The folder of the run; a run that was interrupted goes on where it stood."""
    recipe: Literal["default", "paper"] = "default"
    """CFT settings: whatever measures best, or as published."""
    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=HostsConfig)


def read_config(word: str | Path) -> Config[Any]:
    """The configuration of a recipe by its name, or the `get_config()` of a Python file.

    Raises:
        ValueError: where there is no such recipe or file, or the file has no such function.
    """
    path = Path(word)
    if path.suffix != ".py":
        if str(word) in recipes.names():
            return recipes.read(str(word))
        if path.suffix in (".csv", ".parquet"):
            raise ValueError(f"{word} is data, and what is wanted here is a recipe: use csv --data.file {word}")
        near = difflib.get_close_matches(str(word), recipes.names(), n=1)
        known = ", ".join(recipes.names())
        mend = f"did you mean {near[0]}?" if near else f"there are {known}, or a file that ends in .py"
        raise ValueError(f"no recipe {word}; {mend}")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.3)
        named = difflib.get_close_matches(path.stem, recipes.names(), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        hint = hint or (f"; did you mean the recipe {named[0]}?" if named else "")
        raise ValueError(f"no configuration file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"cftjax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in the file look themselves up here
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} defines no get_config()")
    return module.get_config()


def recipe_of(arguments: Sequence[str]) -> str:
    """The recipe sets the defaults of other options, so that it is read before they are."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--recipe":
            value = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            return value if value in RECIPES else "default"  # tyro refuses it by name
    return "default"


def parse(
    description: str,
    default: Callable[[], Config[Any]],
    arguments: Sequence[str] | None = None,
    kind: Any = Experiment,
    suffix: str = "",
) -> Any:
    """[RECIPE or CONFIG.py] [--recipe NAME] [--workdir RUN] [--section.option VALUE …], options of its types.

    Args:
        description: first line of --help.
        default: the configuration where no file is named.
        arguments: words after the command's name; None for the process's own.
        kind: `Experiment`, or a command's own dataclass that extends it.
        suffix: of the default folder's name.

    Returns:
        An instance of `kind`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    named = configuration(words, f"cftjax {Path(sys.argv[0]).stem}", default)
    config = with_recipe(named.config, recipe_of(named.options))
    kind = kind[type(config.data)]
    start = kind(config, Path("runs") / f"{named.name}{suffix}")
    return short_help.parse(kind, start, named.options, named.command, description)


class Named(NamedTuple):
    """The configuration that a command names, or its default one.

    Attributes:
        config: the configuration.
        name: of its recipe or file.
        command: up to here, as typed.
        options: the words after it.
    """

    config: Config[Any]
    name: str
    command: str
    options: list[str]


def configuration(words: Sequence[str], command: str, default: Callable[[], Config[Any]]) -> Named:
    """[RECIPE or CONFIG.py] [--options]: the configuration, once the options are known to be meant for it.

    Raises:
        ValueError: where there is no such configuration, or an option goes by another name here.
    """
    named = Named(default(), "digits", command, list(words))
    is_named = bool(words) and not words[0].startswith("-")
    if is_named:
        named = Named(read_config(words[0]), Path(words[0]).stem, f"{command} {words[0]}", list(words[1:]))
    options.check(named.options, named.command)
    if not is_named:
        options.check_recipe(named.options, command, type(named.config.data))
    return named


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Empty or relative it counts as not set: a folder `cftjax` in the current one would hide the package.
        own = Path(os.environ.get("XDG_CACHE_HOME", ""))
        cache = (own if own.is_absolute() else Path.home() / ".cache") / "cftjax" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line on standard error; where in the code a warning came from helps only those who work on the code."""
    place = "" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"cftjax: warning: {place}{printable(str(message), keep=LINES)}", file=sys.stderr)


def words(error: Exception) -> str:
    """What an error says, and of a full disk or memory what to do."""
    if isinstance(error, OSError) and error.errno in checkpoints.FULL:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Make room and give the same command again: it keeps what is complete."
    if devices.says_full(error):
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            f"not enough memory ({first}): smaller batches need less (--training.batch-size, --embed.batch-size, "
            "predict --batch-size), and the same command keeps what is complete"
        )
    return str(error)


def run(main: Callable[[], None], stopped: str = STOPPED) -> None:
    """Run a command: what the user can mend is one line on standard error, not a traceback.

    `CFTJAX_TRACEBACK=1` shows the traceback as well.

    Args:
        main: the command.
        stopped: what is said after SIGTERM or Ctrl-C, where the work itself says nothing.
    """
    use_compilation_cache()
    devices.keep_freed_memory()
    try:
        with warnings.catch_warnings(), interruption.handled(interruption.terminate, [signal.SIGTERM]):
            warnings.showwarning = show_warning
            devices.refuse_small_memory()
            main()
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; nothing more may be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"\nStopped: {error}" if str(error) else f"\n{stopped}", file=sys.stderr)
        hosts.leave(interruption.exit_code(error))
    except Exception as error:
        several = jax.distributed.is_initialized()
        lost = several and hosts.says_lost(error)
        # An extra that is not installed is the user's to mend, as is a wrong file.
        for_user = lost or devices.says_full(error) or isinstance(error, (ValueError, OSError, ImportError))
        if not several and (not for_user or os.environ.get("CFTJAX_TRACEBACK")):
            raise
        if not for_user or os.environ.get("CFTJAX_TRACEBACK"):
            traceback.print_exc()
        print(f"cftjax: error: {hosts.LOST if lost else ''}{printable(words(error), keep=LINES)}", file=sys.stderr)
        hosts.leave(1)
