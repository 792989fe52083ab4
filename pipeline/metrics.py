"""What a run has done over time: `OUTPUT/metrics/*.jsonl`, one file per session of the driver.

Every line is one JSON object, the fields of a `Sample`. Object stores cannot append, so a file is written
whole every time, and a reader never sees half a line; it stays small, since lines come seldomer the longer
the session.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import storage

FOLDER = "metrics"
SUFFIX = ".jsonl"
LINES_PER_LENGTH = 1000  # after a while: a line for every thousandth of the time so far
MAX_POINTS = 480  # of throughput, over all sessions

# Sums and products of them are finite.
Number = Annotated[float, Field(ge=0, lt=1e18)]
Whole = Annotated[int, Field(ge=0, lt=10**18)]


@dataclass(frozen=True)
class Sample:
    """Sums since the session began, at one moment."""

    time: Number  # seconds since 1970
    elapsed_s: Number
    rows: Whole  # that have succeeded
    failed: Whole
    candidates: Whole
    tokens: Whole
    audio_s: Number
    left: Whole | None = None  # rows still to do
    gpus: Number | None = None
    busy_s: Mapping[str, Number] = field(default_factory=dict)  # by stage, added up over its workers
    lanes_s: Number = 0.0  # of samplers, times the share of their lanes in use


_SAMPLE = TypeAdapter(Sample)


@dataclass(frozen=True)
class Session:
    """The samples of one file, in the order of time."""

    samples: list[Sample]
    bad_lines: int


class MetricsLog:
    """Writes the samples of one session into `OUTPUT/metrics`."""

    def __init__(self, output: str, seconds: float = 10.0) -> None:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(4).hex()}{SUFFIX}"
        self.uri = storage.join(storage.join(output, FOLDER), name)
        self._scratch = storage.join(output, "_scratch")
        self._seconds = seconds
        self._lines: list[str] = []
        self._written = 0.0  # the last sample's elapsed_s

    def add(self, sample: Sample, last: bool = False) -> None:
        """Write a sample unless the one before is too recent; the last of a session is always written.

        Raises OSError when the file cannot be written.
        """
        pause = max(self._seconds, sample.elapsed_s / LINES_PER_LENGTH)
        if self._lines and not last and sample.elapsed_s - self._written < pause:
            return
        self._lines.append(json.dumps(asdict(sample)) + "\n")
        self._written = sample.elapsed_s
        storage.write_atomically(self.uri, "".join(self._lines).encode(), self._scratch)


def read_sessions(output: str) -> list[Session]:
    """The sessions of a run, in the order in which they began; none where nothing was recorded.

    Lines that are no sample are counted and left out.
    """
    folder = storage.join(output, FOLDER)
    sessions = []
    for name in storage.list_names(folder, SUFFIX):
        lines = storage.read_bytes(storage.join(folder, name)).splitlines()
        samples = [parse_line(line) for line in lines if line.strip()]
        good = sorted((item for item in samples if item is not None), key=lambda item: item.elapsed_s)
        sessions.append(Session(good, len(samples) - len(good)))
    return sorted(sessions, key=lambda session: session.samples[0].time if session.samples else math.inf)


def parse_line(line: bytes) -> Sample | None:
    """The sample that a line holds, None if it holds none."""
    try:
        return _SAMPLE.validate_json(line, strict=True)
    except ValidationError:
        return None


def speed_figures(sessions: Sequence[Session]) -> dict[str, Any] | None:
    """Sums over all sessions and a series of rates; None where nothing was recorded."""
    recorded = [session.samples for session in sessions if session.samples]
    if not recorded:
        return None
    lasts = [samples[-1] for samples in recorded]
    summed = ("elapsed_s", "audio_s", "tokens", "lanes_s")
    sums = {name: sum(getattr(last, name) for last in lasts) for name in summed}
    gpu_seconds = sum((last.gpus or 0) * last.elapsed_s for last in lasts)
    busy: Counter[str] = Counter()
    for last in lasts:
        busy.update(dict(last.busy_s))
    origin = min(samples[0].time - samples[0].elapsed_s for samples in recorded)
    return {
        "sessions": len(recorded),
        "bad_lines": sum(session.bad_lines for session in sessions),
        "wall_hours": sums["elapsed_s"] / 3600,
        "rows": sum(last.rows for last in lasts),
        "failed": sum(last.failed for last in lasts),
        "rows_left": lasts[-1].left,
        "tokens_per_s": share(sums["tokens"], sums["elapsed_s"]),
        "lanes_in_use": share(sums["lanes_s"], busy["sample"]) or None,
        "audio_s_per_s": share(sums["audio_s"], sums["elapsed_s"]),
        "gpu_hours_per_audio_hour": share(gpu_seconds, sums["audio_s"]) if gpu_seconds else None,
        "stages": [
            {"stage": stage, "busy_s": spent, "share": share(spent, busy.total())}
            for stage, spent in sorted(busy.items(), key=lambda item: (-item[1], item[0]))
        ],
        "series": [_series(samples, origin, max(MAX_POINTS // len(recorded), 2)) for samples in recorded],
    }


def _series(samples: Sequence[Sample], origin: float, most: int) -> list[dict[str, float]]:
    """Rates between samples; at most `most` intervals, merged where there are more."""
    step = -(-len(samples) // most)
    chosen = [Sample(0.0, 0.0, 0, 0, 0, 0, 0.0), *samples[step - 1 : -1 : step], samples[-1]]
    began = samples[0].time - samples[0].elapsed_s - origin
    return [
        {
            "from_s": began + before.elapsed_s,
            "to_s": began + after.elapsed_s,
            "tokens_per_s": max(after.tokens - before.tokens, 0) / seconds,
            "rows_per_s": max(after.rows + after.failed - before.rows - before.failed, 0) / seconds,
        }
        for before, after in pairwise(chosen)
        if (seconds := after.elapsed_s - before.elapsed_s) > 0
    ]


def share(part: float, whole: float) -> float | None:
    """part / whole, None where there is nothing to divide."""
    return part / whole if whole else None
