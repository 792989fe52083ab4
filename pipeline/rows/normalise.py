"""Text manifests become Parquet once, on the driver: whatever reads rows later knows Parquet alone.

A record is a row of the copy, in its place; what makes it unusable stands in the copy's `error`. A row without
a usable id has none there. Values stay as the manifest has them where a column of one type can hold them;
mixed ones become the payload's own type.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ERROR, ManifestError, RowError, error_record
from pipeline.rows.columns import EXTRA_PREFIX, ID, TEXT
from pipeline.rows.manifest import ManifestFile, check_columns, own_columns
from pipeline.rows.manifest_text import CsvRows, Value, Values, is_csv, jsonl_rows, open_text
from pipeline.rows.memory import MIB
from pipeline.rows.payloads import Payload, checked_id, checked_text
from pipeline.rows.row_types import ColumnTypes, convert, infer, is_hollow, num_fields

CHUNK_ROWS, CHUNK_BYTES = 8192, 8 * MIB
MAX_PAYLOAD_FIELDS = 16  # of objects that stay as they are


def normalised(file: ManifestFile, payload: Payload, types: ColumnTypes, folder: str) -> list[ManifestFile]:
    """The rows of a JSONL or CSV file as Parquet files in a local folder, one after the other: a new one
    begins where a column appears or its type widens. `types` learns of them.

    Raises ManifestError for a file that lacks a column or whose types do not go with those of earlier files.
    """
    parts: list[ManifestFile] = []
    seen: dict[str, None] = {}
    row, writer = 1, None
    with open_text(file.uri) as stream, ExitStack() as writers:
        values: Values = jsonl_rows(stream)
        if is_csv(file.uri):
            csv = CsvRows(stream, file.uri)
            seen, values = dict.fromkeys(csv.header), _without_empty(csv, payload)
        for chunk in _chunks(values):
            seen |= dict.fromkeys(chain.from_iterable(v for v in chunk if isinstance(v, dict)))
            table = _table(chunk, payload, types, file.uri, list(seen))
            if writer is None or writer.schema != table.schema:
                writers.close()
                path = os.path.join(folder, f"{uuid.uuid4().hex}.parquet")
                writer = writers.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
                parts.append(replace(file, columns=tuple(table.column_names), parquet=path, first_row=row))
            writer.write_table(table, row_group_size=len(table))
            row += len(table)
    if parts and not seen:
        raise ManifestError(f"manifest file {file.uri}: no line holds a JSON object; is it JSON Lines?")
    if seen:
        check_columns(file.uri, list(seen), payload)
    return parts


def _without_empty(rows: Iterable[tuple[Value, int]], payload: Payload) -> Values:
    """CSV knows no null: an empty field of a column that must have a value is a missing one."""
    for row, size in rows:
        yield (row | {name: row.get(name) or None for name in payload.required} if isinstance(row, dict) else row), size


def _chunks(values: Values) -> Iterator[list[Value]]:
    chunk: list[Value] = []
    size = 0
    for value, num_bytes in values:
        chunk.append(value)
        size += num_bytes
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _table(records: list[Value], payload: Payload, types: ColumnTypes, uri: str, names: list[str]) -> pa.Table:
    """The rows of a copy: id, text, payload, the prefixed pass-through columns of these names, ERROR."""
    errors = {i: value for i, value in enumerate(records) if isinstance(value, RowError)}
    rows: list[dict[str, Any]] = [{} if isinstance(value, RowError) else value for value in records]
    columns: dict[str, pa.Array] = {}

    def add(name: str, values: list[Any], dtype: pa.DataType) -> None:
        columns[name], misfits = convert(name.removeprefix(EXTRA_PREFIX), values, dtype)
        errors.update(misfits | errors)

    def checked(name: str, check: Callable[[Any], Any]) -> list[Any]:
        values: list[Any] = [None] * len(rows)
        for i, row in enumerate(rows):
            if i not in errors:
                try:
                    values[i] = check(row.get(name))
                except RowError as error:
                    errors[i] = error
        return values

    add("id", checked("id", checked_id), ID.type)
    for name in names:
        if name not in own_columns(payload):
            values = [row.get(name) for row in rows]
            add(EXTRA_PREFIX + name, values, types.observe(name, values, uri))
    add("text", checked("text", checked_text), TEXT.type)
    values = [row.get(payload.column) for row in rows]
    kind = infer(values)
    if kind is None or is_hollow(kind) or num_fields(kind) > MAX_PAYLOAD_FIELDS or not payload.accepts(kind):
        values, kind = checked(payload.column, lambda value: payload.convert(value, "")), payload.field.type
    add(payload.column, values, kind)
    records_of = [error_record("read", errors[i]) if i in errors else None for i in range(len(rows))]
    return pa.table({**columns, "error": pa.array(records_of, ERROR.type)})
