import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from cftjax.data.reading.problems import DataError
from cftjax.data.table import TableData

ROWS = ["a.png,train,1,0", "b.png,train,0,1", "c.png,test,1,1"]


@pytest.fixture
def load(tmp_path):
    """Load a table given as header and rows; its images are there."""
    for name in "abc":
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / f"{name}.png")

    def of(header, rows=ROWS, **options):
        (tmp_path / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
        return TableData(str(tmp_path / "labels.csv"), **options).load()

    return of


def refused(load, *words, **options):
    with pytest.raises(DataError) as caught:
        load(*words, **options)
    return str(caught.value)


def test_what_each_column_is_taken_as_is_said_in_one_line(load):
    assert load("path,split,dog,cat").notes == (
        "labels.csv: path from path; split from split; no groups; 2 categories: dog, cat.",
    )
    chosen = load("path,split,dog,cat", categories=("cat",))
    assert chosen.notes == (
        "labels.csv: path from path; split from split; no groups; 1 categories: cat; not read: dog.",
    )


@pytest.mark.parametrize("position", [2, 3])
def test_a_label_column_without_a_name_is_refused_by_its_place(load, position):
    header = ["path", "split", "dog", "cat"]
    header[position] = " "
    assert f"column {position + 1} has values, such as" in refused(load, ",".join(header))


def test_a_first_column_that_counts_rows_and_a_blank_one_go_unsaid(load):
    counted = load(",path,split,dog,cat", [f"{i},{row}" for i, row in zip((5, 2, 9), ROWS, strict=True)])
    blank = load("path,split,dog,cat,", [f"{row}," for row in ROWS])
    pandas = load("Unnamed: 0,path,split,dog,cat", [f"{i},{row}" for i, row in enumerate(ROWS)])
    for dataset in (counted, blank, pandas):
        assert dataset.categories == ("dog", "cat")


def test_a_first_column_of_labels_without_a_name_is_refused(load):
    assert "column 1 has values" in refused(
        load, ",path,split,dog,cat", [f"{i % 2},{row}" for i, row in enumerate(ROWS)]
    )
    pandas = refused(load, "path,split,dog,Unnamed: 3")
    assert "no name (pandas calls it 'Unnamed: 3')" in pandas


def test_the_index_that_pandas_keeps_in_parquet_is_left_out(load, tmp_path):
    columns = {"path": ["a.png", "b.png", "c.png"], "dog": [1, 0, 1], "__index_level_0__": [7, 0, 4]}
    for index in ([7, 0, 4], ["x", "y", "z"]):
        pyarrow.parquet.write_table(pa.table(columns | {"__index_level_0__": index}), tmp_path / "labels.parquet")
        assert TableData(str(tmp_path / "labels.parquet")).load().categories == ("dog",)
    pyarrow.parquet.write_table(pa.table(columns | {"__index_level_0__": [1, 0, 0]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="column 3 has values, such as '1', and no name"):
        TableData(str(tmp_path / "labels.parquet")).load()


@pytest.mark.parametrize("role", ["group", "split"])
def test_a_category_that_bears_the_name_of_a_role_is_asked_about_and_both_answers_work(load, role):
    rows = ["a.png,1,0", "b.png,0,1", "c.png,1,1"]
    message = refused(load, f"path,{role},cat", rows)
    assert f"column {role}: holds nothing but labels" in message
    assert f"--data.{role}-column ''" in message
    assert load(f"path,{role},cat", rows, **{f"{role}_column": ""}).categories == (role, "cat")
    if role == "group":
        assert load("path,group,cat", rows, group_column="group").splits["train"].groups.tolist() == ["1", "0", "1"]
    else:
        assert "'1' is no split (and so are 2 more rows)" in refused(load, "path,split,cat", rows, split_column="split")


def test_a_category_named_path_is_not_taken_for_the_images(load):
    rows = ["1,a.png", "0,b.png", "1,c.png"]
    assert "--data.path-column" in refused(load, "path,file", rows)
    assert load("path,file", rows, path_column="file").categories == ("path",)


def test_numbers_that_are_no_labels_are_one_line_with_the_options(load):
    rows = [f"{name}.png,{fold},{age},1" for name, fold, age in zip("abc", (0, 1, 2), (41, 63, 7), strict=True)]
    message = refused(load, "path,fold,age,cat", rows)
    assert message.count("\n") == 2
    assert "column fold: '2' is no label" in message
    assert "column age: '41' and 2 other values (and in 2 more rows) are no labels" in message
    assert message.count("--data.categories (of path, fold, age, cat)") == 2
    assert load("path,fold,age,cat", rows, categories=("cat",)).categories == ("cat",)


def test_labels_under_the_name_of_something_else_are_told(load):
    with pytest.warns(UserWarning, match=r"'Sex' is taken as a category.*--data\.categories"):
        assert load("path,split,Sex,cat").categories == ("Sex", "cat")
    assert load("path,split,Sex,cat", categories=("Sex", "cat")).categories == ("Sex", "cat")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"PK\x03\x04rest", "is an Excel file or another archive, not CSV; save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "is an old Excel file"),
        (b"\x1f\x8brest", "compressed by gzip"),
        (b"PAR1rest", "is a Parquet file; give it a name that ends in .parquet"),
        (b"path\tdog\na.png\t1\n", "line 1 is 'path\\tdog': its cells are separated by '\\t'"),
        (b"path;dog\na.png;0,5\n", "separated by ';'"),
        (b"# made in 2024\npath,dog\na.png,1\n", "line 1 is '# made in 2024' alone, the next has 2 cells"),
        (b"\n# made in 2024, by me, at home\npath,dog\na.png,1\n", "line 2 is a comment"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path, content, part):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        TableData(str(tmp_path / "labels.csv")).load()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_lines_before_the_header_are_passed_over_and_rows_keep_their_numbers(load):
    assert load("\n,,,\npath,split,dog,cat").categories == ("dog", "cat")
    assert "row 5, column dog: '7' is no label" in refused(load, "\n\npath,split,dog,cat", [ROWS[0], "b.png,train,7,1"])


@pytest.mark.parametrize("cell", ["0_1", "1_0", "true", "yes", "0.5", "2", "1e", "one", "NA", "null", "0x1", "- 1"])
def test_cells_that_are_no_labels_are_refused(load, cell):
    assert f"row 3, column dog: {cell!r} is no label" in refused(
        load, "path,split,dog,cat", [ROWS[0], f"b.png,train,{cell},1"]
    )


@pytest.mark.parametrize(("cell", "value"), [("+1", 1), ("1.000", 1), ("1e0", 1), ("-0.0", 0), (" 0 ", 0), ("00", 0)])
def test_numbers_in_other_spellings_are_labels(load, cell, value):
    train = load("path,split,dog,cat", [f"a.png,train,{cell},1"]).splits["train"].labels
    assert (train.known[0, 0], train.labels[0, 0]) == (True, bool(value))
