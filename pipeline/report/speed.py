"""Throughput over time and the stages' shares, from what a run has recorded of itself."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.metrics import Sample, Session
from pipeline.report.totals import share

MAX_POINTS = 480  # over all sessions
_START = Sample(0.0, 0.0, 0, 0, 0, 0, 0.0)


def speed_figures(sessions: Sequence[Session]) -> dict[str, Any] | None:
    """Sums over all sessions and a series of rates; None where nothing was recorded."""
    recorded = [session.samples for session in sessions if session.samples]
    if not recorded:
        return None
    lasts = [samples[-1] for samples in recorded]
    origin = min(samples[0].time - samples[0].elapsed_s for samples in recorded)
    seconds = sum(last.elapsed_s for last in lasts)
    audio = sum(last.audio_s for last in lasts)
    tokens = sum(last.tokens for last in lasts)
    gpu_hours = sum((last.gpus or 0) * last.elapsed_s for last in lasts) / 3600
    busy: Counter[str] = Counter()
    for last in lasts:
        busy.update(dict(last.busy_s))
    most = max(MAX_POINTS // len(recorded), 2)
    return {
        "sessions": len(recorded),
        "bad_lines": sum(session.bad_lines for session in sessions),
        "wall_hours": seconds / 3600,
        "rows": sum(last.rows for last in lasts),
        "failed": sum(last.failed for last in lasts),
        "rows_left": lasts[-1].left,
        "tokens_per_s": share(tokens, seconds),
        "audio_s_per_s": share(audio, seconds),
        "gpu_hours_per_audio_hour": share(gpu_hours, audio / 3600) if gpu_hours else None,
        "stages": [
            {"stage": stage, "busy_s": spent, "share": share(spent, sum(busy.values()))}
            for stage, spent in sorted(busy.items(), key=lambda item: (-item[1], item[0]))
        ],
        "series": [_series(samples, origin, most) for samples in recorded],
    }


def _series(samples: Sequence[Sample], origin: float, most: int) -> list[dict[str, float]]:
    """Rates between samples; at most `most` intervals, merged where there are more."""
    step = -(-len(samples) // most)
    chosen = [*samples[step - 1 : -1 : step], samples[-1]]
    began = samples[0].time - samples[0].elapsed_s - origin
    points = []
    for before, after in zip([_START, *chosen], chosen, strict=False):
        seconds = after.elapsed_s - before.elapsed_s
        if seconds > 0:
            points.append(
                {
                    "from_s": began + before.elapsed_s,
                    "to_s": began + after.elapsed_s,
                    "tokens_per_s": max(after.tokens - before.tokens, 0) / seconds,
                    "rows_per_s": max(after.rows + after.failed - before.rows - before.failed, 0) / seconds,
                }
            )
    return points
