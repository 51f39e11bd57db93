import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cftjax.data.reading import headers
from cftjax.data.reading.problems import DataError
from cftjax.data.table import TableData

TABLE = """path,dog,cat,split,group
a/1.png,1,0,train,p1
a/2.png,,-1,train,p1
"a/3, copy.png",0.0,1.0,valid,p2
b/4.png,-1.0,,test,p3
b/5.png,0,1,train,p4
"""
VALUES = np.array([[1, 0], [np.nan, -1], [0, 1], [-1, np.nan], [0, 1]])
NAMES = ["a/1.png", "a/2.png", "a/3, copy.png", "b/4.png", "b/5.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    for grey, name in enumerate(NAMES):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((3, 2), 10 * grey, np.uint8)).save(root / name)
    return root


def load(folder, content=TABLE, **options):
    content = content.encode() if isinstance(content, str) else content
    (folder / "labels.csv").write_bytes(content)
    return TableData(str(folder / "labels.csv"), **options).load()


def refused(folder, content, **options):
    with pytest.raises(DataError) as caught:
        load(folder, content, **options)
    return str(caught.value)


def values_of(dataset):
    """Values by name, from every split."""
    found = {}
    for records in dataset.splits.values():
        labels = records.labels
        values = np.where(labels.known, labels.labels, np.where(labels.uncertain, -1, np.nan))
        found |= dict(zip(records.names, values, strict=True))
    return found


def assert_is_the_table(dataset):
    assert dataset.categories == ("dog", "cat")
    found = values_of(dataset)
    for name, values in zip(NAMES, VALUES, strict=True):
        np.testing.assert_array_equal(found[name], values)


def test_rows_go_to_their_splits_with_labels_groups_and_images(folder):
    dataset = load(folder)
    assert_is_the_table(dataset)
    assert {split: list(records.names) for split, records in dataset.splits.items()} == {
        "train": [NAMES[0], NAMES[1], NAMES[4]],
        "validation": [NAMES[2]],
        "test": [NAMES[3]],
    }
    assert dataset.splits["train"].groups.tolist() == ["p1", "p1", "p4"]
    np.testing.assert_array_equal(dataset.splits["train"].image(2), np.full((3, 2, 3), 40, np.uint8))
    np.testing.assert_array_equal(dataset.splits["test"].image(0), np.full((3, 2, 3), 30, np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TABLE.encode(),
        TABLE.replace("\n", "\r\n"),
        TABLE.rstrip("\n"),
        TABLE.replace("\n", "\n\n") + "\n\n",
        TABLE.replace("path,dog", " path , dog "),
        ",".join(["", *TABLE.splitlines()[0].split(",")])
        + "\n"
        + "\n".join(f"{i},{line}" for i, line in enumerate(TABLE.splitlines()[1:])),
        TABLE.replace(",-1,", ", -1.00 ,"),
        TABLE.replace("a/2.png,,", "./a//2.png,nan,"),
    ],
    ids=[
        "byte order mark",
        "CRLF",
        "no last line end",
        "blank lines",
        "spaces in the header",
        "saved row index",
        "other spelling of numbers",
        "other spelling of path and blank",
    ],
)
def test_other_ways_to_write_the_same_table_give_the_same_data(folder, content):
    dataset = load(folder, content)
    assert_is_the_table(dataset)
    assert dataset.fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("kind", [pa.float64(), pa.int8(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_gives_the_same_data_as_csv(folder, kind):
    rows = list(csv.reader(io.StringIO(TABLE)))
    columns = dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True))
    table = pa.table(columns)
    for position, column in ((1, "dog"), (2, "cat")):
        numbers = [None if cell == "" else float(cell) for cell in columns[column]]
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            cells = pa.array(numbers, pa.float64()).cast(kind)
        else:
            cells = pa.array(columns[column]).cast(pa.string())
            cells = cells.dictionary_encode() if pa.types.is_dictionary(kind) else cells
        table = table.set_column(position, column, cells)
    pyarrow.parquet.write_table(table, folder / "labels.parquet")
    dataset = TableData(str(folder / "labels.parquet")).load()
    assert_is_the_table(dataset)
    assert dataset.fingerprint == load(folder).fingerprint


def test_boolean_columns_of_parquet_are_labels(folder):
    table = pa.table({"path": NAMES[:2], "dog": pa.array([True, None]), "cat": pa.array([False, True])})
    pyarrow.parquet.write_table(table, folder / "bool.parquet")
    values = values_of(TableData(str(folder / "bool.parquet")).load())
    np.testing.assert_array_equal([values[name] for name in NAMES[:2]], [[1, 0], [np.nan, 1]])


def test_chosen_categories_come_in_the_order_asked_for_and_others_are_not_read(folder):
    dataset = load(folder, TABLE.replace("group", "sex"), categories=("cat", "dog"))
    assert dataset.categories == ("cat", "dog")
    np.testing.assert_array_equal(values_of(dataset)[NAMES[0]], [0, 1])
    assert dataset.splits["train"].groups is None


def test_columns_may_have_other_names(folder):
    other = TABLE.replace("path,", "file,").replace("split,group", "fold,patient")
    dataset = load(folder, other, path_column="file", split_column="fold", group_column="patient")
    assert_is_the_table(dataset)
    assert dataset.fingerprint == load(folder).fingerprint


def test_without_a_split_column_everything_is_train(folder):
    dataset = load(folder, "path,dog\na/1.png,1\nb/4.png,\n")
    assert list(dataset.splits) == ["train"]
    assert list(dataset.splits["train"].names) == ["a/1.png", "b/4.png"]


def test_images_may_lie_in_another_folder_and_paths_may_be_absolute(folder, tmp_path):
    content = f"path,dog\n{folder / 'a/1.png'},1\na/2.png,0\n"
    (tmp_path / "mine.csv").write_text(content)
    data = TableData(str(tmp_path / "mine.csv"), images=str(folder))
    assert list(data.load().splits["train"].names) == NAMES[:2]
    np.testing.assert_array_equal(data.load().splits["train"].image(1), np.full((3, 2, 3), 10, np.uint8))


def test_a_change_of_label_name_order_or_group_changes_the_fingerprint(folder):
    changed = [TABLE.replace("b/5.png,0,1", "b/5.png,0,0"), TABLE.replace("dog", "wolf"), TABLE.replace("p4", "p1")]
    prints = [load(folder, content).fingerprint for content in [TABLE, *changed]]
    prints.append(load(folder, categories=("cat", "dog")).fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (TABLE.replace("path", "Paths"), ["column path", "nearest is Paths"]),
        (TABLE.replace(",", ";"), ["line 1", "separated by ';'", "commas"]),
        (TABLE.replace("a/1.png,1", "a/1.png,2"), ["row 2", "column dog", "'2'", "is no label"]),
        (TABLE.replace("a/1.png,1", "a/1.png,yes"), ["row 2", "column dog", "'yes'"]),
        (TABLE.replace("a/1.png,1", "a/1.png,inf"), ["row 2", "column dog", "'inf'"]),
        (TABLE.replace("b/4", "b/missing"), ["row 5", "column path", "no such file", "missing.png"]),
        (TABLE.replace("b/4.png", "c/4.png"), ["row 5", "no such file"]),
        (TABLE.replace("b/4.png", "../b/4.png"), ["row 5", "outside"]),
        (TABLE.replace("b/4.png", "/etc/passwd"), ["row 5", "outside"]),
        (TABLE.replace("b/4.png", ""), ["row 5", "names no file"]),
        (TABLE.replace("b/4.png", "b/\0.png"), ["row 5", "names no file"]),
        (TABLE.replace("b/4.png", "b/" + 300 * "4"), ["row 5", "no such file"]),
        (TABLE.replace("b/4.png", "a/./1.png"), ["row 5", "second time, after row 2"]),
        (TABLE.replace("test", "tset"), ["row 5", "column split", "'tset'"]),
        (TABLE.replace("train", "test"), ["column split", "train"]),
        (TABLE.replace("p3", ""), ["row 5", "column group", "blank"]),
        (TABLE.replace("-1.0,,test,p3", "-1.0,,test,p3,7"), ["row 5", "6 cells where the header has 5"]),
        (TABLE.replace("cat", "dog"), ["column dog", "twice"]),
        (TABLE.splitlines()[0], ["no rows"]),
        ("path,split\na/1.png,train\n", ["category"]),
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        (TABLE.replace("b/4", "b/ü").encode("latin1"), ["line 5", "not UTF-8"]),
        (TABLE.replace("dog", "dög").encode("latin1"), ["line 1", "not UTF-8"]),
        (TABLE.encode() + b"c,\xc3", ["line 7", "not UTF-8"]),
        (TABLE.encode("utf-16"), ["line 1", "not UTF-8"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(folder, content, parts):
    message = refused(folder, content)
    assert str(folder) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_encoding_is_judged_alike_whatever_the_size_of_the_blocks(folder, monkeypatch, size):
    monkeypatch.setattr(headers, "DECODED_BYTES", size)
    assert load(folder, TABLE.replace("dog", "дог")).categories == ("дог", "cat")
    assert "line 4 is not UTF-8" in refused(folder, TABLE.encode().replace(b"a/3", b"a/\xf0\x9f\n"))


def test_all_problems_come_in_one_message(folder):
    content = TABLE.replace("a/1.png,1", "a/1.png,2").replace("b/4.png", "b/none.png").replace("valid", "vlaid")
    message = refused(folder, content)
    assert "3 problems" in message
    assert all(part in message for part in ("row 2, column dog", "row 4, column split", "row 5, column path"))


def test_row_numbers_count_blank_and_broken_lines(folder):
    content = TABLE.replace("a/2.png", "\na/2.png,0,0,0,0,0\na/2.png").replace("b/5.png,0", "b/5.png,9")
    message = refused(folder, content)
    assert "row 4: 6 cells" in message
    assert "row 8, column dog" in message


def test_a_column_full_of_words_is_one_problem_with_the_option_that_chooses_columns(folder):
    message = refused(folder, TABLE.replace("group", "sex").replace("p1", "M").replace("p2", "M"))
    assert "row 2, column sex: 'M' and 2 other values (and in 4 more rows) are no labels" in message
    assert "--data.categories" in message
    assert "\n" not in message


def test_a_chosen_category_that_is_not_there_is_named_with_the_nearest(folder):
    assert "column Dogs: no such column in the table; the nearest is dog" in refused(
        folder, TABLE, categories=("Dogs",)
    )


def test_a_category_chosen_twice_is_refused(folder):
    assert "chosen twice" in refused(folder, TABLE, categories=("dog", "dog"))


def test_a_category_without_any_label_is_named_in_a_warning(folder):
    with pytest.warns(UserWarning, match="no training image has a label for bird, cow"):
        dataset = load(folder, "path,bird,dog,cow\na/1.png,,1,\na/2.png,,0,\n")
    assert dataset.categories == ("bird", "dog", "cow")


def test_missing_files_are_let_through_where_the_check_is_off(folder):
    dataset = load(folder, TABLE.replace("b/4", "b/none"), check_files=False)
    assert len(dataset.splits["test"]) == 1
    with pytest.raises(ValueError, match=r"none\.png"):
        dataset.splits["test"].image(0)


def test_other_files_are_refused_cleanly(folder):
    with pytest.raises(DataError, match=r"no such file.*labels"):
        TableData(str(folder / "lables.csv")).load()
    with pytest.raises(DataError, match="cannot be read as a table"):
        TableData(str(folder / "a")).load()
    (folder / "fake.parquet").write_text(TABLE)
    with pytest.raises(DataError, match="cannot be read as a table"):
        TableData(str(folder / "fake.parquet")).load()
    pyarrow.parquet.write_table(pa.table({"path": NAMES[:1], "dog": [[1]]}), folder / "list.parquet")
    with pytest.raises(DataError, match=r"column dog: type list.*holds no labels"):
        TableData(str(folder / "list.parquet")).load()


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@pytest.mark.filterwarnings("ignore:.*no training image has a label")
def test_damaged_tables_give_data_or_a_clean_error(folder, data):
    content = bytearray(TABLE.encode())
    pieces = st.one_of(st.binary(max_size=4), st.sampled_from([b",", b'"', b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b"1"]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 6)))
        content[start:end] = data.draw(pieces)
    try:
        dataset = load(folder, bytes(content))
    except DataError:
        return
    for records in dataset.splits.values():
        assert records.labels.shape == (len(records), len(dataset.categories))
        assert records.image(0).shape == (3, 2, 3)
