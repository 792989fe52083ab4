"""The metrics for Prometheus: what a block adds, and that the dashboard asks for what there is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.stream import exported
from pipeline.stream.envelope import Timing
from pipeline.stream.exported import Exported
from pipeline.stream.states import StageState

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "clvp.json"
REPORT = {
    **{"rows": 3, "failed": 0, "candidates": 12, "unfinished": 1, "tokens": 900},
    **{"best_s": 9.5, "best_score": 2.5},
}


class Recorder:
    """In the place of Counter and Gauge."""

    seen: dict[str, dict[str, float]]

    def __init__(self, name: str, text: str, tag_keys: tuple[str, ...] = ()) -> None:
        self.values = self.seen.setdefault(name, {})
        self.keys = tag_keys
        assert text.endswith(".")

    def key(self, tags: dict[str, str] | None) -> str:
        assert tuple(tags or {}) == self.keys
        return (tags or {}).get("stage", "")

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0  # what Ray asks for
        self.values[self.key(tags)] = self.values.get(self.key(tags), 0) + value

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[self.key(tags)] = value


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    kind: Any = type("Kind", (Recorder,), {"seen": {}})
    monkeypatch.setattr(exported, "Counter", kind)
    monkeypatch.setattr(exported, "Gauge", kind)
    return kind.seen


def test_what_a_block_adds(seen: dict[str, dict[str, float]]) -> None:
    metrics = Exported()
    states = [StageState("prepare", 2, None), StageState("sample", 1, 4)]
    for left in (5, 2):
        metrics.add(REPORT, [Timing("sample", 1.5, 0.75), Timing("write", 0.0)], left, states)
    metrics.add(REPORT | dict.fromkeys(REPORT, 0) | {"failed": 2, "best_score": None}, [], 0, [])
    assert {name: values[""] for name, values in seen.items() if "" in values} == {
        "clvp_rows": 6,
        "clvp_failed": 2,
        "clvp_candidates": 24,
        "clvp_unfinished": 2,
        "clvp_tokens": 1800,
        "clvp_best_s": 19,
        "clvp_rows_left": 0,
        "clvp_lanes": 0.75,
        "clvp_best_score": 2.5,
    }
    assert seen["clvp_stage_s"]["sample"] == 3
    assert seen["clvp_busy"] == {"prepare": 2, "sample": 1}
    assert seen["clvp_actors"] == {"prepare": 0, "sample": 4}


def test_the_dashboard_shows_all_of_them_and_no_other(seen: dict[str, dict[str, float]]) -> None:
    metrics = Exported()
    counters = {f"clvp_{name}_total" for name in metrics.counters} | {"clvp_stage_s_total"}
    gauges = seen.keys() - {name.removesuffix("_total") for name in counters}
    board = json.loads(DASHBOARD.read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert set(re.findall(r"ray_(clvp_\w+)", asked)) == counters | gauges
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
