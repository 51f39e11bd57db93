"""Hypothesis strategies that damage valid files, byte by byte or entry by entry."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from cftjax import types
from cftjax.data.reading.problems import DataError

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**70, 1.0, 0.5, float("nan"), "", " ", "../x.jpg", "/x.jpg", "a\0b", "x" * 300, "é/\u2028"]),
    st.text(max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(st.sampled_from(["id", "name"]), st.integers(0, 9), max_size=2),
)
CHUNKS = (b"-1", b"0", b"\xff", b"\r\n", b"../", b"\0", b"[" * 3000)


def check_sound_or_refused(load: Callable[[], types.Dataset]) -> None:
    """Loading gives a sound data set or raises DataError, and nothing else."""
    try:
        dataset = load()
    except DataError:
        return
    assert set(dataset.splits) >= {"train", "test"}
    for records in dataset.splits.values():
        assert len(records) > 0
        assert records.labels.shape == (len(records), len(dataset.categories))
        assert not (records.labels.labels & ~records.labels.known).any()
        assert not (records.labels.uncertain & records.labels.known).any()
        assert not any(name.startswith("/") or ".." in name.split("/") for name in records.names)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with one to three ranges taken out, doubled or overwritten."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 20, len(data)))) if draw(st.booleans()) else len(data)
        chunk = draw(
            st.sampled_from([b"", data[start:end] * 2, b"-1", b"0", b"\xff", b"\r\n", b"../", b"\0", b"[" * 3000])
        )
        data = data[:start] + chunk + data[end:]
    return data


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON document with one to three of its values replaced, taken out or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = tree, draw(st.sampled_from(sorted(tree))) if tree else None
        while key is not None and isinstance(parent[key], dict | list) and parent[key] and draw(st.booleans()):
            parent = parent[key]
            keys = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
            key = draw(st.sampled_from(keys))
        if key is None:
            break
        change = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if change == "remove":
            del parent[key]
        elif change == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = draw(JUNK)
    return tree
