"""How blocks that are lost with their processes are planned again; real processes are in test_faults."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipeline.errors import RunError
from pipeline.rows.manifest import GROUP
from pipeline.rows.normalise import RowIndex
from pipeline.rows.plan import Plan, block_name
from pipeline.stream import retry
from pipeline.stream.cluster import Cluster
from pipeline.stream.envelope import Envelope
from pipeline.stream.retry import (
    DEATHS_BEFORE_GIVING_UP,
    MAX_ROWS_ALONE,
    MIN_LOST_BLOCKS,
    ROWS_ALONE,
    reports,
)


def index_of(count: int) -> RowIndex:
    """Rows r0, r1, … of one file."""
    groups = np.array([(0, 0, 0, 1, 10)], GROUP)
    ids = pa.chunked_array([[f"r{i}" for i in range(count)]], pa.large_string())
    return RowIndex(ids, np.zeros(count, np.uint64), groups, {})


class FakeRay:
    """Brings every block to an end but those that hold a deadly row, as Ray Data does after its two tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deadly: set[int]) -> None:
        self.deadly = deadly
        self.sizes: list[int] = []  # of the blocks of each pass
        self.alone: list[tuple[list[int], int | None]] = []
        for name in ("Stream", "block_reports", "rows_alone"):
            monkeypatch.setattr(retry, name, getattr(self, name))
        self.notes: list[str] = []

    def Stream(self, work: Any, cluster: Any, plan: Plan) -> SimpleNamespace:
        return SimpleNamespace(whole=lambda: plan)

    def block_reports(self, plan: Plan, lost_blocks: int) -> Iterator[tuple[Envelope, dict[str, Any]]]:
        self.sizes.append(plan.rows_per_block)
        lost = 0
        for number in range(plan.num_blocks):
            rows = [
                row
                for part in plan.slices_of(number).to_pylist()
                for row in range(part["begin"], part["end"])
            ]
            if self.deadly & set(rows):
                lost += 1
                if lost > lost_blocks:
                    raise ray.exceptions.WorkerCrashedError
            else:
                yield (
                    Envelope(number),
                    {"part": block_name([f"r{row}" for row in rows]) + ".parquet", "rows": rows},
                )

    def rows_alone(
        self, work: Any, _: Any, index: RowIndex, todo: np.ndarray, most_deaths: int | None
    ) -> Iterator[tuple[tuple[()], dict[str, Any]]]:
        self.alone.append((todo.tolist(), most_deaths))
        for row in todo.tolist():
            yield (), {"part": f"alone-{row}", "rows": [row]}

    def run(self, count: int, size: int) -> list[int]:
        """Rows in the order in which they came to an end."""
        todo = np.arange(count)
        work: Any = SimpleNamespace()
        found = reports(work, Cluster(0, 0), index_of(count), todo, size, self.notes.append)
        return [row for _, report in found for row in report["rows"]]


def test_a_pass_that_loses_nothing_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, set())
    assert fake.run(100, 16) == list(range(100))
    assert (fake.sizes, fake.alone, fake.notes) == ([16], [], [])


def test_a_deadly_row_parts_company_with_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, {300})
    assert sorted(fake.run(1000, 256)) == list(range(1000))
    assert fake.sizes == [256, 64, 16]
    ((alone, most_deaths),) = fake.alone
    assert alone == list(range(288, 304))
    assert len(alone) <= ROWS_ALONE
    assert most_deaths is None, "others live, so the row may be to blame"


def test_many_deadly_rows_are_singled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = set(range(0, 4000, 80))
    assert len(deadly) > MIN_LOST_BLOCKS, "the last pass of single rows ends early, too"
    fake = FakeRay(monkeypatch, deadly)
    assert sorted(fake.run(4000, 64)) == list(range(4000))
    assert fake.sizes == [64, 16, 4, 1]
    ((alone, _),) = fake.alone
    assert deadly <= set(alone)
    assert len(alone) <= MAX_ROWS_ALONE


def test_a_run_in_which_every_process_dies_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, set(range(1000)))
    with pytest.raises(RunError, match="every process that was given a block has died"):
        fake.run(1000, 8)
    assert fake.sizes == [8]


def test_a_pass_that_loses_a_tenth_ends_early_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster with one broken machine: no row is given up while others come to an end."""
    deadly = set(range(0, 3000))
    fake = FakeRay(monkeypatch, deadly)
    with monkeypatch.context() as patch:
        patch.setattr(retry, "MIN_LOST_BLOCKS", 2)
        order = np.r_[3000:6000, 0:3000]
        work: Any = SimpleNamespace()
        found = reports(work, Cluster(0, 0), index_of(6000), order, 16, fake.notes.append)
        rows = [row for _, report in found for row in report["rows"]]
    assert sorted(rows) == list(range(6000))
    assert fake.sizes == [16, 4, 1]
    assert len(deadly) > MAX_ROWS_ALONE
    assert fake.alone == [(list(range(3000)), DEATHS_BEFORE_GIVING_UP)]
    assert MIN_LOST_BLOCKS > 2
