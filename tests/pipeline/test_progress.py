import io
import time

from pipeline.progress import Progress, Totals, format_seconds

REPORT = {
    **{"part": "x", "num_bytes": 10, "rows": 3, "failed": 1, "candidates": 48},
    **{"tokens": 4500, "unfinished": 2, "sample_seconds": 1.5, "rank_seconds": 0.5},
}


def test_totals_are_sums() -> None:
    totals = Totals()
    for _ in range(2):
        totals.add(REPORT)
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
        progress.add(REPORT)
        while "4/12 rows, 1 failed, 48 candidates" not in stream.getvalue():
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[0:00] ") for line in lines)
    assert lines[-1].endswith("left")
    assert "\r" not in stream.getvalue()


def test_time_format() -> None:
    assert [format_seconds(s) for s in (0, 59.6, 61, 3600, 90_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "25:01:01",
    ]
