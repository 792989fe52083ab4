"""Envelopes and guards: what travels with a block, and what an exception in a stage becomes."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pytest

from clvp.checkpoint import CheckpointError
from pipeline.errors import ManifestError, RunError
from pipeline.stream.envelope import ENVELOPE, Envelope, Timing
from pipeline.stream.workers import EXIT_DEVICE_LOST, guarded, raise_stopped

TABLE = pa.table(
    {
        "id": ["a", "b"],
        "voice": pa.array(["x", "x"]).dictionary_encode(),
        "candidates": pa.array([[1, 2], None], pa.list_(pa.uint16())),
    }
)


def test_an_envelope_brings_its_table_back() -> None:
    sent = Envelope(7, TABLE, (Timing("sample", 1.5, 0.5),))
    row = sent.seal()
    assert row.schema == ENVELOPE
    assert len(row) == 1
    found = Envelope.open(row)
    assert found.table.equals(TABLE)
    assert found.table.schema == TABLE.schema
    assert (found.block, found.timings, found.stopped) == (7, sent.timings, None)
    reason = {"stage": "rank", "type": "RunError", "message": "no"}
    stopped = Envelope.open(replace(sent, table=None, stopped=reason).seal())
    assert (stopped.table, stopped.stopped) == (None, reason)
    assert Envelope.open(pa.table({"id": [3]})) == Envelope(3)


def test_an_envelope_in_a_slice_of_rows() -> None:
    rows = pa.concat_tables([Envelope(i, TABLE.slice(i, 1)).seal() for i in range(2)]).combine_chunks()
    assert [Envelope.open(rows.slice(i, 1)).table["id"].to_pylist() for i in range(2)] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ManifestError("m.csv has\nchanged"), ManifestError, "m.csv has changed"),
        (RunError("no space"), RunError, "no space"),
        (CheckpointError("missing: a"), RunError, "missing: a"),
        (KeyError("x"), RunError, "stage rank failed: KeyError: 'x'"),
    ],
)
def test_an_exception_reaches_the_driver_past_the_later_stages(
    error: Exception, kind: type, message: str
) -> None:
    def fail(_: pa.Table) -> pa.Table:
        raise error

    def never(_: pa.Table) -> pa.Table:
        raise AssertionError("the block has stopped before")

    row = guarded("write", never)(guarded("rank", fail)(Envelope(1, TABLE).seal()))
    stopped = Envelope.open(row).stopped
    assert stopped is not None
    assert stopped["stage"] == "rank"
    with pytest.raises(kind) as caught:
        raise_stopped(stopped)
    assert str(caught.value) == message


def test_stages_are_timed_and_named() -> None:
    stage = guarded("sample", lambda table: table.slice(1), lanes=lambda: 0.5)
    assert stage.__name__ == "sample"
    found = Envelope.open(guarded("rank", lambda table: table)(stage(Envelope(0, TABLE).seal())))
    assert found.table["id"].to_pylist() == ["b"]
    assert [(timing.stage, timing.lanes) for timing in found.timings] == [("sample", 0.5), ("rank", 0.0)]
    assert all(timing.seconds >= 0 for timing in found.timings)


def test_the_time_of_blocks_at_once_is_counted_once() -> None:
    first, both = threading.Event(), threading.Barrier(2, timeout=60)

    def stage(table: pa.Table) -> pa.Table:
        both.wait()
        if len(table) == 2:
            first.wait(60)
        return table

    guard, began = guarded("sample", stage), time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        last = threads.submit(guard, Envelope(0, TABLE).seal())
        other = threads.submit(guard, Envelope(1, TABLE.slice(1)).seal()).result()
        first.set()
        timings = [Envelope.open(row).timings[0].seconds for row in (last.result(), other)]
    assert min(timings) > 0
    assert sum(timings) <= time.perf_counter() - began


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts a new one, and the block is tried there; an error of a row must not do that."""

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        assert code == EXIT_DEVICE_LOST
        raise Ended

    def fail(_: pa.Table) -> pa.Table:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended):
        guarded("sample", fail)(Envelope(1, TABLE).seal())
