"""Which rows a run works on, and in which blocks.

The driver plans over ids alone: rows without a usable id and repeated ids are rejected, rows that the output
already has are left out, and the rest is cut into blocks in manifest order. A block is the unit that streams
through the stages, is written as one file and is lost or kept as a whole.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RowError, error_record
from pipeline.rows.columns import first_occurrences
from pipeline.rows.manifest import Manifest, groups_of
from pipeline.rows.memory import MAX_BLOCK_BYTES
from pipeline.rows.normalise import RowIndex

# Of a block, where a stream of blocks begins: rows [begin, end) of the manifest that follow each other, and
# the block's name.
SLICES = pa.schema([("begin", pa.int64()), ("end", pa.int64()), ("name", pa.string())])


@dataclass(frozen=True)
class Plan:
    """The rows of every block. Pickles well: a few arrays, whatever the number of blocks."""

    slices: pa.Table  # SLICES of all blocks
    blocks: np.ndarray  # [slices], the number of the block of each, ascending
    names: list[str]  # [num_blocks], `block_name` of the ids that the driver saw there
    starts: np.ndarray  # [num_blocks], which of the planned rows is the first of each block
    num_blocks: int
    rows_per_block: int  # at most

    def slices_of(self, number: int) -> pa.Table:
        """SLICES of one block."""
        first, last = np.searchsorted(self.blocks, [number, number + 1])
        return self.slices.slice(first, last - first)


def block_name(ids: Sequence[str]) -> str:
    """What a block is known by: the same ids in the same order, whatever characters they hold."""
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Selection:
    """Positions in the row index, each ascending; together they are all rows."""

    todo: np.ndarray
    done: np.ndarray
    repeated: np.ndarray  # the id occurred further up
    unusable: np.ndarray  # no id
    changed: np.ndarray  # those of `done` that were made from something else


def select_rows(
    index: RowIndex, done_ids: pa.ChunkedArray, digests: pa.ChunkedArray | None = None
) -> Selection:
    """Sort all rows into to do, done and rejected. The first occurrence of an id counts.

    `done_ids` and `digests` (ROW_DIGEST) are of the rows that the output holds; without digests no row counts
    as changed.
    """
    ids = index.ids
    usable = ids.is_valid().to_numpy()
    first = first_occurrences(ids)
    places = pc.index_in(ids, value_set=done_ids.cast(ids.type))
    done = places.is_valid().to_numpy() & usable
    same = np.ones(int(done.sum()), bool)
    if digests is not None:
        made_from = digests.take(places.filter(pa.array(done)))
        now = index.digests[done]
        same = pc.equal(made_from, pa.array(now)).fill_null(True).to_numpy() | (now == 0)
    return Selection(
        todo=np.flatnonzero(first & ~done),
        done=np.flatnonzero(first & done),
        repeated=np.flatnonzero(usable & ~first),
        unusable=np.flatnonzero(~usable),
        changed=np.setdiff1d(np.flatnonzero(done)[~same], np.flatnonzero(~first)),
    )


def rejected_rows(
    manifest: Manifest, index: RowIndex, selection: Selection
) -> Iterator[dict[str, str | None]]:
    """What the error table says of the rows without an id of their own, in manifest order."""
    for position in np.sort(np.concatenate([selection.repeated, selection.unusable])).tolist():
        row_id = index.ids[position].as_py()
        repeated = f"the id {row_id!r:.80} occurs further up in the manifest; that row counts"
        error = index.problems.get(position) or RowError("DuplicateId", repeated)
        yield {"id": row_id, "source": manifest.source(position), **error_record("manifest", error)}


def make_plan(index: RowIndex, todo: np.ndarray, rows_per_block: int) -> Plan:
    """Cut the rows at positions `todo` [m] into blocks of `rows_per_block`, fewer where rows are large (with
    embedded audio, say).
    """
    # Every row weighs a whole number of units, so that equal rows make blocks of exactly rows_per_block.
    unit = max(MAX_BLOCK_BYTES // rows_per_block, 1)
    limit = unit * rows_per_block
    weight = np.clip(groups_of(index.groups, todo)["num_bytes"], unit, limit)
    blocks = np.unique((np.cumsum(weight) - weight) // limit, return_inverse=True)[1]
    is_first = np.diff(blocks, prepend=-1) != 0
    begins = np.flatnonzero(is_first)
    starts = np.flatnonzero(is_first | (np.diff(todo, prepend=-2) != 1))
    chosen_ids = index.ids.take(pa.array(todo))
    bounds = zip(begins, np.append(begins[1:], len(todo)), strict=False)
    names = [block_name(chosen_ids[a:b].to_pylist()) for a, b in bounds]
    slices = pa.table(
        {
            "begin": todo[starts],
            "end": todo[np.append(starts[1:], len(todo))[: len(starts)] - 1] + 1,
            "name": pa.array(names, pa.string()).take(pa.array(blocks[starts])),
        },
        schema=SLICES,
    )
    return Plan(slices, blocks[starts], names, begins, len(begins), rows_per_block)
