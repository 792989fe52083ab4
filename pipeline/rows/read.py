"""Stage 1, `read`: the manifest's rows of one block, every value checked and of its column's type.

Input: the slices of the manifest that make up the block. A value that is missing, of the wrong kind or too
large becomes the row's error. `audio` paths come out absolute or as URIs, without the credentials and options
of the manifest's own URI. Rows pass through in pieces of bounded size, so that Python objects exist of one
piece at a time.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ERROR, ManifestError, RowError, error_record, shown
from pipeline.rows import arrow_values
from pipeline.rows.columns import EXTRA_PREFIX, ID, ROW_DIGEST, SOURCE, TEXT
from pipeline.rows.manifest import UNREADABLE, Manifest, ManifestFile, readable
from pipeline.rows.memory import MAX_EXTRA_BYTES, PIECE_ROWS
from pipeline.rows.parquet_rows import row_batches
from pipeline.rows.payloads import checked_text, taken
from pipeline.rows.plan import Slice, as_slices, block_name, source_of
from pipeline.rows.row_types import convert


def read_block(manifest: Manifest, slices: pa.Table) -> pa.Table:
    """The rows of a block from its SLICES, in manifest order: ID, TEXT, the payload, SOURCE, ROW_DIGEST,
    ERROR and pass-through columns.

    Raises ManifestError when a file has changed or cannot be read any more.
    """
    tables = []
    for part in as_slices(slices):
        with readable(manifest.files[part.file]):
            tables += [_table(manifest, part, *piece) for piece in _pieces(manifest, part)]
    table = pa.concat_tables(tables).combine_chunks()
    if block_name(table["id"].to_pylist()) != slices["name"][0].as_py():
        place = source_of(manifest, part.file, part.first_row)
        raise ManifestError(f"{place} has changed since the run began; start the run again")
    return table


def _pieces(manifest: Manifest, part: Slice) -> Iterator[tuple[int, pa.RecordBatch, Exception | None]]:
    """Rows of a slice: the place of the first, their columns, and what has damaged them: those behind a
    damaged page have their ids alone.
    """
    file = manifest.files[part.file]
    present = [name for field in manifest.extra if (name := _stored_name(file, field)) in file.columns]
    columns = (*manifest.payload.required, *present, *(["row_digest", "error"] if file.is_copy else []))
    position, failure = part.begin, None
    # The second time row by row, with a new reader.
    for names, max_rows in ((columns, PIECE_ROWS), (columns, 1), (("id",), PIECE_ROWS)):
        try:
            for batch in row_batches(file.parquet, part.group, names, position, part.end, max_rows):
                yield position, batch, failure if len(names) == 1 else None
                position += len(batch)
            return
        except UNREADABLE as error:
            if file.is_copy or len(names) == 1:
                raise
            failure = error


def _stored_name(file: ManifestFile, field: pa.Field) -> str:
    return EXTRA_PREFIX + field.name if file.is_copy else str(field.name)


def _table(
    manifest: Manifest, part: Slice, position: int, batch: pa.RecordBatch, failure: Exception | None
) -> pa.Table:
    file, payload, count = manifest.files[part.file], manifest.payload, len(batch)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))

    def column(name: str) -> pa.Array:
        return columns.get(name, pa.nulls(count))

    extra, errors = _extra(manifest, [column(_stored_name(file, field)) for field in manifest.extra], count)
    if failure is not None:
        message = f"the Parquet file is damaged at this row or before it: {failure}"
        errors = dict.fromkeys(range(count), RowError("UnreadableRow", message))
    records = column("error").to_pylist() if file.is_copy else [None] * count
    raw_texts = arrow_values.values(column("text"), "the text")
    raw_payloads = arrow_values.values(column(payload.column), payload.column)
    digests = map(payload.digest, raw_texts, raw_payloads)
    folder = storage.bare(storage.parent(file.uri))
    texts: list[Any] = [None] * count
    payloads: list[Any] = [None] * count
    for i in range(count):
        if records[i] is None and i not in errors:
            texts[i] = taken(checked_text, raw_texts[i])
            payloads[i] = taken(lambda value: payload.convert(value, folder), raw_payloads[i])
            found = [value for value in (texts[i], payloads[i]) if isinstance(value, RowError)]
            if found:
                errors[i], payloads[i] = found[0], None
    converted, misfits = convert(payload.column, payloads, payload.field.type)
    errors = misfits | errors
    records = [records[i] or (error_record("read", errors[i]) if i in errors else None) for i in range(count)]
    # A row with an error takes neither its text nor its audio along.
    texts = [None if record else text for record, text in zip(records, texts, strict=True)]
    first = part.first_row - part.begin + position
    ids = [value if value is None else str(value) for value in arrow_values.values(column("id"), "id")]
    fields = [field.with_name(EXTRA_PREFIX + field.name) for field in manifest.extra]
    return pa.table(
        [
            pa.array(ids, ID.type),
            pa.array(texts, TEXT.type),
            converted,
            pa.array([source_of(manifest, part.file, first + i) for i in range(count)], SOURCE.type),
            columns["row_digest"] if file.is_copy else pa.array(digests, ROW_DIGEST.type),
            pa.array(records, ERROR.type),
            *extra,
        ],
        schema=pa.schema([ID, TEXT, payload.field, SOURCE, ROW_DIGEST, ERROR, *fields]),
    )


def _extra(
    manifest: Manifest, columns: list[pa.Array], count: int
) -> tuple[list[pa.Array], dict[int, RowError]]:
    """Pass-through columns [count] of the manifest's types, and the rows with a value that cannot be kept."""
    problems = {
        i: RowError("InvalidUtf8", f"column {shown(field.name)} is not valid UTF-8")
        for field, column in zip(manifest.extra, columns, strict=True)
        for i in arrow_values.invalid_text_rows(column)
    }
    if sum(column.nbytes for column in columns) > MAX_EXTRA_BYTES:
        for i in range(count):
            size = sum(column.slice(i, 1).nbytes for column in columns)
            if size > MAX_EXTRA_BYTES:
                text = f"the row's other columns have {size:,} bytes; at most {MAX_EXTRA_BYTES:,}"
                problems[i] = RowError("RowTooLarge", text)
    kept = list(columns)
    if problems:
        good = pa.array([None if i in problems else i for i in range(count)], pa.int64())
        kept = [column.take(good) for column in columns]
    for i, field in enumerate(manifest.extra):
        kept[i], misfits = convert(field.name, kept[i], field.type)
        problems = misfits | problems
    return kept, problems
