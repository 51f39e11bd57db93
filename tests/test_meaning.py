import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cftjax.data import labels, meaning
from cftjax.data.reading.problems import DataError, Problems

NAN = np.nan


def read(columns, words="ask", **options):
    """The labels of columns given as name -> values, and what is told of them; DataError with what is asked."""
    problems = Problems("labels.csv")
    values = np.array(list(columns.values()), np.float32).T
    found, told = meaning.read(values, list(columns), meaning.parse(words), problems, **options)
    problems.raise_if_any()
    return found.T.tolist(), told


def asked(columns, words="ask", **options):
    with pytest.raises(DataError) as caught:
        read(columns, words, **options)
    return str(caught.value)


def test_columns_that_show_what_they_mean_are_read_without_a_question():
    columns = {"plain": [1, 0, 1, 0], "partial": [1, NAN, 0, NAN], "hedged": [1, 0, -1, NAN], "none": [NAN] * 4}
    found, told = read(columns)
    np.testing.assert_array_equal(found, list(columns.values()))
    assert told == ["-1 is uncertain and 0 is negative in hedged"]


@pytest.mark.parametrize("values", [[1, -1, 1, -1], [1, -1, NAN, NAN], [-1, -1, -1, -1]])
def test_minus_one_without_a_zero_is_asked_about_with_the_option_that_answers(values):
    assert asked({"Bald": values}) == (
        "labels.csv: column Bald: -1 stands there and no 0; say what they mean: --data.minus-one negative, uncertain "
        "or unknown."
    )


@pytest.mark.parametrize("values", [[1, 0, -1, 0], [0, -1, 0, -1], [1, 0, -1] + 17 * [0] + [NAN]])
def test_minus_one_beside_zero_and_hardly_a_blank_is_asked_about(values):
    message = asked({"Bald": values})
    assert "one of them may be what nobody said" in message
    assert "--data.minus-one uncertain, unknown or negative-and-zero-unknown" in message


def test_only_the_column_that_does_not_show_it_is_asked_about():
    columns = {"dog": [1, 0, -1, NAN], "Bald": [1, -1, -1, 1], "cat": [1, 0, 0, 1]}
    message = asked(columns)
    assert "column Bald: -1 stands there and no 0" in message
    assert "--data.minus-one 'Bald=negative', or negative, uncertain or unknown" in message
    found, told = read(columns, "Bald=negative")
    np.testing.assert_array_equal(found, [[1, 0, -1, NAN], [1, 0, 0, 1], [1, 0, 0, 1]])
    assert told == ["-1 is uncertain and 0 is negative in dog", "-1 is negative in Bald"]


ANSWERED = {
    "negative": ([1, -1, NAN], [1, 0, NAN]),
    "uncertain": ([1, -1, 0], [1, -1, 0]),
    "unknown": ([1, -1, 0], [1, NAN, 0]),
    "negative-and-zero-unknown": ([1, -1, 0], [1, 0, NAN]),
    "negative-and-zero-uncertain": ([1, -1, 0], [1, 0, -1]),
    "negative-and-zero-negative": ([1, -1, 0], [1, 0, 0]),
}


@pytest.mark.parametrize("answer", meaning.ANSWERS)
def test_every_answer_means_what_it_says(answer):
    written, right = ANSWERED[answer]
    np.testing.assert_array_equal(read({"a": written}, answer)[0], [right])


def test_what_zero_is_said_to_be_holds_also_where_no_minus_one_stands():
    found, told = read({"a": [1, -1, 0], "b": [1, 0, 0]}, "negative-and-zero-unknown")
    np.testing.assert_array_equal(found, [[1, 0, NAN], [1, NAN, NAN]])
    assert told == ["-1 is negative and 0 is unknown in a", "0 is unknown in b"]


def test_negative_alone_says_nothing_of_a_zero_beside_it():
    message = asked({"a": [1, -1, 0], "b": [1, -1, 1]}, "negative")
    assert "column a: 0 stands there as well as -1, which is said to be negative" in message
    assert "negative-and-zero-unknown" in message


def test_a_caller_may_have_every_minus_one_asked_about():
    assert "column a: 0 and -1 stand there;" in asked({"a": [1, 0, -1, NAN]}, always_ask=True)


def test_answers_for_single_columns_may_hold_commas_and_come_before_that_for_all():
    answer = meaning.parse("uncertain, a, b=negative,c=unknown")
    assert (answer.of("a, b"), answer.of("c"), answer.of("d")) == ("negative", "unknown", "uncertain")
    assert meaning.parse("ask") == meaning.parse("refuse") == meaning.Answer()


@pytest.mark.parametrize("words", ["negativ", "a=negativ", "negative;unknown", "=", "negative,,unknown"])
def test_words_that_are_no_answer_are_refused_with_those_that_are(words):
    with pytest.raises(
        ValueError, match=r"--data.minus-one .* is no answer; say negative, uncertain, unknown, negative"
    ):
        meaning.parse(words)


def test_an_answer_for_a_column_that_is_not_there_is_refused_with_the_nearest():
    assert "speaks of 'Blad', which is no category; the table has Bald" in asked({"Bald": [1, -1]}, "Blad=negative")


@given(
    st.lists(st.lists(st.sampled_from([1.0, 0.0, -1.0, NAN]), min_size=3, max_size=3), min_size=1, max_size=30),
    st.sampled_from(["ask", *meaning.ANSWERS]),
)
def test_whatever_is_not_asked_about_is_read_as_the_answer_says(rows, words):
    values = np.array(rows, np.float32)
    problems = Problems("labels.csv")
    found, _ = meaning.read(values, ["a", "b", "c"], meaning.parse(words), problems)
    labels.from_values(found)
    np.testing.assert_array_equal(found == 1, values == 1)
    if not problems and words != "ask":
        minus_one, zero = meaning.ANSWERS[words]
        np.testing.assert_array_equal(found[values == -1], np.full((values == -1).sum(), minus_one))
        for column in range(3):
            at_zero = values[:, column] == 0
            expected = 0 if zero is None else zero
            np.testing.assert_array_equal(found[at_zero, column], np.full(at_zero.sum(), expected))
    if not problems and words == "ask":
        np.testing.assert_array_equal(found, values)
