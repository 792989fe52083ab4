"""What a run has done so far, for a terminal and for a job's log."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.errors import safe
from pipeline.metrics import Sample
from pipeline.readable import clock, hours
from pipeline.rows.columns import TOKENS_PER_SECOND
from pipeline.stream.envelope import Timing
from pipeline.stream.states import StageState, busy_now, waits_for


@dataclass
class Totals:
    """Sums over the blocks of one run."""

    rows: int = 0
    failed: int = 0
    candidates: int = 0
    tokens: int = 0
    unfinished: int = 0
    best_s: float = 0.0  # of speech, of the best candidate of each row
    busy_s: dict[str, float] = field(default_factory=dict)  # by stage, added up over workers
    lanes_s: float = 0.0  # of samplers, times the share of their lanes in use

    def add(self, report: Mapping[str, Any], timings: Sequence[Timing] = ()) -> None:
        """Add the report of one block and what its stages took."""
        for name in ("rows", "failed", "candidates", "tokens", "unfinished", "best_s"):
            setattr(self, name, getattr(self, name) + report[name])
        for timing in timings:
            self.busy_s[timing.stage] = self.busy_s.get(timing.stage, 0.0) + timing.seconds
            self.lanes_s += timing.seconds * timing.lanes

    @property
    def ended(self) -> int:
        """Rows that have succeeded or failed."""
        return self.rows + self.failed

    @property
    def audio_hours(self) -> float:
        """Of all candidates."""
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
    """Tells how far a run is, also while no block is finished: a bar on a terminal, lines elsewhere. Use as a
    context manager around the stream.
    """

    def __init__(self, todo: int, seconds: float, stream: TextIO | None = None) -> None:
        self.todo = todo
        self.totals = Totals()
        self.seconds = seconds  # between two lines
        self.stream = stream or sys.stderr
        self.began = self.started = time.monotonic()  # the run, by which all lines go; its stream
        self._first: tuple[float, int] | None = None  # when the first block came, and its rows
        self.states: list[StageState] = []  # of the stages, when they were looked at last
        self._since = (self.began, 0)  # as of the line before: time, tokens
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._bar: Live | None = None

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        self._since = (self.started, 0)
        if self.stream is not None and self.stream.isatty():  # none where it is closed
            console = Console(file=self.stream)
            self._bar = Live(get_renderable=self._rendered, console=console, refresh_per_second=2)
            self._bar.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.states = []
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        else:
            self._thread.join()

    def add(self, report: Mapping[str, Any], timings: Sequence[Timing] = ()) -> None:
        with self._lock:
            self.totals.add(report, timings)
            self._first = self._first or (time.monotonic(), self.totals.ended)

    def see(self, states: list[StageState]) -> None:
        """What the stages are at, now."""
        with self._lock:
            self.states = states

    def note(self, message: str) -> None:
        """Print one line; a terminal or pipe that is closed by now ends no run."""
        line = f"[{clock(time.monotonic() - self.began)}] {safe(message)}"
        with suppress(OSError):
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False, emoji=False)
            else:
                print(line, file=self.stream, flush=True)

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
                left=self.left,
                gpus=gpus or None,
                busy_s=dict(totals.busy_s),
                lanes_s=totals.lanes_s,
            )

    @property
    def left(self) -> int:
        """Rows that are left to do."""
        return self.todo - self.totals.ended

    @property
    def elapsed(self) -> float:
        """Seconds of the stream."""
        return time.monotonic() - self.started

    def line(self) -> str:
        """Rows, failures, speed since the line before and overall, speech, time left, what the stages do."""
        with self._lock:
            now, (then, tokens) = time.monotonic(), self._since
            self._since = (now, self.totals.tokens)
            current = (self.totals.tokens - tokens) / max(now - then, 1e-9)
            return ", ".join([self._counts(), *self._amounts(current), *self._doing()])

    def _counts(self) -> str:
        return f"{self.totals.ended:,}/{self.todo:,} rows, {self.totals.failed:,} failed"

    def _amounts(self, current: float | None = None) -> list[str]:
        """Once there are any."""
        totals = self.totals
        if not totals.candidates:
            return []
        mean = f"{totals.tokens / max(self.elapsed, 1e-9):,.0f}"
        speeds = f"{mean} tokens/s" if current is None else f"{current:,.0f} tokens/s now, {mean} overall"
        speech = f"speech: {hours(totals.best_s / 3600)} best, {hours(totals.audio_hours)} all"
        lanes = [f"{totals.lanes_s / totals.busy_s['sample']:.0%} of lanes in use"] if totals.lanes_s else []
        return [f"{totals.candidates:,} candidates", speeds, *lanes, speech]

    def _doing(self) -> list[str]:
        """The time that is left, what stages wait for, and how many workers of those ready are at work."""
        left = f"{clock(self._time_left())} left" if self.totals.ended else ""
        return [*filter(None, (left, waits_for(self.states), busy_now(self.states)))] or ["starting"]

    def _time_left(self) -> float:
        """Seconds, at the pace since the first block: models were loaded before."""
        rows, (when, first) = self.totals.ended, self._first or (self.started, 0)
        if rows == first:
            when, first = self.started, 0
        return (time.monotonic() - when) / (rows - first) * self.left

    def _rendered(self) -> Group:
        """The bar, and what else there is to say below it."""
        with self._lock:
            grid = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=max(self.todo, 1), completed=self.totals.ended, width=40)
            grid.add_row(f"[{clock(time.monotonic() - self.began)}]", bar, Text(self._counts()))
            below = (", ".join(self._amounts()), ", ".join(self._doing()))
            return Group(grid, *(Text(text) for text in below if text))

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            self.note(self.line())
