"""Metrics for Prometheus, by `ray.util.metrics`: Ray's agents export them under these names, with `ray_`
before them and `_total` behind counters. `examples/grafana` shows them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from pipeline.stream.envelope import Timing
from pipeline.stream.states import StageState

COUNTED = {
    "rows": "Rows that have succeeded.",
    "failed": "Rows that have failed.",
    "candidates": "Candidates that were stored.",
    "unfinished": "Candidates without a stop token.",
    "tokens": "Speech tokens of all candidates.",
    "best_s": "Seconds of speech, of the best candidate of each row.",
}


class Exported:
    """The figures of a run, of which the driver tells."""

    def __init__(self) -> None:
        self.counters = {name: Counter(f"clvp_{name}", text) for name, text in COUNTED.items()}
        self.spent = Counter("clvp_stage_s", "Seconds that workers have spent on blocks.", ("stage",))
        self.left = Gauge("clvp_rows_left", "Rows that are left to do.")
        self.score = Gauge("clvp_best_score", "Score of the best candidates, on average over a block.")
        self.lanes = Gauge("clvp_lanes", "Share of its lanes that a sampler has in use, over a block.")
        self.busy = Gauge("clvp_busy", "Tasks or actors at work on a block.", ("stage",))
        self.actors = Gauge("clvp_actors", "Actors that are ready.", ("stage",))

    def add(
        self, report: Mapping[str, Any], timings: Iterable[Timing], left: int, states: Iterable[StageState]
    ) -> None:
        """A block that has come to its end, the rows that are left, and what the stages are at."""
        for name, counter in self.counters.items():
            if report[name]:
                counter.inc(report[name])
        for timing in timings:
            self.spent.inc(max(timing.seconds, 1e-9), {"stage": timing.stage})
            if timing.lanes:
                self.lanes.set(timing.lanes)
        self.left.set(left)
        if report["best_score"] is not None:
            self.score.set(report["best_score"])
        for state in states:
            self.busy.set(state.busy, {"stage": state.name})
            self.actors.set(state.actors or 0, {"stage": state.name})
