"""How a block travels between the stages: one row that holds the block's number and its table.

Ray Data joins and splits blocks to fit the batch size that a GPU stage must name. A block that is a single
row can be neither joined nor split, so it keeps its rows from the first stage to its file, and tables of
different columns can follow each other. Beside the table travel what every stage took, and the reason why
the run must end, if there is one.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.errors import ERROR_TYPE, ErrorRecord

_TIMING = pa.struct([("stage", pa.string()), ("seconds", pa.float64()), ("lanes", pa.float64())])

ENVELOPE = pa.schema(
    [
        ("block", pa.int64()),
        ("table", pa.large_binary()),  # Arrow IPC; null before the first stage and where the run must end
        ("timings", pa.list_(_TIMING)),
        ("stopped", ERROR_TYPE),
    ]
)
NUMBER = "id"  # the column of a block's number before the first stage


@dataclass(frozen=True)
class Timing:
    """The time that one worker spent on the block."""

    stage: str
    seconds: float
    lanes: float = 0.0  # share of its lanes that a sampler had in use meanwhile


@dataclass(frozen=True)
class Envelope:
    block: int
    table: pa.Table | None = None
    timings: tuple[Timing, ...] = ()
    stopped: ErrorRecord | None = None  # an error that concerns the run, not a row

    def seal(self) -> pa.Table:
        """The row [1] that ENVELOPE describes."""
        timings = [vars(timing) for timing in self.timings]
        told = {"block": [self.block], "timings": [timings], "stopped": [self.stopped]}
        return pa.table({**told, "table": _cell(self.table)}, schema=ENVELOPE)

    @classmethod
    def open(cls, row: pa.Table) -> "Envelope":
        """The envelope in a row [1], or a new one from a row that holds nothing but a block's number."""
        if row.schema.names == [NUMBER]:
            return cls(row[NUMBER][0].as_py())
        data = row["table"][0]
        return cls(
            row["block"][0].as_py(),
            pa.ipc.open_stream(data.as_buffer()).read_all() if data.is_valid else None,
            tuple(Timing(**timing) for timing in row["timings"][0].as_py()),
            row["stopped"][0].as_py(),
        )


def _cell(table: pa.Table | None) -> pa.LargeBinaryArray:
    """The table as Arrow IPC in an array [1], which takes the bytes over without another copy."""
    if table is None:
        return pa.nulls(1, pa.large_binary())
    sink = pa.BufferOutputStream()
    # One batch: a dictionary column must not be written once for every chunk.
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])
