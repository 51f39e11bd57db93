import io

import pytest
from rich.console import Console

from cftjax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("begun", [0, 500])
def test_time_left_counts_from_the_first_news_on_whatever_was_done_or_waited_for_before(clock, begun):
    out = io.StringIO()
    with progress.Progress("Train", unit="steps", console=Console(file=out, width=120)) as shown:
        clock[0] += 60  # of compiling
        shown.update(begun + 1, 1000, "loss 1.0")
        clock[0] += 20
        shown.update(begun + 101, 1000, "loss 0.5")
    lines = out.getvalue().splitlines()
    assert lines[0] == f"Train: {begun + 1}/1000 steps, loss 1.0"
    # 100 steps took 20 s.
    left = {0: "3 min", 500: "80 s"}[begun]
    assert lines[1] == f"Train: {begun + 101}/1000 steps, {left} left, loss 0.5"


def test_time_left_follows_a_rate_that_changes_and_is_told_of_work_slower_than_any_window(clock):
    out = io.StringIO()
    with progress.Progress("Train", unit="steps", console=Console(file=out, width=120)) as shown:
        shown.update(1, 1000)
        for step in range(2, 12):
            clock[0] += 1000
            shown.update(step, 1000)
        slow = out.getvalue().splitlines()[-1]
        for step in range(12, 250):
            clock[0] += 1
            shown.update(step, 1000)
    assert slow == "Train: 11/1000 steps, 274 h 43 min left"
    assert out.getvalue().splitlines()[-1] == "Train: 249/1000 steps, 13 min left"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5939.0, "99 min"), (58757.0, "16 h 19 min")]
)
def test_a_time_is_told_as_exactly_as_it_is_needed(seconds, words):
    assert progress.clock(seconds) == words


def test_what_goes_on_before_anything_is_done_is_said_at_once(clock):
    out = io.StringIO()
    with progress.Progress("Search", console=Console(file=out, width=80)) as shown:
        shown.say("compiling its programs")
        assert out.getvalue() == "Search: compiling its programs\n"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("title", "unit", "total", "words"),
    [
        ("Search", "generations", 16000, "validation mAP 0.7622"),
        ("Train", "steps", 100000, "loss 0.0312, validation mAUC 0.7622"),
    ],
)
def test_the_bar_leaves_room_for_time_loss_and_score(clock, width, title, unit, total, words):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, legacy_windows=False, color_system=None)
    with progress.Progress(title, unit=unit, console=console) as shown:
        shown.update(1, total, words)
        clock[0] += 36000
        shown.update(total // 2, total, words)
    assert f"{total // 2}/{total} {unit} 10 h 00 min left, {words}" in out.getvalue()
