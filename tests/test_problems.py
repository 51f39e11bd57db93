"""Collected problems, and looking for files."""

import os
from pathlib import Path

import pytest

from cftjax import text
from cftjax.data.reading import problems
from cftjax.data.reading.problems import DataError, Problems


def test_no_problem_raises_nothing():
    noted = Problems("a.csv")
    noted.raise_if_any()
    assert len(noted) == 0


def test_one_problem_is_one_sentence_with_file_row_column_and_mend():
    noted = Problems(Path("a.csv"))
    noted.add("'x' is no label", row=7, column="cat", mend="write 1 or 0")
    with pytest.raises(DataError) as caught:
        noted.raise_if_any()
    assert str(caught.value) == "a.csv: row 7, column cat: 'x' is no label; write 1 or 0."
    assert isinstance(caught.value, ValueError)


def test_the_first_twenty_are_shown_in_order_and_the_rest_counted():
    noted = Problems("a.csv")
    for row in range(1, 1001):
        noted.add("is blank", row=row)
    with pytest.raises(DataError) as caught:
        noted.raise_if_any()
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.csv: 1000 problems:"
    assert [line.strip() for line in lines[1:21]] == [f"row {row}: is blank." for row in range(1, 21)]
    assert lines[21].strip() == "and 980 more."
    assert len(lines) == 22
    assert len(noted) == 1000


def test_exactly_twenty_are_all_shown():
    noted = Problems("a.csv")
    for row in range(20):
        noted.add("is blank", row=row)
    with pytest.raises(DataError, match="20 problems") as caught:
        noted.raise_if_any()
    assert "more" not in str(caught.value)


def test_values_are_shown_on_one_line_and_cut():
    assert text.shown("a\nb") == r"'a\nb'"
    assert len(text.shown("x" * 10_000)) == text.VALUE_LENGTH
    assert "\0" not in text.shown("a\0b")


def test_a_missing_file_names_the_nearest_that_exists(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").touch()
    with pytest.raises(DataError, match=r"instances_train2014\.json: no such file.* has instances_train2017\.json"):
        problems.require(tmp_path / "annotations" / "instances_train2014.json")
    with pytest.raises(DataError, match=r"has no Annotation; it has annotations\."):
        problems.require(tmp_path / "Annotation" / "x.json")
    with pytest.raises(DataError, match="has annotations"):
        problems.require(tmp_path / ("x" * 300))


def test_an_empty_folder_says_that_it_is_empty(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        problems.require(tmp_path / "a.csv")


def test_names_beyond_the_first_five_are_counted(tmp_path):
    for index in range(8):
        (tmp_path / f"{index}").touch()
    with pytest.raises(DataError, match="has 0, 1, 2, 3, 4 and 3 more"):
        problems.require(tmp_path / "qqqqqqqq")


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        problems.read_bytes(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a folder is needed"):
        problems.list_names(tmp_path / "file")


def test_lines_lose_their_ends_a_byte_order_mark_and_blank_lines_at_the_end(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffa b\r\n\r\n\u2028c\n\n\n".encode())
    assert problems.read_lines(file) == ["a b", "", "\u2028c"]
    file.write_bytes(b"\n \n")
    assert problems.read_lines(file) == []


def test_bytes_that_are_no_text_are_placed(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"ab\ncd\n\xff\n")
    with pytest.raises(DataError, match=r"byte 6 \(line 3\) is not UTF-8"):
        problems.read_lines(file)


def test_names_of_a_folder_are_sorted(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert problems.list_names(tmp_path) == sorted(os.listdir(tmp_path))
