"""Rows of a Parquet file, read from the front of a row group in batches of bounded size.

Parquet has no way to begin in the middle of a row group: its pages must be decoded one after the other. A
process therefore keeps the reader it used last where it stands, so that blocks which are read in ascending
order decode a row group once.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.rows.memory import PIECE_BYTES, PIECE_ROWS


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file whose column chunks are streamed rather than read as a whole.

    Only the schema, row counts and sizes of row groups may be asked of it: pyarrow ends the process when it
    is asked for those of a column in a broken footer.
    """
    source, path = storage.resolve(uri)
    return pq.ParquetFile(source.open_input_file(path), buffer_size=1 << 20, pre_buffer=False)


class _RowGroup:
    """The rows of a row group from `position` on."""

    def __init__(self, uri: str, group: int, columns: Sequence[str], max_rows: int) -> None:
        self.key = (uri, group, tuple(columns), max_rows)
        file = open_parquet(uri)
        info = file.metadata.row_group(group)
        fitting = PIECE_BYTES * info.num_rows // max(info.total_byte_size, 1)  # where rows are of equal size
        self.position, self.rest = 0, pa.record_batch({})
        self.batches = file.iter_batches(
            max(1, min(fitting, max_rows)), row_groups=[group], columns=list(columns), use_threads=False
        )

    def next(self, at_most: int) -> pa.RecordBatch:
        if not len(self.rest):
            self.rest = next(self.batches, self.rest)
        # Of rows that are all alike, a file holds much less than memory will.
        at_most = min(at_most, max(1, PIECE_BYTES * len(self.rest) // max(self.rest.nbytes, 1)))
        batch, self.rest = self.rest.slice(0, at_most), self.rest.slice(at_most)
        if not len(batch):
            raise OSError(f"a row group ends after {self.position:,} rows; the file is damaged")
        self.position += len(batch)
        return batch


_kept: list[_RowGroup] = []  # at most one


def row_batches(
    uri: str, group: int, columns: Sequence[str], begin: int, end: int, max_rows: int = PIECE_ROWS
) -> Iterator[pa.RecordBatch]:
    """Rows [begin, end) of a row group, with these columns, in batches of at most `max_rows` rows.

    Raises OSError or pa.ArrowException for a file that cannot be read.
    """
    reader = _kept.pop() if _kept else None  # taken out while it is used, so that threads cannot share it
    if reader is None or reader.key != (uri, group, tuple(columns), max_rows) or reader.position > begin:
        reader = _RowGroup(uri, group, columns, max_rows)
    while reader.position < begin:
        reader.next(begin - reader.position)
    while reader.position < end:
        yield reader.next(end - reader.position)
    _kept[:] = [reader]
