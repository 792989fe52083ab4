import io
import re
import time

import pytest

from pipeline.progress import Progress, Totals
from pipeline.readable import clock
from pipeline.stream.envelope import Timing
from pipeline.stream.states import StageState, waits_for

REPORT = {
    **{"part": "x", "num_bytes": 10, "rows": 3, "failed": 1, "candidates": 48},
    **{"tokens": 4500, "unfinished": 2, "engine": None, "best_s": 30.0, "best_score": 1.5},
}
TIMINGS = (Timing("sample", 1.5, 0.75), Timing("rank", 0.5))


def test_totals_are_sums() -> None:
    totals = Totals()
    for _ in range(2):
        totals.add(REPORT, TIMINGS)
    nothing = dict.fromkeys(("rows", "failed", "candidates", "tokens", "unfinished", "best_s"), 0)
    totals.add(REPORT | nothing, [Timing("sample", 1.0, 0.25)])
    assert totals.busy_s == {"sample": 4.0, "rank": 1.0}
    assert totals.lanes_s == 2.5
    assert (totals.rows, totals.failed, totals.candidates, totals.tokens, totals.unfinished) == (
        6,
        2,
        96,
        9000,
        4,
    )
    assert totals.best_s == 60
    assert totals.audio_hours == 9000 * 1024 / 22_050 / 3600


LOADING = [
    StageState("prepare", 2, None),
    StageState("sample", 0, 0, starting=1),
    StageState("rank", 0, 0, starting=2),
    StageState("waveform", 0, 0, starting=1),
    StageState("write", 0, None),
]
LACKING = StageState("sample", 0, 0, 4, lacks="GPU")
WORKING = [
    StageState("prepare", 0, None),
    StageState("sample", 3, 4, starting=1),
    StageState("rank", 0, 1),
    StageState("write", 1, None),
]


def test_lines_come_while_nothing_is_finished_and_tell_what_is() -> None:
    """By the one clock of the run, which goes on when the stream begins."""
    stream = io.StringIO()
    progress = Progress(12, 0.02, stream)
    progress.began -= 65
    progress.note("12 to do")
    with progress:
        while "0/12 rows, 0 failed, starting" not in stream.getvalue():
            time.sleep(0.01)
        progress.see(LOADING)
        while "loading" not in stream.getvalue():
            time.sleep(0.01)
        progress.see(WORKING)
        progress.add(REPORT, TIMINGS)
        while "4/12 rows, 1 failed, 48 candidates" not in stream.getvalue():
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[1:0") for line in lines)
    loading = next(line for line in lines if "loading" in line)
    assert loading.endswith(
        "0/12 rows, 0 failed, loading the weights of sample, rank and waveform, busy: prepare 2"
    )
    assert ", 75% of lanes in use, speech: 30.0 s best, 3.48 min all, " in lines[-1]
    assert lines[-1].endswith(" left, busy: sample 3/4, rank 0/1, write 1")
    assert "\r" not in stream.getvalue()


def test_the_time_that_is_left_is_by_the_pace_of_blocks_not_of_loading() -> None:
    progress = Progress(20, 1.0, io.StringIO())
    progress.started -= 1000
    progress.add(REPORT)
    assert " 1:06:40 left" in progress.line()  # of one block all is known
    when, rows = progress._first or (0.0, 0)
    progress._first = (when - 10, rows)
    progress.add(REPORT)
    assert ", 0:30 left" in progress.line()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], ""),
        (WORKING, ""),
        (LOADING[:2], "loading the weights of sample"),
        ([LACKING, StageState("rank", 0, 0, 1)], "waiting for a GPU node"),
        (
            [LACKING, StageState("rank", 0, 0, 1, "CPU")],
            "waiting for a CPU and a GPU node",
        ),
    ],
)
def test_what_is_waited_for(states: list[StageState], expected: str) -> None:
    assert waits_for(states) == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_notes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress(12, 0.01, stream) as progress:
        progress.see(WORKING)
        progress.note("3 rows were [bold]lost[/bold]\x1b[31m")
        progress.add(REPORT, TIMINGS)
    progress.note("after")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "3 rows were [bold]lost[/bold]\\x1b[31m\n" in text.replace("\r", "")
    assert text.count("0/12 rows, 0 failed") >= 1
    last = text.rstrip("\n").splitlines()
    assert last[-1] == "[0:00] after"
    amounts = r"48 candidates, [0-9,]+ tokens/s, 75% of lanes in use, speech: 30.0 s best, 3.48 min all"
    assert re.fullmatch(amounts, last[-3].strip())
    assert "━" in last[-4]
    assert "4/12 rows, 1 failed" in last[-4]
    assert last[-2].strip().endswith(" left")


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with Progress(12, 10.0) as progress:
        progress.note("nobody reads this")


def test_time_format() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, 90_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "25:01:01",
    ]
