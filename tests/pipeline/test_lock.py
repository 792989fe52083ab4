"""One run at a time on an output: locks of real processes, leases on a real S3 server."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import conditional, storage
from pipeline.conditional import ConflictError
from pipeline.errors import RunError
from pipeline.output import lock
from pipeline.output.folder import OutputFolder
from pipeline.output.lock import NAME, exclusive
from tests.s3_server import S3Server
from tests.soak.late import late_drivers

HOLD = """
import sys, time
from pipeline.output.lock import exclusive
from pipeline.output.folder import OutputFolder
with exclusive(OutputFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(output: OutputFolder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, output.uri],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    output = OutputFolder(str(tmp_path / "out"))
    process = holder(output)
    try:
        with (
            pytest.raises(RunError, match=rf"another run is at work on .*process {process.pid} on"),
            exclusive(output),
        ):
            raise AssertionError("two runs at a time")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with exclusive(output) as held:
        held.confirm()
    with exclusive(output):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.2), ("LEASE_SECONDS", 3.0)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> OutputFolder:
    return OutputFolder(s3.uri(tmp_path.name))


def test_a_lease_keeps_others_out_and_is_given_back(quick: None, bucket: OutputFolder) -> None:
    with exclusive(bucket), pytest.raises(RunError, match="another run is at work on"), exclusive(bucket):
        raise AssertionError("two runs at a time")
    notes: list[str] = []
    with exclusive(bucket, notes.append) as held:
        held.confirm()
    assert notes == [], "nothing to wait for"


def test_an_abandoned_lease_is_taken_over(quick: None, bucket: OutputFolder) -> None:
    bucket.write("", NAME, json.dumps({"run": "killed", "beat": 7}).encode())
    notes: list[str] = []
    with exclusive(bucket, notes.append) as held:
        held.confirm()
    assert len(notes) == 1
    assert "waiting up to 3 s" in notes[0]


def check_for_long(held: lock.Held) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.05)


def test_a_run_that_has_lost_its_lease_stops_writing(quick: None, bucket: OutputFolder) -> None:
    with exclusive(bucket) as held:
        bucket.write("", NAME, json.dumps({"run": "another"}).encode())
        with pytest.raises(RunError, match="has lost its lease"):
            held.confirm()
        with pytest.raises(RunError, match="has lost its lease"):
            check_for_long(held)
    assert json.loads(storage.read_bytes(bucket.file("", NAME))) == {"run": "another"}, "not given back"


@pytest.mark.parametrize(("another", "told"), [(True, "lost its lease"), (False, "cannot be read")])
def test_what_a_run_misses_after_it_has_lost_its_lease(
    quick: None, bucket: OutputFolder, another: bool, told: str
) -> None:
    """The other run deletes files when it ends: that they are gone is not what went wrong."""

    def run() -> None:
        with exclusive(bucket):
            if another:
                bucket.write("", NAME, json.dumps({"run": "another"}).encode())
            raise RunError("a file of the manifest cannot be read")

    with pytest.raises(RunError, match=told):
        run()


def test_a_lease_that_is_gone_is_lost(quick: None, bucket: OutputFolder) -> None:
    """Another run may have taken it, finished and given it back while this one was asleep."""
    with exclusive(bucket) as held:
        storage.delete_files([bucket.file("", NAME)])
        with pytest.raises(RunError, match="has lost its lease"):
            held.confirm()
    with exclusive(bucket) as held:
        storage.delete_files([bucket.file("", NAME)])
        with pytest.raises(RunError, match="has lost its lease"):
            check_for_long(held)


def test_a_beat_whose_answer_was_lost_is_no_conflict(quick: None, bucket: OutputFolder) -> None:
    with exclusive(bucket) as held:
        assert isinstance(held, lock._Lease)
        bucket.write("", NAME, json.dumps({**held.own, "beat": 1_000}).encode())
        time.sleep(1)
        held.confirm()
        held.check()


def test_a_late_beat_cannot_take_the_lease_back(bucket: OutputFolder) -> None:
    version = bucket.create("", NAME, b"mine")
    bucket.create("", NAME, b"theirs", version)
    with pytest.raises(ConflictError):
        bucket.create("", NAME, b"mine, later", version)
    assert storage.read_bytes(bucket.file("", NAME)) == b"theirs"


def test_a_store_that_ignores_conditions_is_refused(
    quick: None, bucket: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = conditional.obstore.put
    monkeypatch.setattr(
        conditional.obstore, "put", lambda store, key, data, mode, **more: put(store, key, data, **more)
    )
    with pytest.raises(RunError, match="ignores If-None-Match"), exclusive(bucket):
        raise AssertionError("nothing keeps others out")


@pytest.mark.slow
def test_a_driver_that_sleeps_longer_than_its_lease_doubles_nothing(s3: S3Server, tmp_path: Path) -> None:
    """Once stopped anywhere and once inside an upload; `python -m tests.soak --s3` does it more often."""
    assert late_drivers(s3, tmp_path, 2, seed=5, say=print).total() == 2
