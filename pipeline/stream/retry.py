"""The stream as a series of passes: blocks that are lost with their processes are planned again, smaller.

Ray tries a block twice. If its process dies both times, the block is not among those that the pass brings to
an end, and its rows belong to the next pass, in blocks a quarter of the size: whatever row is to blame parts
company with the others. The few rows that are left in the end are tried one by one
(`pipeline.stream.isolate`), and what then ends its process goes into the error table. Isolation is nothing
but a resume within a run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.rows.plan import Plan, make_plan
from pipeline.rows.scan import RowIndex
from pipeline.stages import Work, preparation
from pipeline.stages.write import part_name
from pipeline.stream.cluster import LOST, Cluster, block_reports, summary
from pipeline.stream.envelope import Timing
from pipeline.stream.isolate import rows_alone
from pipeline.stream.stream import stream

SHRINK = 4  # how much smaller the blocks of the next pass are
ROWS_ALONE = 32  # so few rows are tried one by one at once
MAX_ROWS_ALONE = 1000  # more of them have yet another pass first, in blocks of one row
DEATHS_BEFORE_GIVING_UP = 20
MIN_LOST_BLOCKS = 32  # a pass ends early when it has lost more than this many, and more than a tenth

Report = dict[str, Any]


def reports(
    work: Work,
    cluster: Cluster,
    index: RowIndex,
    todo: np.ndarray,
    rows_per_block: int,
    note: Callable[[str], None],
) -> Iterator[tuple[tuple[Timing, ...], Report]]:
    """Timings and report of each block, until every row at the positions `todo` has come to an end.

    Raises ManifestError and RunError for what concerns the run.
    """
    recipe = preparation(work)
    finished_any = False
    while len(todo):
        plan = make_plan(index, todo, rows_per_block)
        size = min(rows_per_block, plan.rows_per_block)
        written: set[str] = set()
        limit = max(MIN_LOST_BLOCKS, plan.num_blocks // 10)
        failure = None
        try:
            for envelope, report in block_reports(stream(work, cluster, plan, recipe), limit):
                written.add(report["part"])
                finished_any = True
                yield envelope.timings, report
        except LOST as error:
            failure = error
        todo = _left(index, todo, plan, written)
        if not len(todo):
            return
        if failure is not None and not finished_any:
            raise RunError(f"every process that was given a block has died: {summary(failure)}")
        # Rows that die alone while others live are to blame themselves; where none lives, something else is.
        single = size == 1 and (len(todo) <= MAX_ROWS_ALONE or not written)
        if len(todo) <= ROWS_ALONE or single:
            note(f"{len(todo):,} rows were lost with their processes: they are tried one by one")
            yield from rows_alone(
                work, cluster, recipe, index, todo, None if written else DEATHS_BEFORE_GIVING_UP
            )
            return
        rows_per_block = max(1, size // SHRINK)
        note(
            f"{len(todo):,} rows were lost with their processes or nodes: they are tried again, "
            f"in blocks of {rows_per_block}"
        )


def _left(index: RowIndex, todo: np.ndarray, plan: Plan, written: set[str]) -> np.ndarray:
    """The positions of the rows whose block was not written."""
    if len(written) == plan.num_blocks:
        return todo[:0]
    left = []
    for begin, end in zip(plan.starts, np.append(plan.starts[1:], len(todo)), strict=True):
        rows = todo[begin:end]
        if part_name(index.ids.take(rows).to_pylist()) not in written:
            left.append(rows)
    return np.concatenate([todo[:0], *left])
