"""One run at a time on an output.

On a local disk a run holds an advisory lock on `OUTPUT/_lock`, which ends with its process, however that
ends. Object stores know no locks: there `_lock` is a lease, an object that its holder replaces every few
seconds and that counts as abandoned when it has not changed for a while. Every write of it is conditional on
the version that this run wrote last, so that of two runs one alone goes on, whichever was asleep meanwhile.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline import conditional, storage
from pipeline.conditional import ConflictError
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder

NAME = "_lock"
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0  # without a beat, until the holder counts as gone


class Held:
    """An output that this run holds, by a lock that nobody can take from it."""

    def check(self) -> None:
        """Raise RunError once the output is another run's, as far as is known here."""

    def confirm(self) -> None:
        """Find out whether the output is still this run's; RunError if not."""


@contextmanager
def exclusive(output: OutputFolder, note: Callable[[str], None] = lambda _: None) -> Iterator[Held]:
    """Hold the output while in the context.

    Raises RunError when another run holds it. `note` is told when there is something to wait for.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
    if not storage.is_local(output.uri):
        lease = _Lease(output, {**holder, "run": uuid.uuid4().hex})
        with lease.kept(note):
            yield lease
        return
    path = Path(storage.absolute(output.file("", NAME)))
    path.parent.mkdir(parents=True, exist_ok=True)
    output.check()
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock does not end with its process
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        raise _busy(output, path.read_bytes()) from None
    with held:
        with open(path, "w", opener=storage.no_follow) as file:
            json.dump(holder, file)
        yield Held()


def _busy(output: OutputFolder, content: bytes) -> RunError:
    holder = {"process": "?", "host": "?", "since": "?", **_parsed(content)}
    who = "process {process} on {host}, since {since}".format_map(holder)
    return RunError(f"another run is at work on {output.uri} ({who}): wait for it, or stop it")


@dataclass
class _Lease(Held):
    """The lease of one run, kept by a thread."""

    output: OutputFolder
    own: dict[str, Any]
    version: str | None = None  # of the object, as this run wrote it last
    lost: bool = False
    beats: int = 0

    def check(self) -> None:
        if self.lost:
            raise RunError(f"this run has lost its lease on {self.output.uri}: another run has been there")

    def confirm(self) -> None:
        found = self._read()
        self.lost = self.lost or found is None or not self._is_own(found[0])
        self.check()

    @contextmanager
    def kept(self, note: Callable[[str], None]) -> Iterator[None]:
        self._acquire(note)
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            with suppress(OSError):  # a run that slept while another took over misses what that one deleted
                self.confirm()
            raise
        finally:
            stop.set()
            thread.join()
            found = None if self.lost else self._read()
            if found and self._is_own(found[0]):
                storage.delete_files([self.output.file("", NAME)])

    def _acquire(self, note: Callable[[str], None]) -> None:
        found = self._read()
        if found is not None:
            note(f"waiting up to {LEASE_SECONDS:.0f} s: another run has held {self.output.uri} until lately")
            found = self._when_abandoned(*found)
        self.version = found and found[1]
        try:
            self._beat()
        except ConflictError:
            now = self._read()
            raise _busy(self.output, now[0] if now else b"") from None
        try:
            self.output.create("", NAME, b"{}")
        except ConflictError:
            return
        storage.delete_files([self.output.file("", NAME)])
        raise RunError(
            f"the store of {self.output.uri} ignores If-None-Match: two runs could not be kept apart; "
            "use one with conditional writes, or a local folder"
        )

    def _when_abandoned(self, content: bytes, version: str) -> tuple[bytes, str] | None:
        """The lease once it has not changed for LEASE_SECONDS; None when it is given back meanwhile."""
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            now = self._read()
            if now is None:
                return None
            if now[1] != version:
                raise _busy(self.output, now[0])
        return content, version

    def _keep(self, stop: threading.Event) -> None:
        last = time.monotonic()
        while not self.lost and not stop.wait(BEAT_SECONDS):
            try:
                self._beat()
                last = time.monotonic()
            except ConflictError:
                self._look()
            except OSError:
                # Somebody else takes the lease once it looks abandoned, so stop writing before that.
                self.lost = time.monotonic() - last > LEASE_SECONDS - 2 * BEAT_SECONDS

    def _look(self) -> None:
        """After a conflict: the lease is another's, or a beat has arrived whose answer was lost."""
        with suppress(OSError):  # the next beat meets the conflict again
            found = self._read()
            self.lost = found is None or not self._is_own(found[0])
            self.version = found and found[1]

    def _beat(self) -> None:
        self.beats += 1
        content = json.dumps({**self.own, "beat": self.beats}).encode()
        self.version = self.output.create("", NAME, content, self.version)

    def _is_own(self, content: bytes) -> bool:
        return _parsed(content).get("run") == self.own["run"]

    def _read(self) -> tuple[bytes, str] | None:
        return conditional.read(self.output.file("", NAME))


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
