"""One run at a time on an output.

On a local disk a run holds an advisory lock on `OUTPUT/_lock`, which ends with its process, however that
ends. Object stores know no locks: there `_lock` is a lease, an object that its holder writes anew every few
seconds and that counts as abandoned when it has not changed for a while. Arrow has no conditional writes, so
two runs that begin within the same second settle who is first by reading back.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

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
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
    if not storage.is_local(output.uri):
        lease = _Lease(output, {**holder, "run": uuid.uuid4().hex})
        with lease.kept(note):
            yield lease.check
        return
    path = Path(storage.absolute(output.file("", NAME)))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock does not end with its process
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        raise _busy(output, path.read_bytes()) from None
    with held:
        path.write_text(json.dumps(holder))
        yield lambda: None


def _busy(output: OutputFolder, content: bytes) -> RunError:
    holder = {"process": "?", "host": "?", "since": "?", **_parsed(content)}
    who = "process {process} on {host}, since {since}".format_map(holder)
    return RunError(f"another run is at work on {output.uri} ({who}): wait for it, or stop it")


@dataclass
class _Lease:
    """The lease of one run, kept by a thread."""

    output: OutputFolder
    own: dict[str, Any]
    lost: bool = False
    beats: int = 0

    def check(self) -> None:
        if self.lost:
            raise RunError(f"this run has lost its lease on {self.output.uri}: another run is at work there")

    @contextmanager
    def kept(self, note: Callable[[str], None]) -> Iterator[None]:
        self._wait_for_holder(note)
        self._beat()
        time.sleep(SETTLE_SECONDS)
        self._confirm()
        self.check()
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if not self.lost and _parsed(self._read()).get("run") == self.own["run"]:
                storage.delete_files([self.output.file("", NAME)])

    def _wait_for_holder(self, note: Callable[[str], None]) -> None:
        """Until the lease is free or has not changed for LEASE_SECONDS."""
        first = now = self._read()
        if first is not None:
            note(f"waiting up to {LEASE_SECONDS:.0f} s: another run has held {self.output.uri} until lately")
        deadline = time.monotonic() + LEASE_SECONDS
        while now is not None and time.monotonic() < deadline:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            now = self._read()
            if now not in (None, first):
                raise _busy(self.output, now)

    def _keep(self, stop: threading.Event) -> None:
        last = time.monotonic()
        while not self.lost and not stop.wait(BEAT_SECONDS):
            try:
                self._confirm()
                if not self.lost:
                    self._beat()
                last = time.monotonic()
            except (OSError, pa.ArrowException):
                # Somebody else takes the lease once it looks abandoned, so stop writing before that.
                self.lost = time.monotonic() - last > LEASE_SECONDS - 2 * BEAT_SECONDS

    def _confirm(self) -> None:
        """Find out whether the lease is still this run's; a deleted one is."""
        found = _parsed(self._read())
        self.lost = bool(found) and found.get("run") != self.own["run"]

    def _beat(self) -> None:
        self.beats += 1
        self.output.write("", NAME, json.dumps({**self.own, "beat": self.beats}).encode())

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.output.file("", NAME))
        except FileNotFoundError:
            return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
