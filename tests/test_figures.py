import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cftjax import figures
from cftjax.scores import reliability

BLUE, ORANGE = (0x17, 0x66, 0xA6), (0xC8, 0x50, 0x0A)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def has_colour(image, colour):
    return bool((np.abs(image - np.array(colour)).max(-1) < 12).any())


def test_rises_are_blue_and_falls_orange():
    names, before = ["a", "b"], np.array([0.4, 0.5], np.float32)
    rises = pixels(figures.before_after(names, before, before + np.float32(0.1), metric="AP", split="test"))
    falls = pixels(figures.before_after(names, before, before - np.float32(0.1), metric="AP", split="test"))
    assert has_colour(rises, BLUE)
    assert not has_colour(rises, ORANGE)
    assert has_colour(falls, ORANGE)


def test_before_after_sorts_by_change_and_breaks_many_categories_into_columns():
    c = 90
    after = np.linspace(0.1, 0.9, c, dtype=np.float32)
    names = [f"c{i}" for i in range(c)]
    figure = figures.before_after(names, np.full(c, 0.5, np.float32), after, metric="AP", split="test")
    assert len(figure.axes) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:2] == ["c89", "c88"]
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()][-1] == "c0"


@pytest.mark.parametrize("c", [1, 3, 20, 21])
@pytest.mark.parametrize("flat", [False, True])
def test_the_search_is_drawn_for_few_and_many_categories_and_for_no_gain(c, flat):
    generation = np.arange(5)
    score = np.repeat(np.linspace(0.2, 0.2 if flat else 0.6, 5)[:, None], c, axis=1)
    figure = figures.search_history([f"c{i}" for i in range(c)], generation, score, metric="AUROC")
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), 100 * score[:, 0])


def test_a_stopped_category_keeps_its_score_in_the_mean_of_the_search():
    score = np.array([[0.2, 0.4], [0.3, 0.6], [np.nan, 0.8], [np.nan, np.nan]])
    figure = figures.search_history(["a", "b"], np.arange(4), score, metric="AP")
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [30, 45, 55])


@pytest.mark.parametrize("name", ["before_after", "search_history", "reliability"])
def test_a_figure_without_data_says_why(name):
    nothing = np.full(2, np.nan)
    drawn = {
        "before_after": lambda: figures.before_after(["a", "b"], nothing, nothing, metric="AP", split="test"),
        "search_history": lambda: figures.search_history(["a", "b"], np.arange(1), nothing[None], metric="AP"),
        "reliability": lambda: figures.reliability(
            {"x": reliability.bins(np.ones((2, 1)), np.ones((2, 1), bool), np.zeros((2, 1), bool))}, split="test"
        ),
    }[name]()
    assert not drawn.axes
    assert len(drawn.texts[0].get_text()) > 20


@pytest.mark.parametrize("k", [1, 5, 18, 80])
def test_labels_are_drawn_row_beside_row_and_within_bounds_for_few_and_many_categories(k):
    rng = np.random.default_rng(0)
    counts = rng.multinomial(200, [0.1, 0.1, 0.5, 0.3], size=k).T
    together = rng.random((k, k))
    together[0] = np.nan
    names = [f"category ${i}" for i in range(k)]
    figure = figures.label_counts(names, {"train": counts, "test": counts}, together, num_categories=5000)
    train, test, heat_map, _ = figure.axes
    assert [label.get_text() for label in heat_map.get_yticklabels()] == names
    assert [label.get_text() for label in train.get_yticklabels()] == names
    assert train.get_ylim() == test.get_ylim() == heat_map.get_ylim()
    assert train.get_position().y0 == heat_map.get_position().y0
    assert train.get_title(loc="left") == "train\n200 images"
    widths = np.array([bar.get_width() for bar in train.patches]).reshape(4, k)
    np.testing.assert_array_equal(widths, counts)
    assert figure._suptitle.get_text().endswith(f"{k} categories with the most positives, of 5,000")
    assert max(figure.get_size_inches()) < 40
    image = pixels(figure)
    assert has_colour(image, BLUE)
    assert has_colour(image, ORANGE)


def test_the_sheet_marks_what_is_present_absent_and_not_known():
    probs = np.array([[0.9, 0.8, 0.7, 0.1]])
    labels, known = np.array([[True, False, False, True]]), np.array([[True, True, False, True]])
    image = np.zeros((8, 8, 3), np.uint8)
    figure = figures.image_sheet([image], ["a", "b", "c", "d"], probs, labels, known, split="test", bars=3)
    picture, bars = figure.axes
    assert picture.get_title() == "a, d"
    assert [text.get_text() for text in bars.texts] == ["✓ a", "90", "✗ b", "80", "? c", "70"]


def test_scores_over_proportions_run_from_left_to_right_and_stop_where_undefined():
    scores = {"Negative": np.array([[0.6, 0.5]]), "CFT final": np.array([[np.nan, 0.7]])}
    figure = figures.over_proportions([0.9, 0.1], scores, strong="CFT final", metric="mAP", split="test")
    negative, final = (container.lines[0] for container in figure.axes[0].containers)
    np.testing.assert_allclose(negative.get_xydata(), [[10, 50], [90, 60]])
    np.testing.assert_allclose(final.get_xydata(), [[10, 70], [90, np.nan]])
    assert has_colour(pixels(figure), BLUE)
    undefined = {"Negative": np.array([[np.nan]])}
    for nothing in (
        figures.over_proportions([0.5], undefined, strong="Negative", metric="mAP", split="test"),
        figures.over_modes(undefined, {}, proportions=[0.5], metric="mAP", split="test"),
    ):
        assert "undefined" in nothing.texts[0].get_text()


def test_modes_are_drawn_from_before_to_after_in_a_panel_for_each_proportion():
    before = {"Negative": np.array([[0.5, 0.4], [0.7, 0.4]]), "Ignore": np.array([[0.6, 0.5], [0.6, 0.5]])}
    after = {"Negative": before["Negative"] + 0.1}
    figure = figures.over_modes(before, after, proportions=[0.5, 0.1], metric="mAP", split="test")
    least, most = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["10 % known", "50 % known"]
    assert [label.get_text() for label in least.get_yticklabels()] == ["Negative", "Ignore"]
    dots = [[container.lines[0].get_xdata()[0] for container in ax.containers] for ax in (least, most)]
    np.testing.assert_allclose(dots, [[40, 50, 50], [60, 70, 60]])
    (bars,) = most.containers[0].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [60 - 10 * 2**0.5, 60 + 10 * 2**0.5])
    assert has_colour(pixels(figure), BLUE)


def test_several_seeds_are_drawn_as_mean_and_standard_deviation():
    scores = {"CFT final": np.array([[0.5, 0.6], [0.7, 0.6]])}
    figure = figures.over_proportions([0.1, 0.9], scores, strong="CFT final", metric="mAP", split="test")
    line, _, (bars,) = figure.axes[0].containers[0].lines
    np.testing.assert_allclose(line.get_ydata(), [60, 60])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [60 - 10 * 2**0.5, 60 + 10 * 2**0.5])


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("c", [1, 31, 200])
def test_scores_of_models_are_drawn_highest_first_with_the_last_in_blue(m, c):
    rng = np.random.default_rng(0)
    values = {f"m{i}": np.stack([x := rng.random(c), x - 0.1, x + 0.1]) for i in range(m)}
    values[f"m{m - 1}"][:, 0] = np.nan if c > 1 else 0.5
    means = {name: 0.5 for name in values}
    figure = figures.score_intervals([f"c{i} $" for i in range(c)], values, means, metric="AP", split="test")
    last = list(values.values())[-1][0]
    best = int(np.nanargmax(last))
    assert figure.axes[0].get_yticklabels()[0].get_text() == f"c{best} $"
    shown = sum(len(ax.get_yticks()) for ax in figure.axes)
    assert shown == min(c - (c > 1), 90)
    assert figure.axes[0].collections[2 * m - 1].get_offsets()[0][0] == pytest.approx(100 * last[best])
    assert ("1 undefined" in figure._suptitle.get_text()) == (c > 1)
    assert has_colour(pixels(figure), BLUE) if c == 1 else True


def test_curves_of_a_model_have_one_colour_in_every_category_whoever_gives_it():
    curve = np.array([[0.0, 0.5, 1.0], [0.5, 0.6, 0.4], [0.0, 0.2, 1.0]])
    categories = {"a": {"x": curve, "all": curve}, "b": {"all": curve, "y": curve}, "c": {}}
    figure = figures.precision_recall_and_roc(categories, ["x", "y", "all"], split="test", num_categories=9)
    colours = [[line.get_color() for line in ax.get_lines()] for ax in figure.axes]
    assert len(figure.axes) == 4
    assert colours[0][:2] == colours[1][1:] == ["#222222", "#1766a6"]
    assert colours[2] == colours[3][1:] == ["#1766a6", "#c8500a"]
    assert "2 of 9 categories" in figure._suptitle.get_text()
    roc = figure.axes[1].get_lines()[1]
    np.testing.assert_allclose(roc.get_xydata(), [[0, 0], [0, 0], [20, 50], [100, 100]])
    nothing = figures.precision_recall_and_roc({"a": {}}, ["x"], split="test", num_categories=1)
    assert "no curve" in nothing.texts[0].get_text()


@pytest.mark.parametrize("mean", [0.5, 0.82, 0.97])
@pytest.mark.parametrize("c", [3, 80])
def test_the_words_beside_the_means_and_above_the_changes_do_not_overlap(c, mean):
    before = np.linspace(0.1, 0.5, c, dtype=np.float32)
    after = np.clip(mean + np.linspace(-0.03, 0.03, c, dtype=np.float32), 0, 1)
    figure = figures.before_after([f"c{i}" for i in range(c)], before, after, metric="AP", split="test")
    pixels(figure)  # which lays it out
    for ax in figure.axes:
        boxes = {
            t.get_text(): t.get_window_extent() for t in ax.texts if t.get_text().strip().startswith(("mean", "ch"))
        }
        assert len(boxes) == 3
        change = boxes.pop("change")
        assert not any(box.overlaps(change) for box in boxes.values())


def test_names_of_models_and_categories_are_drawn_as_text_on_one_line():
    hostile = ["_$\\undefined{$", "two\nlines \x1b[31m"]
    bins = reliability.bins(np.full((4, 1), 0.5), np.ones((4, 1), bool), np.ones((4, 1), bool))
    figure = figures.reliability({hostile[0]: bins, "b": bins}, split="test")
    pixels(figure)
    drawn = [text.get_text() for text in figure.legends[0].get_texts()]
    assert drawn[1].startswith(r" _\$\undefined{\$: calibration error")
    half = np.array([0.4, 0.5], np.float32)
    figure = figures.before_after(hostile, half, half + np.float32(0.1), metric="AP", split="test")
    pixels(figure)
    labels = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert labels == {"_$\\undefined{$", "two\\nlines \\x1b[31m"}
