"""Stage 1, `read`: the manifest's rows of one block, every value checked and of its column's type.

Input: the slices of the manifest that make up the block. A value that is missing, of the wrong kind or too
large becomes the row's error. `audio` paths come out absolute or as URIs, without the credentials and options
of the manifest's own URI. Rows pass through in pieces of bounded size, so that Python objects exist of one
piece at a time.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ERROR, ManifestError, RowError, error_record
from pipeline.rows.columns import EXTRA_PREFIX, ID, ROW_DIGEST, SOURCE, TEXT, set_columns
from pipeline.rows.manifest import UNREADABLE, Manifest, ManifestFile, readable
from pipeline.rows.memory import MAX_EMBEDDED_BYTES, MAX_EXTRA_BYTES, PIECE_ROWS
from pipeline.rows.normalise import PLACE, checked
from pipeline.rows.plan import block_name
from pipeline.rows.stored import row_batches
from pipeline.rows.types import convert, python_values

# And the payload, and the pass-through columns.
OUTPUT = pa.schema([ID, TEXT, SOURCE, ROW_DIGEST, ERROR])


def read_block(manifest: Manifest, slices: pa.Table) -> pa.Table:
    """The rows of a block from its SLICES, in manifest order: ID, TEXT, the payload, SOURCE, ROW_DIGEST,
    ERROR and pass-through columns.

    Raises ManifestError when a file has changed or cannot be read any more.
    """
    spans = [(part["begin"], part["end"]) for part in slices.to_pylist()]
    table = pa.concat_tables([table for span in spans for table in _rows(manifest, *span)]).combine_chunks()
    if block_name(table["id"].to_pylist()) != slices["name"][0].as_py():
        where = manifest.source(spans[0][0])
        raise ManifestError(f"{where} has changed since the run began; start the run again")
    return table


def _rows(manifest: Manifest, begin: int, end: int) -> Iterator[pa.Table]:
    """Rows [begin, end) of the manifest."""
    bounds = np.append(manifest.groups["first"][1:], end)
    while begin < end:
        number = int(np.searchsorted(manifest.groups["first"], begin, side="right")) - 1
        group, stop = manifest.groups[number], min(end, int(bounds[number]))
        file, first = manifest.files[group["file"]], int(group["first"])
        with readable(file):
            for batch, failure in _batches(file, int(group["group"]), begin - first, stop - first):
                table = _with_clips(file, batch) if file.copy else _checked(file, batch, failure)
                yield _finished(manifest, table, begin)
                begin += len(batch)


def _batches(
    file: ManifestFile, group: int, begin: int, end: int
) -> Iterator[tuple[pa.RecordBatch, Exception | None]]:
    """Rows of a row group, and what has damaged them: those behind a damaged page have their ids alone."""
    only_id, failure = [file.names["id"]], None
    if file.copy:
        columns = ["id", "text", file.payload.field.name, "row_digest", "error"]
        columns += [PLACE.name] if file.reader == "webdataset" else []
        columns += [EXTRA_PREFIX + name for name in file.passing]
        yield from ((batch, None) for batch in row_batches(file.copy, group, columns, begin, end))
        return
    # The second time row by row, with a new reader.
    for names, max_rows in ((file.columns_read, PIECE_ROWS), (file.columns_read, 1), (only_id, PIECE_ROWS)):
        try:
            for batch in row_batches(file.uri, group, names, begin, end, max_rows):
                yield batch, failure if names == only_id else None
                begin += len(batch)
            return
        except UNREADABLE as error:
            if names == only_id:
                raise
            failure = error


def _checked(file: ManifestFile, batch: pa.RecordBatch, failure: Exception | None) -> pa.Table:
    """Rows as a copy would have them, but for types of pass-through columns."""
    count = len(batch)
    ids, texts, values = (python_values(batch, file.names[own]) for own in file.payload.required)
    errors: dict[int, RowError] = {}
    if failure is not None:
        message = f"the file is damaged at this row or before it: {failure}"
        errors = dict.fromkeys(range(count), RowError("UnreadableRow", message))
    table = checked(file, file.ids(ids), texts, values, errors)
    for name in file.passing:
        constant = pa.array([file.hive.get(name)] * count, pa.string())
        column = batch.column(name) if name in batch.schema.names else constant
        table = table.append_column(EXTRA_PREFIX + name, column)
    return table


def _with_clips(file: ManifestFile, batch: pa.RecordBatch) -> pa.Table:
    """Rows of a copy with the bytes of those clips that lie in the manifest's own file, a tar."""
    table = pa.Table.from_batches([batch])
    if PLACE.name not in table.schema.names:
        return table
    field, errors = file.payload.field, table["error"].to_pylist()
    clips, places = table[field.name].to_pylist(), table[PLACE.name].to_pylist()
    filesystem, path = storage.resolve(file.uri)
    with filesystem.open_input_file(path) as tar:
        for i, place in enumerate(places):
            if place is None or errors[i] is not None:
                continue
            if place["size"] > MAX_EMBEDDED_BYTES:
                message = f"the clip has {place['size']:,} bytes; at most {MAX_EMBEDDED_BYTES:,}"
                errors[i] = error_record("read", RowError("ValueTooLarge", message))
                continue
            data = tar.read_at(512 + place["size"], place["offset"] - 512)
            if data[:100].rstrip(b"\0").decode(errors="replace") not in clips[i][0]["path"]:
                raise ManifestError(f"{file.uri} has changed since the run began; start the run again")
            clips[i][0]["bytes"] = data[512:]
    return set_columns(table, {field: clips, ERROR: errors})


def _finished(manifest: Manifest, table: pa.Table, position: int) -> pa.Table:
    """The rows, the first at this position, with SOURCE and the manifest's pass-through columns alone. Those
    with an error take neither their text nor their audio along.
    """
    count = len(table)
    extra: dict[pa.Field, pa.Array] = {}
    errors: dict[int, RowError] = {}
    for field in manifest.extra:
        name = EXTRA_PREFIX + field.name
        found = table[name].combine_chunks() if name in table.schema.names else pa.nulls(count)
        extra[field.with_name(name)], misfits = convert(field.name, found, field.type)
        errors = misfits | errors
    if sum(column.nbytes for column in extra.values()) > MAX_EXTRA_BYTES:
        for i in range(count):
            size = sum(column.slice(i, 1).nbytes for column in extra.values())
            if size > MAX_EXTRA_BYTES:
                text = f"the row's other columns have {size:,} bytes; at most {MAX_EXTRA_BYTES:,}"
                errors[i] = RowError("RowTooLarge", text)
    misfit = {i: error_record("read", error) for i, error in errors.items()}
    records = [record or misfit.get(i) for i, record in enumerate(table["error"].to_pylist())]
    kept = pa.array([None if i in errors else i for i in range(count)], pa.int64())
    good = pa.array([None if record else i for i, record in enumerate(records)], pa.int64())
    payload = manifest.payload.field
    columns: dict[pa.Field, pa.Array] = {
        ID: table["id"],
        TEXT: table["text"].take(good),
        payload: table[payload.name].take(good),
        SOURCE: pa.array([manifest.source(position + i) for i in range(count)]),
        ROW_DIGEST: table["row_digest"],
        ERROR: pa.array(records, ERROR.type),
        **{field: column.take(kept) if errors else column for field, column in extra.items()},
    }
    return pa.table(list(columns.values()), schema=pa.schema(list(columns)))
