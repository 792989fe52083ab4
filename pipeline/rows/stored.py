"""Rows of Parquet and Arrow files where they lie, from the front of a row group in batches of bounded size.

Parquet has no way to begin in the middle of a row group: its pages must be decoded one after the other. A
process therefore keeps the reader it used last where it stands, so that blocks which are read in ascending
order decode a row group once.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipeline import storage
from pipeline.rows.memory import PIECE_BYTES, PIECE_ROWS


class ParquetRows:
    """A Parquet file whose column chunks are streamed rather than read as a whole.

    Only the schema, row counts and sizes of row groups may be asked of it: pyarrow ends the process when it
    is asked for those of a column in a broken footer.
    """

    def __init__(self, uri: str) -> None:
        source, path = storage.resolve(uri)
        self._file = pq.ParquetFile(source.open_input_file(path), buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._file.schema_arrow
        groups = map(self._file.metadata.row_group, range(self._file.num_row_groups))
        self.sizes = [(group.num_rows, group.total_byte_size) for group in groups]

    def batches(
        self, group: int, columns: Sequence[str], max_rows: int, without_bytes: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Columns of a row group; `without_bytes` leaves out fields of that name."""
        if without_bytes:
            paths = (self._file.schema.column(i).path for i in range(len(self._file.schema)))
            columns = [p for p in paths if p.split(".")[0] in columns and not p.endswith(".bytes")]
        return self._file.iter_batches(max_rows, row_groups=[group], columns=list(columns), use_threads=False)


class ArrowRows:
    """The same of an Arrow stream (what `datasets` saves) or file: its record batches are the groups.

    A batch is validated before anything but its length is asked of it, since pyarrow trusts what it maps.
    """

    def __init__(self, uri: str) -> None:
        filesystem, path = storage.resolve(uri)
        source = pa.memory_map(path) if storage.is_local(uri) else filesystem.open_input_file(path)
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            self._batches = list(reader)
        self.schema = reader.schema
        self.sizes = [(len(batch), batch.get_total_buffer_size()) for batch in self._batches]

    def batches(
        self, group: int, columns: Sequence[str], max_rows: int, without_bytes: bool = False
    ) -> Iterator[pa.RecordBatch]:
        batch = self._batches[group].select(columns)
        batch.validate(full=True)
        if without_bytes:
            batch = pa.RecordBatch.from_arrays([_without_bytes(c) for c in batch], names=list(columns))
        for begin in range(0, len(batch), max_rows):
            yield batch.slice(begin, max_rows)


def _without_bytes(column: pa.Array) -> pa.Array:
    if not pat.is_struct(column.type):
        return column
    names = [field.name for field in column.type if field.name != "bytes"]
    if not names:
        return pa.nulls(len(column))
    return pa.StructArray.from_arrays([column.field(n) for n in names], names, mask=column.is_null())


Rows = ParquetRows | ArrowRows


def open_rows(uri: str) -> Rows:
    return ArrowRows(uri) if storage.name_of(uri).lower().endswith(".arrow") else ParquetRows(uri)


class _RowGroup:
    """The rows of a row group from `position` on."""

    def __init__(self, uri: str, group: int, columns: Sequence[str], max_rows: int) -> None:
        self.key = (uri, group, tuple(columns), max_rows)
        file = open_rows(uri)
        num_rows, num_bytes = file.sizes[group]
        fitting = PIECE_BYTES * num_rows // max(num_bytes, 1)  # where rows are of equal size
        self.position, self.rest = 0, pa.record_batch({})
        self.batches = file.batches(group, columns, max(1, min(fitting, max_rows)))

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
