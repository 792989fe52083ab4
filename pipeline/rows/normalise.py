"""Text manifests become Parquet once, on the driver: whatever reads rows later knows Parquet alone.

A record is a row of the copy, in its place; what makes it unusable stands in the copy's `error`, and its id
may be null. Values stay as the manifest has them where one type can hold them; mixed ones become the
payload's own type.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ERROR, ManifestError, RowError, error_record, public
from pipeline.rows.columns import EXTRA_PREFIX, ID, ROW_DIGEST, TEXT
from pipeline.rows.manifest import ManifestFile, check_columns
from pipeline.rows.manifest_text import Value, Values, csv_rows, is_csv, jsonl_rows, open_text
from pipeline.rows.memory import MIB
from pipeline.rows.payloads import Payload, checked_id, checked_text, paths_in, taken
from pipeline.rows.row_types import ColumnTypes, convert, infer, num_fields

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
            header, values = csv_rows(stream, file.uri)
            seen, values = dict.fromkeys(header), _without_empty(values, payload)
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


def _without_empty(rows: Values, payload: Payload) -> Values:
    """CSV knows no null: an empty field of a column that must have a value is a missing one."""
    for row, size in rows:
        if isinstance(row, dict):
            row |= {name: row.get(name) or None for name in payload.required}
        yield row, size


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


def _has_secret(value: Any) -> bool:
    return any(isinstance(path, str) and public(path) != path for path in paths_in(value))


def _table(
    records: list[Value], payload: Payload, types: ColumnTypes, uri: str, names: list[str]
) -> pa.Table:
    """The rows of a copy: id, text, payload, the pass-through columns of these names, ROW_DIGEST, ERROR."""
    errors = {i: value for i, value in enumerate(records) if isinstance(value, RowError)}
    rows: list[dict[str, Any]] = [{} if isinstance(value, RowError) else value for value in records]
    columns: dict[str, pa.Array] = {}

    def add(name: str, values: list[Any], dtype: pa.DataType) -> None:
        columns[name], misfits = convert(name.removeprefix(EXTRA_PREFIX), values, dtype)
        errors.update(misfits | errors)

    def checked(name: str, check: Callable[[Any], Any]) -> list[Any]:
        values = [taken(check, errors.get(i, row.get(name))) for i, row in enumerate(rows)]
        errors.update({i: value for i, value in enumerate(values) if isinstance(value, RowError)})
        return [None if isinstance(value, RowError) else value for value in values]

    add("id", checked("id", checked_id), ID.type)
    for name in names:
        if name not in payload.own:
            values = [row.get(name) for row in rows]
            add(EXTRA_PREFIX + name, values, types.observe(name, values, uri))
    add("text", checked("text", checked_text), TEXT.type)
    raw = values = [row.get(payload.column) for row in rows]
    kind = infer(values)
    secret = payload.named and any(map(_has_secret, values))
    if secret or kind is None or num_fields(kind) > MAX_PAYLOAD_FIELDS or not payload.accepts(kind):
        values, kind = (
            checked(payload.column, lambda value: payload.convert(value, "")),
            payload.field.type,
        )
    add(payload.column, values, kind)
    digests = [payload.digest(row.get("text"), value) for row, value in zip(rows, raw, strict=True)]
    columns["row_digest"] = pa.array(digests, ROW_DIGEST.type)
    known = [error_record("read", errors[i]) if i in errors else None for i in range(len(rows))]
    columns["error"] = pa.array(known, ERROR.type)
    return pa.table(columns)
