"""Which rows a run works on, and in which blocks.

The driver plans over ids alone: rows without a usable id and repeated ids are rejected, rows that the output
already has are left out, and the rest is cut into blocks in manifest order. A block is the unit that streams
through the stages, is written as one file and is lost or kept as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RowError, error_record, public
from pipeline.rows.columns import first_occurrences
from pipeline.rows.manifest import Manifest, Slice
from pipeline.rows.memory import MAX_BLOCK_BYTES
from pipeline.rows.scan import RowIndex

# Of a block, where a stream of blocks begins: one row for every `Slice`.
SLICES = pa.schema(
    [
        ("file", pa.int32()),
        ("group", pa.int32()),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class Plan:
    """The rows of every block. Pickles well: a few arrays, whatever the number of blocks."""

    slices: pa.Table  # SLICES of all blocks
    blocks: np.ndarray  # [slices], the number of the block of each, ascending
    starts: np.ndarray  # [num_blocks], which of the planned rows is the first of each block
    num_blocks: int
    num_rows: int
    rows_per_block: int  # at most

    def slices_of(self, number: int) -> pa.Table:
        """SLICES of one block."""
        first, last = np.searchsorted(self.blocks, [number, number + 1])
        return self.slices.slice(first, last - first)

    def block(self, number: int) -> list[Slice]:
        return as_slices(self.slices_of(number))


def as_slices(table: pa.Table) -> list[Slice]:
    """The rows of SLICES."""
    return [Slice(**{**row, "rows": row["rows"] and tuple(row["rows"])}) for row in table.to_pylist()]


@dataclass(frozen=True)
class Selection:
    """Positions in the row index, each ascending; together they are all rows."""

    todo: np.ndarray
    done: np.ndarray
    repeated: np.ndarray  # the id occurred further up
    unusable: np.ndarray  # no id


def select_rows(index: RowIndex, done_ids: pa.ChunkedArray) -> Selection:
    """Sort all rows into to do, done and rejected. The first occurrence of an id counts."""
    ids = index.ids
    usable = ids.is_valid().to_numpy()
    first = first_occurrences(ids)
    done = pc.is_in(ids, value_set=done_ids.cast(ids.type)).to_numpy() & usable
    return Selection(
        todo=np.flatnonzero(first & ~done),
        done=np.flatnonzero(first & done),
        repeated=np.flatnonzero(usable & ~first),
        unusable=np.flatnonzero(~usable),
    )


def rejected_rows(
    manifest: Manifest, index: RowIndex, selection: Selection
) -> Iterator[dict[str, str | None]]:
    """What the error table says of the rows without an id of their own, in manifest order."""
    for position in np.sort(np.concatenate([selection.repeated, selection.unusable])).tolist():
        location = index.locations[position]
        source = source_of(manifest, int(location["file"]), int(location["row"]))
        row_id = index.ids[position].as_py()
        error = index.problems.get(position)
        if error is None:
            error = RowError(
                "DuplicateId", f"the id {row_id!r:.80} occurs further up in the manifest; that row counts"
            )
        yield {"id": row_id, "source": source, **error_record("manifest", error)}


def source_of(manifest: Manifest, file: int, row: int) -> str:
    """Where a row stands, for messages: file and record number from 1."""
    return f"{public(manifest.files[file].uri)}, row {row}"


def make_plan(index: RowIndex, todo: np.ndarray, rows_per_block: int) -> Plan:
    """Cut the rows at positions `todo` [m] into blocks of `rows_per_block`, fewer where rows are large (with
    embedded audio, say).
    """
    chosen = index.locations[todo]
    # Every row weighs a whole number of units, so that equal rows make blocks of exactly rows_per_block.
    unit = max(MAX_BLOCK_BYTES // rows_per_block, 1)
    limit = unit * rows_per_block
    weight = np.clip(chosen["num_bytes"], unit, limit)
    blocks = np.unique((np.cumsum(weight) - weight) // limit, return_inverse=True)[1]
    keys = np.stack([blocks, chosen["file"], chosen["group"]])
    starts = np.flatnonzero(np.any(np.diff(keys, axis=1, prepend=-2) != 0, axis=0))
    ends = np.append(starts[1:], len(chosen))[: len(starts)]
    numbers = [chosen["row"][a:b] for a, b in zip(starts, ends, strict=True)]
    # None where the rows are consecutive, which is the rule.
    rows = [None if run[-1] - run[0] + 1 == len(run) else run.tolist() for run in numbers]
    slices = pa.table(
        {
            "file": chosen["file"][starts],
            "group": chosen["group"][starts],
            "begin": chosen["begin"][starts],
            "end": chosen["end"][ends - 1],
            "first_row": chosen["row"][starts],
            "rows": pa.array(rows, type=pa.list_(pa.int64())),
        },
        schema=SLICES,
    )
    begins = np.flatnonzero(np.diff(blocks, prepend=-1))
    return Plan(slices, blocks[starts], begins, len(begins), len(chosen), rows_per_block)
