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
    assert lines[1] == f"Train: {begun + 101}/1000 steps, {(1000 - begun - 101) / 5:.0f} s left, loss 0.5"


def test_what_goes_on_before_anything_is_done_is_said_at_once(clock):
    out = io.StringIO()
    with progress.Progress("Search", console=Console(file=out, width=80)) as shown:
        shown.say("compiling its programs")
        assert out.getvalue() == "Search: compiling its programs\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_leaves_room_for_time_and_score(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, legacy_windows=False, color_system=None)
    with progress.Progress("Search", unit="generations", console=console) as shown:
        shown.update(1000, 4000, "validation mAP 0.7622")
    assert "1000/4000 generations" in out.getvalue()
    assert "validation mAP 0.7622" in out.getvalue()
