"""The metrics of a run: written whole, bounded in size, read whatever the lines hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.metrics import MetricsLog, Sample, parse_line, read_sessions

FIRST = Sample(1000.0, 10.0, 5, 1, 80, 9000, 418.0, left=94, gpus=2, busy_s={"sample": 8.5})


def at(seconds: float) -> Sample:
    return replace(FIRST, time=990 + seconds, elapsed_s=seconds, tokens=int(900 * seconds))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    log.add(FIRST)
    log.add(at(20))
    (session,) = read_sessions(str(tmp_path))
    assert session.samples == [FIRST, at(20)]
    assert session.bad_lines == 0


def test_samples_that_come_too_soon_are_left_out_but_not_the_last(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), seconds=10)
    for seconds in (10, 13, 19, 20, 22):
        log.add(at(seconds))
    log.add(at(23), last=True)
    (session,) = read_sessions(str(tmp_path))
    assert [sample.elapsed_s for sample in session.samples] == [10, 20, 23]


def test_lines_come_seldomer_in_a_long_session(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), seconds=10)
    for seconds in (10, 1_000_000, 1_000_500, 1_001_500, 1_001_600):
        log.add(at(seconds))
    log.add(at(1_001_700), last=True)
    (session,) = read_sessions(str(tmp_path))
    assert [sample.elapsed_s for sample in session.samples] == [10, 1_000_000, 1_001_500, 1_001_700]


def test_sessions_come_in_the_order_of_time_and_none_is_no_error(tmp_path: Path) -> None:
    assert read_sessions(str(tmp_path)) == []
    for name, start in (("b", 100.0), ("a", 500.0), ("c", 300.0)):
        line = json.dumps({**FIRST.__dict__, "time": start})
        (tmp_path / "metrics").mkdir(exist_ok=True)
        (tmp_path / "metrics" / f"{name}.jsonl").write_text(line + "\n\n")
    (tmp_path / "metrics" / "empty.jsonl").write_text("")
    starts = [session.samples[0].time for session in read_sessions(str(tmp_path)) if session.samples]
    assert starts == [100, 300, 500]


GOOD = json.dumps(FIRST.__dict__)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        GOOD[: len(GOOD) // 2].encode(),
        b"[1, 2]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        GOOD.replace("9000", "NaN").encode(),
        GOOD.replace("9000", "Infinity").encode(),
        GOOD.replace("9000", "-1").encode(),
        GOOD.replace("9000", "true").encode(),
        GOOD.replace("9000", '"9000"').encode(),
        GOOD.replace("9000", "1e999").encode(),
        GOOD.replace("9000", "1" + "0" * 400).encode(),
        GOOD.replace('"gpus": 2', '"gpus": "two"').encode(),
        GOOD.replace("8.5", "-8.5").encode(),
    ],
)
def test_a_line_that_is_no_sample_is_left_out(line: bytes) -> None:
    assert parse_line(line) is None


def test_fields_that_may_be_missing_or_unknown() -> None:
    known = {**FIRST.__dict__, "new": 1}
    assert parse_line(json.dumps(known).encode()) == FIRST
    del known["left"], known["gpus"], known["busy_s"]
    assert parse_line(json.dumps(known).encode()) == replace(FIRST, left=None, gpus=None, busy_s={})


def test_bad_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "a.jsonl").write_text(f"{GOOD}\n{GOOD[:30]}\n")
    (session,) = read_sessions(str(tmp_path))
    assert (session.samples, session.bad_lines) == ([FIRST], 1)
