"""Publishes finished parts while the run goes on, in a thread of the driver.

In the driver, since nobody may be at work on the files of `data` once the driver is gone: the next run would
publish the same parts beside a worker that has outlived its run.
"""

import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from pipeline.output.lock import Held
from pipeline.output.publish import Files, publish


class Publisher:
    """Collects parts and publishes them whenever they make a file of `enough_bytes`. A context manager:
    leaving it without an exception publishes the rest; after an exception the rest is left to the next run.
    """

    def __init__(
        self, files: Files, enough_bytes: int, parts: Sequence[str], attempts: Mapping[str, int], held: Held
    ) -> None:
        self.files, self.enough_bytes, self.attempts, self.held = files, enough_bytes, attempts, held
        self._parts = list(parts)
        self._num_bytes = 0
        self._queue: SimpleQueue[list[str] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)

    def __enter__(self) -> "Publisher":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._parts:
            self._queue.put(self._parts)
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise_failure()

    def add(self, part: str, num_bytes: int) -> None:
        """Add a finished part. Raises what publishing has failed with before."""
        self._raise_failure()
        self._parts.append(part)
        self._num_bytes += num_bytes
        if self._num_bytes >= self.enough_bytes:
            self._queue.put(self._parts)
            self._parts, self._num_bytes = [], 0

    def _work(self) -> None:
        while (parts := self._queue.get()) is not None:
            if self._failure is None:  # else the parts wait for the next run
                try:
                    self.held.confirm()
                    publish(self.files, parts, (), self.attempts)
                except BaseException as error:
                    self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
