"""The stream as a series of passes: blocks that are lost with their processes are planned again, smaller.

Ray tries a block twice. If its process dies both times, the block is not among those that the pass brings to
an end, and its rows belong to the next pass, in blocks a quarter of the size: whatever row is to blame parts
company with the others. The few rows that are left in the end have a last pass, in which the cluster works on
one row at a time, and what then ends its process goes into the error table. Isolation is nothing but a resume
within a run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import RowError, RunError, error_record
from pipeline.rows.columns import EXTRA_PREFIX
from pipeline.rows.normalise import RowIndex
from pipeline.rows.plan import Plan, make_plan
from pipeline.stages import Work
from pipeline.stages.write import INPUT, BlockWriter
from pipeline.stream.cluster import LOST, TASK_RETRIES, Cluster, block_reports, summary, surviving
from pipeline.stream.envelope import Timing
from pipeline.stream.stream import Stream, block_numbers

SHRINK = 4  # how much smaller the blocks of the next pass are
ROWS_ALONE = 32  # so few rows are tried one by one at once, and as many at a time
MAX_ROWS_ALONE = 1000  # more of them have yet another pass first, in blocks of one row
DEATHS_BEFORE_GIVING_UP = 20
MIN_LOST_BLOCKS = 32  # a pass ends early when it has lost more than this many, and more than a tenth

Report = dict[str, Any]
Reports = Iterator[tuple[tuple[Timing, ...], Report]]


def reports(
    work: Work,
    cluster: Cluster,
    index: RowIndex,
    todo: np.ndarray,
    rows_per_block: int,
    note: Callable[[str], None],
) -> Reports:
    """Timings and report of each block, until every row at the positions `todo` has come to an end.

    Raises ManifestError and RunError for what concerns the run.
    """
    finished_any = False
    while len(todo):
        plan = make_plan(index, todo, rows_per_block)
        most_lost = max(MIN_LOST_BLOCKS, plan.num_blocks // 10)
        written: set[str] = set()
        failure = None
        try:
            for envelope, report in block_reports(Stream(work, cluster, plan).whole(), most_lost):
                written.add(report["part"])
                finished_any = True
                yield envelope.timings, report
        except LOST as error:
            failure = error
        todo = _left(todo, plan, written)
        if not len(todo):
            return
        if failure is not None and not finished_any:
            raise RunError(f"every process that was given a block has died: {summary(failure)}")
        # Rows that die alone while others live are to blame themselves; where none lives, something else is.
        single = rows_per_block == 1 and (len(todo) <= MAX_ROWS_ALONE or not written)
        if len(todo) <= ROWS_ALONE or single:
            note(f"{len(todo):,} rows were lost with their processes: they are tried one by one")
            yield from rows_alone(work, cluster, index, todo, None if written else DEATHS_BEFORE_GIVING_UP)
            return
        rows_per_block = max(1, rows_per_block // SHRINK)
        note(
            f"{len(todo):,} rows were lost with their processes or nodes: they are tried again, "
            f"in blocks of {rows_per_block}"
        )


def _left(todo: np.ndarray, plan: Plan, written: set[str]) -> np.ndarray:
    """The positions of the rows whose block was not written."""
    blocks = zip(plan.names, np.split(todo, plan.starts[1:]), strict=True)
    left = [rows for name, rows in blocks if f"{name}.parquet" not in written]
    return np.concatenate([todo[:0], *left])


def rows_alone(
    work: Work, cluster: Cluster, index: RowIndex, todo: np.ndarray, most_deaths: int | None
) -> Reports:
    """The last pass: rows as blocks of their own. What ends its process in every try is a failed row.

    Raises RunError when more than `most_deaths` rows at a time, and all of them, end their process.
    """
    for begin in range(0, len(todo), ROWS_ALONE):
        rows = todo[begin : begin + ROWS_ALONE]
        stream = Stream(work, cluster, make_plan(index, rows, 1))
        blocks, alive = block_numbers(len(rows)), set(range(len(rows)))
        died: dict[int, str] = {}  # stages, by block
        # One stage at a time: a process that dies has been at work on one row alone, and takes none along.
        for stage in stream.stages:
            blocks = surviving(stream.behind(blocks, stage.group or stage.name, [stage], alone=True))
            if blocks.count() < len(alive):
                left = {row["block"] for row in blocks.select_columns("block").iter_rows()}
                died |= dict.fromkeys(alive - left, stage.name)
                alive = left
        if most_deaths is not None and len(died) == len(rows) > most_deaths:
            raise RunError(
                f"stage {died[len(rows) - 1]} died with each of the last {len(rows)} rows; it is not the rows"
            )
        for envelope, report in block_reports(blocks, 0):
            yield envelope.timings, report
        for number, name in sorted(died.items()):
            yield (), _failed_row(work, index, rows[number], name)


def _failed_row(work: Work, index: RowIndex, position: int, stage: str) -> Report:
    """Written here, since the row cannot pass the stage: a block without what later stages would add."""
    problem = RowError(
        "ProcessDied",
        f"the process of this stage died each of {1 + TASK_RETRIES} times with the row: "
        "a crash in native code, or out of memory",
    )
    known = {
        "id": index.ids[position].as_py(),
        "source": work.manifest.source(position),
        "row_digest": int(index.digests[position]),
        "error": error_record(stage, problem),
    }
    fields = [*INPUT, *(field.with_name(EXTRA_PREFIX + field.name) for field in work.manifest.extra)]
    row = pa.table([pa.array([known.get(f.name)], f.type) for f in fields], schema=pa.schema(fields))
    return BlockWriter(work.output, work.seed)(row).to_pylist()[0]
