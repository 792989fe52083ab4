import io
import time

from pipeline.progress import Progress, Totals
from pipeline.readable import clock
from pipeline.stream.envelope import Timing

REPORT = {
    **{"part": "x", "num_bytes": 10, "rows": 3, "failed": 1, "candidates": 48},
    **{"tokens": 4500, "unfinished": 2, "engine": None},
}
TIMINGS = (Timing("sample", 1.5, "a:1"), Timing("rank", 0.5, "a:2"))


def test_totals_are_sums() -> None:
    totals = Totals()
    for _ in range(2):
        totals.add(REPORT, TIMINGS)
    totals.add(REPORT | dict.fromkeys(("rows", "failed", "candidates", "tokens", "unfinished"), 0))
    assert totals.busy_s == {"sample": 3.0, "rank": 1.0}
    assert totals.workers == {"sample": {"a:1"}, "rank": {"a:2"}}
    assert (totals.rows, totals.failed, totals.candidates, totals.tokens, totals.unfinished) == (
        6,
        2,
        96,
        9000,
        4,
    )
    assert totals.audio_hours == 9000 * 1024 / 22_050 / 3600


def test_lines_come_while_nothing_is_finished_and_tell_what_is() -> None:
    stream = io.StringIO()
    with Progress(12, 0.02, stream) as progress:
        while "starting" not in stream.getvalue():
            time.sleep(0.01)
        progress.add(REPORT, TIMINGS)
        while "4/12 rows, 1 failed, 48 candidates" not in stream.getvalue():
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[0:00] ") for line in lines)
    assert "left, busy: sample " in lines[-1]
    assert "/1, rank " in lines[-1]
    assert "\r" not in stream.getvalue()


def test_time_format() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, 90_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "25:01:01",
    ]
