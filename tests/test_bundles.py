import json

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cftjax.embeddings import bundles

N, D = 6, 3
CATEGORIES = ("cat", "dog")


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {"kernel": rng.normal(size=(2, D)).astype(np.float32), "bias": np.array([0.5, -0.5], np.float32)}
    for split in ("train", "validation"):
        made[f"{split}_z"] = rng.normal(size=(N, D)).astype(np.float32)
        made[f"{split}_labels"] = np.array([[1, 0], [0, np.nan], [np.nan, 1], [0, 0], [1, 1], [0, 1]], np.float32)
    made |= changes
    return {name: array for name, array in made.items() if array is not None}


def npz(folder, **changes):
    np.savez(folder / "bundle.npz", **arrays(**changes))
    return folder / "bundle.npz"


def tensors(folder, metadata=None, **changes):
    save_file(arrays(**changes), folder / "bundle.safetensors", metadata)
    return folder / "bundle.safetensors"


def head(folder, **changes):
    made = {"weight": arrays()["kernel"], "bias": arrays()["bias"]} | changes
    save_file({name: array for name, array in made.items() if array is not None}, folder / "head.safetensors")
    return folder / "head.safetensors"


def rows(**changes):
    given = arrays()
    z = np.concatenate([given["train_z"], given["validation_z"]])
    labels = np.concatenate([given["train_labels"], given["validation_labels"]])
    made = {"split": ["train"] * N + ["val"] * N, "z": list(z)}
    made |= {name: pa.array(labels[:, c], from_pandas=True) for c, name in enumerate(CATEGORIES)}
    made |= changes
    return {name: column for name, column in made.items() if column is not None}


def table(folder, **changes):
    pyarrow.parquet.write_table(pa.table(rows(**changes)), folder / "bundle.parquet")
    return folder / "bundle.parquet"


def assert_same(bundle, other):
    np.testing.assert_array_equal(bundle.heads.kernel, other.heads.kernel)
    np.testing.assert_array_equal(bundle.heads.bias, other.heads.bias)
    assert bundle.embeddings.keys() == other.embeddings.keys()
    for split, x in bundle.embeddings.items():
        for name in ("z", "labels", "known", "uncertain"):
            np.testing.assert_array_equal(getattr(x, name), getattr(other.embeddings[split], name))


def test_the_three_formats_hold_the_same(tmp_path):
    read = bundles.read(npz(tmp_path))
    assert read.categories == ("0", "1")
    assert list(read.embeddings) == ["train", "validation"]
    assert read.embeddings["train"].known.tolist() == (~np.isnan(arrays()["train_labels"])).tolist()
    assert_same(bundles.read(tensors(tmp_path)), read)
    in_table = bundles.read(table(tmp_path), head=head(tmp_path))
    assert in_table.categories == CATEGORIES
    assert_same(in_table, read)


def test_embeddings_in_columns_are_ordered_by_number_not_by_name(tmp_path):
    z = np.random.default_rng(0).normal(size=(2 * N, 11)).astype(np.float32)
    columns = {f"z_{i}": z[:, i] for i in reversed(range(11))}
    read = bundles.read(table(tmp_path, z=None, **columns), head=head(tmp_path, weight=np.zeros((2, 11), np.float32)))
    np.testing.assert_array_equal(read.embeddings["train"].z, z[:N])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_of_any_width_become_float32(tmp_path, dtype):
    changes = {name: array.astype(dtype) for name, array in arrays().items()}
    read = bundles.read(tensors(tmp_path, **changes))
    assert read.embeddings["train"].z.dtype == read.heads.kernel.dtype == np.float32
    np.testing.assert_array_equal(read.embeddings["train"].z, changes["train_z"].astype(np.float32))
    assert read.embeddings["train"].known.sum() == 10


def test_groups_and_names_come_along(tmp_path):
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    read = bundles.read(npz(tmp_path, train_groups=patients, categories=np.array(CATEGORIES)))
    assert read.categories == CATEGORIES
    assert read.embeddings["train"].groups.tolist() == patients.tolist()
    assert read.embeddings["validation"].groups is None
    numbers = np.arange(N)
    read = bundles.read(tensors(tmp_path, {"categories": json.dumps(CATEGORIES)}, validation_groups=numbers))
    assert read.categories == CATEGORIES
    assert read.embeddings["validation"].groups.tolist() == numbers.tolist()
    read = bundles.read(table(tmp_path, group=[*patients, *patients]), head=head(tmp_path))
    assert read.embeddings["validation"].groups.tolist() == patients.tolist()


def test_a_last_layer_of_its_own_may_bear_the_names_of_torch_or_ours(tmp_path):
    bare = npz(tmp_path, kernel=None, bias=None)
    named = bundles.read(bare, head=head(tmp_path))
    np.savez(tmp_path / "head.npz", kernel=arrays()["kernel"], bias=arrays()["bias"], categories=CATEGORIES)
    ours = bundles.read(bare, head=tmp_path / "head.npz")
    assert_same(named, ours)
    assert ours.categories == CATEGORIES


@pytest.mark.parametrize(("minus_one", "uncertain"), [("uncertain", 1), ("unknown", 0)])
def test_minus_one_means_what_the_caller_says(tmp_path, minus_one, uncertain):
    labels = arrays()["train_labels"].copy()
    labels[3, 1] = -1
    columns = {name: [*labels[:, c], *labels[:, c]] for c, name in enumerate(CATEGORIES)}
    files = [(npz(tmp_path, train_labels=labels), None), (table(tmp_path, **columns), head(tmp_path))]
    for file, last_layer in files:
        train = bundles.read(file, head=last_layer, minus_one=minus_one).embeddings["train"]
        assert train.uncertain.sum() == uncertain
        assert not train.known[3, 1]
        with pytest.raises(
            ValueError, match=r"column (1|dog): 0 and -1 stand there; .*--minus-one '.*=uncertain', or uncertain"
        ):
            bundles.read(file, head=last_layer)


def test_a_change_of_anything_read_changes_the_fingerprint(tmp_path):
    def prints():
        return bundles.fingerprint(npz(tmp_path), head(tmp_path), "refuse")

    made = {
        prints(),
        bundles.fingerprint(npz(tmp_path), None, "refuse"),
        bundles.fingerprint(npz(tmp_path), head(tmp_path), "unknown"),
        bundles.fingerprint(npz(tmp_path, bias=np.zeros(2)), head(tmp_path), "refuse"),
        bundles.fingerprint(npz(tmp_path), head(tmp_path, bias=np.zeros(2, np.float32)), "refuse"),
    }
    assert len(made) == 5
    assert prints() == prints()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": None}, r"lacks kernel; it holds .*name its file with --head"),
        ({"train_z": None}, "lacks train_z"),
        ({"validation_z": None}, "lacks validation_z"),
        ({"valid_z": np.zeros((N, D))}, "valid_z is no array of a bundle; rename it to validation_z"),
        ({"train_z": np.zeros((N, 4), np.float32)}, r"train_z \(6, 4\) must be \[n 3\]"),
        ({"train_z": np.zeros((0, D), np.float32)}, r"train_z \(0, 3\) has no rows"),
        ({"train_z": np.full((N, D), "a")}, "train_z, of type <U1, holds no numbers"),
        ({"train_labels": np.full((N, 2), -1.0)}, "column 0, 1: 0 and -1 stand there"),
        ({"train_labels": np.full((N, 2), 2.0)}, "train_labels: labels other than 1, 0"),
        ({"train_labels": np.zeros(N)}, r"train_labels \(6,\) must be \(6, 2\)"),
        ({"validation_z": np.full((N, D), np.inf, np.float32)}, "validation_z .*not finite, first in row 0"),
        ({"validation_z": np.full((N, D), 1e300)}, "validation_z .*not finite"),
        ({"train_groups": np.zeros(2, int)}, r"train_groups \(2,\) of type int64 must be \(6,\)"),
        ({"train_groups": np.zeros(N)}, "train_groups .* integers or strings"),
        ({"kernel": np.zeros((D, 2), np.float32)}, r"kernel \(3, 2\).*it is \[d c\].*save kernel\.T"),
        ({"kernel": np.full((2, D), np.nan)}, "kernel has a value that is not finite"),
        ({"bias": np.zeros(3)}, r"bias \(3,\) \[c\]"),
        ({"categories": np.array(["a", "a"])}, "categories must be 2 different names"),
        ({"kernel": np.array([{"a": 1}], object)}, "not a readable"),
    ],
)
def test_wrong_arrays_are_refused_with_file_and_array(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as refused:
        bundles.read(npz(tmp_path, **change))
    assert str(refused.value).startswith(str(tmp_path / "bundle.npz"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "column split: no such column"),
        ({"split": ["train"] * 11 + ["exam"]}, "row 12, column split: 'exam' is no split"),
        ({"z": None}, "no column has embeddings"),
        ({"z": None, "z_0": [0.0] * 12, "z_2": [0.0] * 12}, "z_0 to z_2 do not count"),
        ({"z": None, "z_0": ["a"] * 12}, "column z_0: type string is no number"),
        ({"z": [[0.0] * D] * 11 + [[0.0]]}, "row 12, column z: the list has 1 numbers where the first row has 3"),
        ({"z": [[0.0] * D] * 11 + [None]}, "row 12, column z: the list is blank"),
        ({"z": [[0.0] * D] * 11 + [[0.0, None, 0.0]]}, "row 12, column z: an embedding is blank or not finite"),
        ({"z": [1.0] * 12}, "column z: type double is no list of numbers"),
        ({"dog": [2] * 12}, "row 1, column dog: 2 .*is no label"),
        (
            {"dog": [-1] * 12},
            "column dog: -1 stands there and no 0; .*--minus-one 'dog=negative', or negative, uncertain or unknown",
        ),
        ({"dog": None}, r"kernel \(2, 3\) must be \(1, 3\)"),
        ({"group": [""] * 12}, "column group: the cell is blank"),
    ],
)
def test_a_wrong_table_is_refused_with_row_and_column(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        bundles.read(table(tmp_path, **change), head=head(tmp_path))


def test_what_no_format_allows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"bundle\.parquet: a table holds no last layer; name one with --head"):
        bundles.read(table(tmp_path))
    with pytest.raises(ValueError, match="holds kernel and bias as well as --head"):
        bundles.read(npz(tmp_path), head=head(tmp_path))
    with pytest.raises(ValueError, match=r"head\.safetensors: needs one kernel \[c d\] and one bias"):
        bundles.read(table(tmp_path), head=head(tmp_path, bias=None))
    with pytest.raises(ValueError, match="no such file"):
        bundles.read(tmp_path / "absent.npz")
    (tmp_path / "bundle.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"bundle\.pt: ends in none of \.npz, \.safetensors, \.parquet"):
        bundles.read(tmp_path / "bundle.pt")
    (tmp_path / "torn.safetensors").write_bytes(tensors(tmp_path).read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"torn\.safetensors is not a readable"):
        bundles.read(tmp_path / "torn.safetensors")
    np.savez(tmp_path / "head.npz", kernel=arrays()["kernel"], bias=arrays()["bias"], categories=CATEGORIES[::-1])
    with pytest.raises(ValueError, match=r"rows are dog, cat, .* columns .* are cat, dog"):
        bundles.read(table(tmp_path), head=tmp_path / "head.npz")


@given(labels=st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, np.nan]), min_size=2, max_size=2), min_size=1))
def test_every_label_is_one_of_positive_negative_uncertain_and_unknown(tmp_path_factory, labels):
    values = np.array(labels, np.float32)
    file = npz(tmp_path_factory.getbasetemp(), train_z=np.zeros((len(values), D)), train_labels=values)
    train = bundles.read(file, minus_one="uncertain").embeddings["train"]
    back = np.where(train.known, train.labels, np.where(train.uncertain, -1, np.nan))
    np.testing.assert_array_equal(back, values)


def as_entries(split, values):
    """A table of labels as the three arrays of entries, in an order of chance."""
    rows, columns = np.nonzero(~np.isnan(values))
    order = np.random.default_rng(3).permutation(len(rows))
    parts = (rows[order], columns[order], values[rows, columns][order].astype(np.int8))
    return {f"{split}_{part}": array for part, array in zip(bundles.entries.PARTS, parts, strict=True)}


def with_entries(**changes):
    made = arrays()
    for split in ("train", "validation"):
        made |= as_entries(split, made.pop(f"{split}_labels"))
    return {name: array for name, array in (made | changes).items() if array is not None}


def folder_of(path, made):
    path.mkdir(exist_ok=True)
    for name, array in made.items():
        np.save(path / f"{name}.npy", array)
    return path


def test_labels_that_were_given_alone_say_the_same_as_a_table_of_them(tmp_path):
    whole, few = bundles.read(npz(tmp_path)), tmp_path / "few.npz"
    np.savez(few, **with_entries())
    # One split may have the one and another the other.
    mixed = tmp_path / "mixed.npz"
    assert_same(bundles.read(few), whole)
    names = [f"train_{part}" for part in bundles.entries.PARTS]
    np.savez(mixed, **with_entries(**dict.fromkeys(names), train_labels=arrays()["train_labels"]))
    assert_same(bundles.read(mixed), whole)


@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_folder_of_arrays_is_read_as_memory_maps(tmp_path, entries, kind):
    made = with_entries() if entries else arrays()
    made |= {f"{split}_z": made[f"{split}_z"].astype(kind) for split in ("train", "validation")}
    folder = folder_of(tmp_path / "bundle", made | {"categories": np.array(CATEGORIES)})
    read = bundles.read(folder)
    assert isinstance(read.embeddings["train"].z, np.memmap)
    assert read.categories == CATEGORIES
    np.testing.assert_array_equal(read.embeddings["train"].z, made["train_z"])
    np.testing.assert_array_equal(read.embeddings["train"].known, ~np.isnan(arrays()["train_labels"]))
    before = bundles.fingerprint(folder, None, "ask")
    assert bundles.fingerprint(folder, None, "ask") == before
    np.save(folder / "bias.npy", arrays()["bias"] + 1)
    assert bundles.fingerprint(folder, None, "ask") != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_label_rows": np.zeros(3, int)}, r"must be of one length \[m\]"),
        ({"train_label_rows": None}, "lacks train_label_rows"),
        ({"train_label_columns": np.full(10, 2)}, r"train_label_columns holds 2, and is not in 0 to 1"),
        ({"train_label_columns": np.full(10, -1)}, r"train_label_columns holds -1, and is not in 0 to 1"),
        ({"train_label_rows": np.zeros(10)}, "train_label_rows, of type float64, must hold whole numbers"),
        ({"train_label_values": np.full(10, 2)}, "train_label_values must be 1, 0 or -1.*leave out what is unknown"),
        ({"train_labels": np.zeros((N, 2))}, "holds train_labels as well as train_label_rows"),
        ({"train_label_values": np.full(10, -1)}, "0 and -1 stand there.*--minus-one"),
    ],
)
def test_entries_that_are_no_labels_are_refused_by_name(tmp_path, changes, message):
    folder = folder_of(tmp_path / "bundle", with_entries(**changes))
    with pytest.raises(bundles.DataError, match=message):
        bundles.read(folder)


@pytest.mark.parametrize(
    "words", ["negative", "uncertain", "unknown", "negative-and-zero-unknown", "dog=unknown,negative"]
)
def test_a_minus_one_among_entries_is_what_it_is_in_a_table(tmp_path, words):
    values = np.array([[1, 0], [-1, np.nan], [np.nan, 1], [-1, -1], [1, 1], [-1, 0]], np.float32)
    np.savez(tmp_path / "few.npz", **with_entries(**as_entries("train", values)))
    both = []
    for file in (npz(tmp_path, train_labels=values), tmp_path / "few.npz"):
        try:
            both.append(bundles.read(file, minus_one=words))
        except bundles.DataError as error:
            both.append(str(error).partition(":")[2])
    if isinstance(both[0], str):
        assert both[0] == both[1]
    else:
        assert both[0].notes == both[1].notes
        assert_same(*both)


def test_a_value_that_is_not_finite_in_a_memory_map_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "ROWS_AT_ONCE", 2)
    z = arrays()["train_z"]
    z[3, 1] = np.inf
    with pytest.raises(bundles.DataError, match="train_z has a value that is not finite, first in row 3"):
        bundles.read(folder_of(tmp_path / "bundle", with_entries(train_z=z)))
