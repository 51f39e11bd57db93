import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score, roc_curve

from cftjax import figures
from cftjax.data.reading.problems import DataError
from cftjax.evaluation import files, readers, readers_table
from cftjax.evaluation.files import Rows
from cftjax.evaluation.readers import Reader
from cftjax.metrics import mean_of
from cftjax.scores.predictions import Truth

CATEGORIES = ("fox", "dog")
ROWS = 60


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    labels, known = rng.random((ROWS, 2)) < 0.4, rng.random((ROWS, 2)) < 0.9
    return Truth(CATEGORIES, labels, known, "truth.csv", [f"s{i}" for i in range(ROWS)])


def person(truth, seed, rated=1.0):
    rng = np.random.default_rng(seed)
    return Reader(f"p{seed}", truth.labels ^ (rng.random((ROWS, 2)) < 0.25), rng.random((ROWS, 2)) < rated)


def model(truth, name, seed, decimals=9):
    rng = np.random.default_rng(seed)
    scores = (truth.labels + rng.normal(size=truth.labels.shape)).round(decimals)
    return files.of_array(name, scores, np.ones(2, bool), only_ranks=True)


def test_a_readers_scores_are_scikit_learns_over_what_is_known_and_rated(truth):
    reader = person(truth, 1, rated=0.8)
    (point,) = readers.compare(truth, [], [reader]).points
    for c in range(2):
        told = truth.known[:, c] & reader.rated[:, c]
        labels, present = truth.labels[told, c], reader.present[told, c]
        assert point.sensitivity[c] == recall_score(labels, present)
        assert 1 - point.false_positive_rate[c] == pytest.approx(recall_score(~labels, ~present))
        assert point.precision[c] == precision_score(labels, present)
        assert point.F1[c] == pytest.approx(f1_score(labels, present))


@pytest.mark.parametrize("decimals", [0, 9])
def test_a_reader_lies_below_a_curve_whose_height_at_his_rate_is_greater(truth, decimals):
    people, ranking = [person(truth, seed) for seed in range(8)], model(truth, "m", 1, decimals)
    compared = readers.compare(truth, [ranking], people)
    for c in range(2):
        told = truth.known[:, c]
        scores = ranking.block(slice(c, c + 1)).scores[told, 0]
        false, true, _ = roc_curve(truth.labels[told, c], scores, drop_intermediate=False)
        # A hair to the left and to the right of where it rises upright the curve is single-valued.
        for r, point in enumerate(compared.points):
            near = np.interp(point.false_positive_rate[c] + np.array([-1e-9, 1e-9]), false, true)
            height = near.max()
            assert compared.below["m"][r, c] == (point.sensitivity[c] < height - 1e-6)
    assert 0 < np.mean(compared.below["m"]) < 1


@pytest.mark.parametrize(
    ("at", "height"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (1.0, 1.0)], ids=["upright", "slope", "top", "end"]
)
def test_a_curve_is_upright_where_positives_follow_and_a_slope_where_scores_are_equal(at, height):
    # One positive alone on top, then a positive and a negative of one score, then a negative.
    curve = readers.roc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert curve is not None
    assert readers.height(curve, at) == height
    area = np.trapezoid(curve[1], curve[0])
    assert area == roc_auc_score([1, 1, 0, 0], [3, 2, 2, 1])


def test_on_the_curve_is_not_below_it(truth):
    # Whoever decides by the model's own scores stands on its curve; just above a negative, at the top of a rise.
    ranking = model(truth, "m", 2)
    scores = ranking.block(slice(0, 2)).scores
    negatives = [np.sort(scores[~truth.labels[:, c] & truth.known[:, c], c]) for c in range(2)]
    everything = np.ones((ROWS, 2), bool)
    people = [Reader(str(k), scores > np.array([own[k] for own in negatives]), everything) for k in range(25)]
    assert not readers.compare(truth, [ranking], people).below["m"].any()
    # A little less sensitive at the same rate is below it.
    blind = truth.labels & (scores == np.where(truth.labels & truth.known, scores, -np.inf).max(0))
    missing = [Reader(one.name, one.present & ~blind, everything) for one in people]
    assert readers.compare(truth, [ranking], missing).below["m"].all()


def test_without_a_positive_or_a_negative_nobody_stands_anywhere(truth):
    labels = truth.labels.copy()
    labels[:, 0] = False
    nothing = Truth(CATEGORIES, labels, truth.known, "t", truth.names)
    compared = readers.compare(nothing, [model(truth, "m", 1)], [person(truth, 1)])
    assert np.isnan(compared.points[0].sensitivity[0])
    assert np.isnan(compared.below["m"][0, 0])
    out = {"source": "t", "categories": list(CATEGORIES), "readers": readers_table.to_dict(compared)}
    json.dumps(out, allow_nan=False)
    cells = [column._cells for column in readers_table.below_curves(out, 120, [0, 1]).columns]
    assert cells[1][0] == "-"
    assert out["readers"]["below"]["m"]["mean"] == compared.below["m"][0, 1]


def test_a_perfect_reader_has_whole_numbers_in_the_table(truth):
    everything = np.ones((ROWS, 2), bool)
    compared = readers.compare(truth, [model(truth, "m", 1)], [Reader("best", truth.labels, everything)])
    out = {"source": "t", "categories": list(CATEGORIES), "readers": readers_table.to_dict(compared)}
    console = Console(file=io.StringIO(), width=80)
    console.print(readers_table.operating_points(out, 80, [0, 1]))
    assert console.file.getvalue().count("100.00 / 100.00") == 3


def test_the_mean_is_the_number_of_readers_below_as_the_leaderboard_counts_them(truth):
    compared = readers.compare(truth, [model(truth, "m", 1)], [person(truth, seed) for seed in range(3)])
    found = readers_table.to_dict(compared)["below"]["m"]
    assert found["mean"] == mean_of(compared.below["m"].sum(0))
    assert found["share"] == pytest.approx(found["mean"] / 3)


def test_files_of_readers_find_their_rows_and_columns_by_name(truth, tmp_path):
    file = tmp_path / "bc4.csv"
    lines = ["Study,extra,dog,fox", "other,1,1,1"]
    lines += [f"{name},0,{'' if i == 0 else i % 2},{-1 if i == 1 else 1}" for i, name in enumerate(truth.names)]
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    (reader,) = readers.read([file], files.KEYS, Rows(""), truth)
    assert reader.name == "bc4"
    assert reader.rated[:3].tolist() == [[True, False], [False, True], [True, True]]
    assert reader.present[2:4].tolist() == [[True, False], [True, True]]


def test_a_study_is_present_where_any_of_its_images_is(tmp_path):
    labels = np.array([[True], [False]])
    studies = ["patient1/study1", "patient1/study2"]
    truth = Truth(("fox",), labels, labels | True, "t", studies, unit="studies")
    file = tmp_path / "r.csv"
    rows = [("1/study1/view1", ""), ("1/study1/view2", 0), ("1/study2/view1", 1), ("1/study2/view2", 0)]
    file.write_text("Path,fox\n" + "".join(f"x/patient{name}.jpg,{value}\n" for name, value in rows))
    (reader,) = readers.read([file], files.KEYS, Rows("", re.compile(r"patient\d+/study\d+")), truth)
    assert reader.present.tolist() == [[False], [True]]
    assert reader.rated.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Study,cat\ns0,1\n", "decides none of fox, dog"),
        ("Study,fox\ns0,0.7\n", "is no label"),
        ("Study,fox\ns0,1\n", "59 of the 60 images of truth.csv are missing"),
        ("name,fox\ns0,1\n", "name the right one with --key"),
    ],
)
def test_files_that_hold_no_decisions_on_these_rows_are_refused(truth, tmp_path, text, message):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises((DataError, ValueError), match=message):
        readers.read([file], files.KEYS, Rows(""), truth)


def test_readers_are_drawn_on_both_curves_of_their_category():
    curve = {"m": np.array([[0.5, 1.0], [1.0, 0.5], [0.0, 1.0]])}
    points = {"fox": {"bc4": np.array([0.6, 0.7, 0.2])}, "dog": {}}
    figure = figures.precision_recall_and_roc(
        {"fox": curve, "dog": curve}, ["m"], split="test", num_categories=2, points=points
    )
    drawn = [[tuple(one) for c in ax.collections for one in np.asarray(c.get_offsets())] for ax in figure.axes]
    assert drawn == [[pytest.approx((60, 70))], [pytest.approx((20, 60))], [], []]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m", "bc4"]
