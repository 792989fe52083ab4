"""Rows of a Parquet file, read from the front of a row group in batches of bounded size.

Parquet has no way to begin in the middle of a row group: its pages must be decoded one after the other. A
process therefore keeps the readers it used last, each where it stands, so that blocks which are read in
ascending order decode a row group once.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.rows.memory import MIB, PIECE_BYTES, PIECE_ROWS

OPEN_READERS = 2  # kept by a process
MAX_KEPT_BYTES = 256 * MIB  # of a reader: one that holds larger pages is closed after each use
FIRST_ROWS, SKIPPED_ROWS = 16, 256  # in the first batch; at most in one that is not wanted
MIN_BUFFER, MAX_BUFFER, ALL_BUFFERS = 64 << 10, 8 * MIB, 64 * MIB  # of a column; of all columns

Key = tuple[str, Any, int, tuple[str, ...]]  # URI, version of the file, row group, columns


def open_parquet(uri: str, columns: int = 1, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file whose column chunks are streamed rather than read as a whole; `columns` of them at once.

    With `metadata`, the footer is not read again. Only the schema, row counts and sizes of row groups may be
    asked of it: pyarrow ends the process when it is asked for those of a column in a broken footer.
    """
    source, path = storage.resolve(uri)
    buffer = min(max(ALL_BUFFERS // max(columns, 1), MIN_BUFFER), MAX_BUFFER)
    stream = source.open_input_file(path)
    return pq.ParquetFile(stream, metadata=metadata, buffer_size=buffer, pre_buffer=False)


class RowGroup:
    """A row group that is read once, front to back. Raises OSError and pa.ArrowException."""

    def __init__(
        self,
        uri: str,
        group: int,
        columns: tuple[str, ...],
        metadata: pq.FileMetaData | None = None,
    ) -> None:
        self.group, self.columns = group, columns
        self.file = open_parquet(uri, len(columns), metadata)
        info = self.file.metadata.row_group(group)
        self.num_rows, self.row_bytes = info.num_rows, info.total_byte_size // max(info.num_rows, 1)
        if self.num_rows < 0:
            raise OSError(f"row group {group} claims {self.num_rows:,} rows; the file is damaged")
        self.position = 0
        self.rows_at_once = _fitting(FIRST_ROWS, self.row_bytes)
        self._batches: Any = None

    def batches(self, begin: int, end: int, max_rows: int = PIECE_ROWS) -> Iterator[pa.RecordBatch]:
        """Rows [begin, end) in batches that lie within; `begin` must not be before the position."""
        while self.position < begin:
            self._next(min(begin - self.position, SKIPPED_ROWS))
        while self.position < end:
            yield self._next(min(end - self.position, max_rows))

    def _next(self, at_most: int) -> pa.RecordBatch:
        count = min(self.rows_at_once, at_most)
        if self._batches is None:
            self._batches = self.file.iter_batches(
                count, row_groups=[self.group], columns=list(self.columns), use_threads=False
            )
        self.file.reader.set_batch_size(count)  # takes effect with the next batch
        batch = next(self._batches, None)
        if batch is None or not 0 < len(batch) <= at_most:
            raise OSError(
                f"row group {self.group} ends after {self.position:,} of its {self.num_rows:,} rows; "
                "the file is damaged"
            )
        self.position += len(batch)
        self.rows_at_once = _fitting(2 * count, batch.nbytes // len(batch))
        return batch

    def close(self) -> None:
        self._batches = None
        self.file.close(force=True)


def _version(uri: str) -> Any:
    """Changes when a local file is replaced; asking an object store would cost a request for every block."""
    if not storage.is_local(uri):
        return None
    source, path = storage.resolve(uri)
    info = source.get_file_info(path)
    return info.size, info.mtime_ns


def _fitting(rows: int, row_bytes: int) -> int:
    return max(1, min(rows, PIECE_BYTES // max(row_bytes, 1)))


_kept: "OrderedDict[Key, RowGroup]" = OrderedDict()


def row_batches(
    uri: str, group: int, columns: Sequence[str], begin: int, end: int, max_rows: int = PIECE_ROWS
) -> Iterator[pa.RecordBatch]:
    """Rows [begin, end) of a row group, with these columns, in batches of at most `max_rows` rows.

    Raises OSError or pa.ArrowException for a file that cannot be read.
    """
    version = _version(uri)
    key = (uri, version, group, tuple(columns))
    reader = _kept.pop(key, None)  # taken out while it is used, so that threads cannot share it
    if reader is None or reader.position > begin:
        footers = [r.file.metadata for k, r in list(_kept.items()) if k[:2] == (uri, version)]
        reader = RowGroup(uri, group, key[-1], footers[0] if footers else None)
    done = False
    try:
        yield from reader.batches(begin, end, max_rows)
        done = True
    finally:
        if done and pa.total_allocated_bytes() < MAX_KEPT_BYTES:
            _kept[key] = reader
            while len(_kept) > OPEN_READERS:
                _kept.popitem(last=False)[1].close()
        else:
            reader.close()
