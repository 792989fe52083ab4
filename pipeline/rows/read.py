"""Stage 1, `read`: the manifest's rows of one block, every value checked and of its column's type.

Input: the slices of the manifest that make up the block. A value that is missing, of the wrong kind or too
large becomes the row's error. `audio` paths come out absolute or as URIs, without the credentials and options
of the manifest's own URI. Rows pass through in pieces of bounded size, so that Python objects exist of one
piece at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ERROR, ManifestError, RowError, error_record, is_unicode, shown
from pipeline.rows import arrow_values
from pipeline.rows.columns import EXTRA_PREFIX, ID, ROW_DIGEST, SOURCE, TEXT
from pipeline.rows.manifest import UNREADABLE, Manifest, Slice, open_file
from pipeline.rows.memory import MAX_EXTRA_BYTES, MAX_TEXT_CHARS, PIECE_BYTES, PIECE_ROWS
from pipeline.rows.parquet_rows import row_batches
from pipeline.rows.payloads import Payload
from pipeline.rows.plan import as_slices, block_name, source_of
from pipeline.rows.row_types import convert, convert_array
from pipeline.rows.scan import checked_id, chunks, text_records


@dataclass
class RawRows:
    """Rows as the manifest holds them; lists and arrays are [n]. A RowError stands for a value not taken."""

    numbers: list[int]  # record numbers in the file, from 1
    ids: list[Any]
    texts: list[Any]
    payloads: list[Any]
    extra: list[pa.Array]  # in the manifest's order, of the manifest's types
    problems: dict[int, RowError]


def read_block(manifest: Manifest, slices: pa.Table) -> pa.Table:
    """The rows of a block from its SLICES, in manifest order: ID, TEXT, the payload, SOURCE, ROW_DIGEST,
    ERROR and pass-through columns.

    Raises ManifestError when a file has changed or cannot be read any more.
    """
    tables = []
    for part in as_slices(slices):
        file = manifest.files[part.file]
        try:
            pieces = _parquet_pieces if file.is_parquet else _text_pieces
            tables += [_table(manifest, part, raw) for raw in pieces(manifest, part)]
        except UNREADABLE as error:
            raise ManifestError(f"manifest file {file.uri} cannot be read: {error}") from error
    table = pa.concat_tables(tables).combine_chunks()
    if block_name(table["id"].to_pylist()) != slices["name"][0].as_py():
        raise _changed(manifest, part, part.first_row)
    return table


def _parquet_pieces(manifest: Manifest, part: Slice) -> Iterator[RawRows]:
    """Rows of a row group. Those behind a damaged page cannot be read, which is their error."""
    file = manifest.files[part.file]
    present = [name for name in file.columns or () if manifest.extra.get_field_index(name) >= 0]
    columns = (*manifest.payload.required, *present)
    position = part.begin
    failure: Exception | None = None
    for max_rows in (PIECE_ROWS, 1):  # the second time row by row, with a new reader
        try:
            for batch in row_batches(file.uri, part.group, columns, position, part.end, max_rows):
                if (wanted := _wanted(batch, part, position))[1]:
                    yield _raw_parquet_rows(manifest, *wanted)
                position += len(batch)
            return
        except UNREADABLE as error:
            failure = error
    for batch in row_batches(file.uri, part.group, ("id",), position, part.end):
        if (wanted := _wanted(batch, part, position))[1]:
            yield _damaged_rows(manifest, failure, *wanted)
        position += len(batch)


def _wanted(batch: pa.RecordBatch, part: Slice, position: int) -> tuple[pa.RecordBatch, list[int]]:
    """Those of the rows from `position` on that belong to the slice, and their numbers."""
    first = part.first_row - part.begin + position
    if part.rows is None:
        return batch, list(range(first, first + len(batch)))
    numbers = [number for number in part.rows if first <= number < first + len(batch)]
    return batch.take(pa.array([number - first for number in numbers], pa.int64())), numbers


def _damaged_rows(
    manifest: Manifest, failure: Exception | None, rows: pa.RecordBatch, numbers: list[int]
) -> RawRows:
    error = RowError("UnreadableRow", f"the Parquet file is damaged at this row or before it: {failure}")
    extra = [pa.nulls(len(rows), field.type) for field in manifest.extra]
    nothing = [error] * len(rows)
    return RawRows(numbers, arrow_values.values(rows.column(0), "id"), nothing, nothing, extra, {})


def _raw_parquet_rows(manifest: Manifest, rows: pa.RecordBatch, numbers: list[int]) -> RawRows:
    columns = {name: rows.column(rows.schema.get_field_index(name)) for name in rows.schema.names}
    extra = [columns.get(field.name, pa.nulls(len(rows))) for field in manifest.extra]
    problems = {
        i: RowError("InvalidUtf8", f"column {shown(field.name)} is not valid UTF-8")
        for field, column in zip(manifest.extra, extra, strict=True)
        for i in arrow_values.invalid_text_rows(column)
    }
    if sum(column.nbytes for column in extra) > MAX_EXTRA_BYTES:
        for i in range(len(rows)):
            size = sum(column.slice(i, 1).nbytes for column in extra)
            if size > MAX_EXTRA_BYTES:
                text = f"the row's other columns have {size:,} bytes; at most {MAX_EXTRA_BYTES:,}"
                problems[i] = RowError("RowTooLarge", text)
    extra = [arrow_values.with_nulls(column, list(problems)) for column in extra]
    for i, field in enumerate(manifest.extra):
        extra[i], misfits = convert_array(field.name, extra[i], field.type)
        problems = misfits | problems
    return RawRows(
        numbers,
        arrow_values.values(columns["id"], "id"),
        arrow_values.values(columns["text"], "the text"),
        arrow_values.values(columns[manifest.payload.column], manifest.payload.column),
        extra,
        problems,
    )


def _text_pieces(manifest: Manifest, part: Slice) -> Iterator[RawRows]:
    wanted = None if part.rows is None else set(part.rows)
    with open_file(manifest.files[part.file].uri) as stream:
        records = enumerate(
            text_records(manifest.files[part.file], stream, part.begin, part.end), part.first_row
        )
        chosen = ((number, record) for number, record in records if wanted is None or number in wanted)
        # Python objects take several times the bytes of a record.
        for numbers, piece in chunks(chosen, PIECE_ROWS, PIECE_BYTES // 4):
            rows = []
            for number, record in zip(numbers, piece, strict=True):
                if isinstance(record.value, RowError):
                    raise _changed(manifest, part, number)
                rows.append(record.value)
            yield _raw_text_rows(manifest, part, rows, numbers)


def _raw_text_rows(
    manifest: Manifest, part: Slice, rows: list[dict[str, Any]], numbers: list[int]
) -> RawRows:
    is_csv = manifest.files[part.file].columns is not None

    def column(name: str) -> list[Any]:
        # CSV knows no null: an empty field is a missing value.
        return [row[name] or None if is_csv else row.get(name) for row in rows]

    extra: list[pa.Array] = []
    problems: dict[int, RowError] = {}
    for field in manifest.extra:
        array, misfits = convert(field.name, [row.get(field.name) for row in rows], field.type)
        extra.append(array)
        problems = misfits | problems
    return RawRows(numbers, column("id"), column("text"), column(manifest.payload.column), extra, problems)


def _table(manifest: Manifest, part: Slice, raw: RawRows) -> pa.Table:
    folder = storage.bare(manifest.files[part.file].folder)
    errors = dict(raw.problems)
    # A row with an error takes neither its text nor its audio along.
    texts: list[str | None] = [None] * len(raw.ids)
    payloads: list[Any] = [None] * len(raw.ids)
    for i, (text, payload) in enumerate(zip(raw.texts, raw.payloads, strict=True)):
        try:
            checked = _checked_text(text), _checked_payload(manifest.payload, payload, folder)
        except RowError as error:
            errors.setdefault(i, error)
        if i not in errors:
            texts[i], payloads[i] = checked
    try:
        ids = [checked_id(value) for value in raw.ids]
    except RowError as error:
        raise _changed(manifest, part, raw.numbers[0]) from error
    sources = [source_of(manifest, part.file, number) for number in raw.numbers]
    columns = [
        pa.array(ids, ID.type),
        pa.array(texts, TEXT.type),
        pa.array(payloads, manifest.payload.field.type),
        pa.array(sources, SOURCE.type),
        pa.array(map(manifest.payload.digest, raw.texts, raw.payloads), ROW_DIGEST.type),
        pa.array(
            [error_record("read", errors[i]) if i in errors else None for i in range(len(ids))], ERROR.type
        ),
        *raw.extra,
    ]
    extra = [field.with_name(EXTRA_PREFIX + field.name) for field in manifest.extra]
    return pa.table(
        columns, schema=pa.schema([ID, TEXT, manifest.payload.field, SOURCE, ROW_DIGEST, ERROR, *extra])
    )


def _changed(manifest: Manifest, part: Slice, row: int) -> ManifestError:
    return ManifestError(
        f"{source_of(manifest, part.file, row)} has changed since the run began; start the run again"
    )


def _checked_text(text: Any) -> str:
    if isinstance(text, RowError):
        raise text
    if text is None:
        raise RowError("MissingText", "text is null")
    if not isinstance(text, str):
        raise RowError("InvalidText", f"text must be a string, not {shown(text)}")
    if len(text) > MAX_TEXT_CHARS:
        raise RowError("TextTooLong", f"the text has {len(text):,} characters; at most {MAX_TEXT_CHARS:,}")
    if not is_unicode(text):
        raise RowError("InvalidText", "text holds a lone surrogate, which is no Unicode text")
    return text


def _checked_payload(payload: Payload, value: Any, folder: str) -> Any:
    if isinstance(value, RowError):
        raise value
    converted = payload.convert(value, folder)
    try:
        pa.array([converted], payload.field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RowError("InvalidValue", f"column {payload.column!r}: {error}") from error
    return converted
