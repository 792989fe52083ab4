"""What this process and Ray's object store take, looked at again and again while something runs."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Look:
    """`private`: memory of this process alone; `shared`: pages of the object store that it has mapped."""

    seconds: float
    cpu_seconds: float
    private: int
    shared: int
    store: int
    spilled: int
    count: int  # of whatever the gauge was told to count


def memory() -> tuple[int, int]:
    """Bytes that this process holds privately, and bytes of shared memory that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return tuple(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))  # type: ignore[return-value]


def cpu_seconds() -> float:
    """Of all threads of this process."""
    times = os.times()
    return times.user + times.system


@dataclass
class Gauge:
    """A context manager; `looks` grows by one every `every` seconds. The first is from before."""

    count: Callable[[], int] = lambda: 0
    store: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes used now, bytes spilled so far
    every: float = 1.0
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._cpu = cpu_seconds()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Gauge":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> Look:
        private, shared = memory()
        used, spilled = self.store()
        seconds = time.monotonic() - self._began
        self.looks.append(
            Look(seconds, cpu_seconds() - self._cpu, private, shared, used, spilled, self.count())
        )
        return self.looks[-1]

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self.look()

    @property
    def seconds(self) -> float:
        return self.looks[-1].seconds

    @property
    def peak(self) -> int:
        """The most private memory beyond what there was at first."""
        return max(look.private for look in self.looks) - self.looks[0].private
