"""One run at a time on an output.

On a local disk a run holds an advisory lock on `OUTPUT/_lock`, which ends with its process, however that
ends. Object stores know no locks: there `_lock` is a lease, an object that its holder writes anew every few
seconds and that counts as abandoned when it has not changed for a while. Arrow has no conditional writes, so
two runs that begin within the same second settle who is first by reading back.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline import storage
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder

NAME = "_lock"
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0  # without a beat, until the holder counts as gone
SETTLE_SECONDS = 1.0

Check = Callable[[], None]


@contextmanager
def exclusive(output: OutputFolder, note: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """Hold the output while in the context; gives a function that raises RunError once it is lost.

    Raises RunError when another run holds it. `note` is told when there is something to wait for.
    """
    if isinstance(storage.resolve(output.uri)[0], pafs.LocalFileSystem):
        with _local_lock(output):
            yield lambda: None
    else:
        lease = _Lease(output, note)
        try:
            yield lease.check
        finally:
            lease.release()


def _holder() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _busy(output: OutputFolder, holder: dict[str, Any]) -> RunError:
    who = (
        f"process {holder.get('process', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    )
    return RunError(f"another run is at work on {output.uri} ({who}): wait for it, or stop it")


@contextmanager
def _local_lock(output: OutputFolder) -> Iterator[None]:
    os.makedirs(output.uri, exist_ok=True)
    with open(os.path.join(output.uri, NAME), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _busy(output, _parsed(file.read().encode())) from None
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield


class _Lease:
    """The lease of one run; taken by the constructor, kept by a thread."""

    def __init__(self, output: OutputFolder, note: Callable[[str], None]) -> None:
        self.output = output
        self.uri = output.file("", NAME)
        self.own = {**_holder(), "run": uuid.uuid4().hex}
        self.beats = 0
        self.lost = False
        self._wait_for_holder(note)
        self._beat()
        time.sleep(SETTLE_SECONDS)
        self._confirm()
        self.check()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self.lost:
            raise RunError(f"this run has lost its lease on {self.output.uri}: another run is at work there")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost and _parsed(self._read()).get("run") == self.own["run"]:
            storage.delete_files([self.uri])

    def _wait_for_holder(self, note: Callable[[str], None]) -> None:
        """Until the lease is free or has not changed for LEASE_SECONDS."""
        first = self._read()
        if first is None:
            return
        note(f"waiting up to {LEASE_SECONDS:.0f} s: another run has held {self.output.uri} until lately")
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            now = self._read()
            if now is None:
                return
            if now != first:
                raise _busy(self.output, _parsed(now))

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._confirm()
                if self.lost:
                    return
                self._beat()
                last = time.monotonic()
            except (OSError, pa.ArrowException):
                # Somebody else takes the lease once it looks abandoned, so stop writing before that.
                if time.monotonic() - last > LEASE_SECONDS - 2 * BEAT_SECONDS:
                    self.lost = True
                    return

    def _confirm(self) -> None:
        """Find out whether the lease is still this run's; a deleted one is."""
        found = _parsed(self._read())
        self.lost = bool(found) and found.get("run") != self.own["run"]

    def _beat(self) -> None:
        self.beats += 1
        self.output.write("", NAME, json.dumps({**self.own, "beat": self.beats}).encode())

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.uri)
        except FileNotFoundError:
            return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
