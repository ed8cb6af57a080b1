"""The time that a run has left, estimated from the latest rows of its log."""

from tdmpc2.tracking.pace import Pace


def test_time_left_forgets_a_burst_at_the_beginning() -> None:
    """The thousands of updates at the first step of online learning used to double the estimate for hours."""
    pace = Pace(0, 1000, 0.0)
    pace.row(1, 7200.0)
    for step in range(2, 31):
        now = 7200.0 + step
        pace.row(step, now)
    assert pace.remaining(30, now) == "0:16:10"


def test_time_left_counts_pauses_of_the_latest_rows() -> None:
    pace = Pace(100, 200, 50.0)
    pace.pause(30.0)
    assert pace.row(110, 90.0).it_per_s == 1.0
    assert pace.remaining(110, 90.0) == "0:06:00"
