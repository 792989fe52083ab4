"""What a run has done so far, as lines that read well on a terminal and in a job's log."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from pipeline.errors import safe
from pipeline.metrics import Sample
from pipeline.readable import clock
from pipeline.rows.columns import TOKENS_PER_SECOND
from pipeline.stream.envelope import Timing


@dataclass
class Totals:
    """Sums over the blocks of one run."""

    rows: int = 0
    failed: int = 0
    candidates: int = 0
    tokens: int = 0
    unfinished: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)  # by stage, added up over workers
    workers: dict[str, set[str]] = field(default_factory=dict)  # by stage, all that were seen

    def add(self, report: Mapping[str, Any], timings: Sequence[Timing] = ()) -> None:
        """Add the report of one block and what its stages took."""
        for name in ("rows", "failed", "candidates", "tokens", "unfinished"):
            setattr(self, name, getattr(self, name) + report[name])
        for timing in timings:
            self.busy_s[timing.stage] = self.busy_s.get(timing.stage, 0.0) + timing.seconds
            self.workers.setdefault(timing.stage, set()).add(timing.worker)

    @property
    def audio_hours(self) -> float:
        return self.tokens / TOKENS_PER_SECOND / 3600


@dataclass(frozen=True)
class Summary:
    """What a run has done."""

    output: str
    totals: Totals
    rejected: int  # manifest rows without an id of their own; their errors are not in `totals`
    done_before: int  # rows that the output held already
    failed_before: int
    seconds: float  # of the stream, without planning

    @property
    def tokens_per_second(self) -> float:
        return self.totals.tokens / max(self.seconds, 1e-9)


class Progress:
    """Prints a line now and then, also while no block is finished. Use as a context manager."""

    def __init__(self, todo: int, seconds: float, stream: TextIO | None = None) -> None:
        self.todo = todo
        self.totals = Totals()
        self.seconds = seconds
        self.stream = stream or sys.stderr
        self.started = time.monotonic()  # again when the stream begins
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        self._last: tuple[float, int, dict[str, float]] = (self.started, 0, {})  # as of the line before
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, report: Mapping[str, Any], timings: Sequence[Timing] = ()) -> None:
        with self._lock:
            self.totals.add(report, timings)

    def note(self, message: str) -> None:
        """Print one line; a terminal or pipe that is closed by now ends no run."""
        with suppress(OSError):
            print(f"[{clock(self.elapsed)}] {safe(message)}", file=self.stream, flush=True)

    def sample(self, gpus: float) -> Sample:
        """The sums so far, for the run's metrics."""
        with self._lock:
            totals = self.totals
            return Sample(
                time=time.time(),
                elapsed_s=self.elapsed,
                rows=totals.rows,
                failed=totals.failed,
                candidates=totals.candidates,
                tokens=totals.tokens,
                audio_s=totals.tokens / TOKENS_PER_SECOND,
                left=self.todo - totals.rows - totals.failed,
                gpus=gpus or None,
                busy_s=dict(totals.busy_s),
            )

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def line(self) -> str:
        """Rows, failures, speed now and overall, audio, the time that is left, and how many workers of each
        stage were at work on average since the line before, of all seen so far.

        A block counts when it is written, so a stage can seem idle, and then busier than it can be.
        """
        with self._lock:
            totals, (then, tokens, busy) = self.totals, self._last
            self._last = (time.monotonic(), totals.tokens, dict(totals.busy_s))
            seconds = max(self._last[0] - then, 1e-9)
            rows = totals.rows + totals.failed
            current, overall = (totals.tokens - tokens) / seconds, totals.tokens / max(self.elapsed, 1e-9)
            left = f"{clock(self.elapsed / rows * (self.todo - rows))} left" if rows else "starting"
            shares = ", ".join(
                f"{name} {(spent - busy.get(name, 0.0)) / seconds:.1f}/{len(totals.workers[name])}"
                for name, spent in totals.busy_s.items()
            )
            return (
                f"{rows:,}/{self.todo:,} rows, {totals.failed:,} failed, "
                f"{totals.candidates:,} candidates, {current:,.0f} tokens/s now, {overall:,.0f} overall, "
                f"{totals.audio_hours:.2f} h of audio, {left}{f', busy: {shares}' if shares else ''}"
            )

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            self.note(self.line())
