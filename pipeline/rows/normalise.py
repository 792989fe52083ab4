"""Every row of a manifest is found once, on the driver: its id, its digest, and where it lies.

Text and tars become Parquet on the way, in files of one row group each: whatever reads rows later knows
columnar files alone, and copies hold values that were checked. The rows of Parquet and Arrow files stay
where they are, unless others are made of them (`pipeline.rows.several`). Texts and audio are never kept in
memory; the index costs about 8 bytes a row and the ids.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ERROR, ManifestError, RowError, error_record
from pipeline.rows import formats
from pipeline.rows.columns import EXTRA_PREFIX, ID, ROW_DIGEST, TEXT, set_columns
from pipeline.rows.manifest import GROUP, NATURAL, STORED, UNREADABLE, Manifest, ManifestFile, readable
from pipeline.rows.memory import MIB
from pipeline.rows.payloads import checked_id, checked_text, taken
from pipeline.rows.several import Voices, clips_of, find_voices, rows_made_of, voices_of_all
from pipeline.rows.stored import Rows, open_rows, row_batches
from pipeline.rows.types import ColumnTypes, convert, python_values

CHUNK_ROWS, CHUNK_BYTES = 32_768, 8 * MIB  # of text that become a copy
SCAN_ROWS = 8192
MAX_PROBLEMS = 1_000_000  # rows without a usable id; more of them make it a bad manifest

# Of a copy whose clips lie in the manifest's own file: where.
PLACE = pa.field("place", pa.struct([("offset", pa.int64()), ("size", pa.int64())]))


@dataclass(frozen=True)
class RowIndex:
    """All rows of a manifest in their order."""

    ids: pa.ChunkedArray  # [n] large_string, null exactly where `problems` has the row
    digests: np.ndarray  # [n] ROW_DIGEST, 0 where it cannot be known
    groups: np.ndarray  # GROUP, of the manifest
    problems: dict[int, RowError]  # by position
    copies: "tempfile.TemporaryDirectory[str] | None" = None  # of text, deleted with the index


Numbered = tuple[formats.Row, int, int]  # a row, its bytes, its record number
# The rows of one row group: its file, its number there, numbers of records, bytes, ids or why there is none,
# digests.
Group = tuple[ManifestFile, int, Sequence[int], int, Sequence[str | RowError], Sequence[int]]


def scan(manifest: Manifest) -> tuple[Manifest, RowIndex]:
    """Index all rows. The manifest comes back with the copies of its text, all row groups and column types.

    Raises ManifestError for a file that cannot be read or lacks a column.
    """
    types, reading = ColumnTypes(manifest.extra), manifest.files[0].reading
    voices = find_voices(reading)
    copies = tempfile.TemporaryDirectory(prefix="clvp-manifest-")
    files: list[ManifestFile] = []
    groups: list[tuple[int, int, int, int, int]] = []
    ids, digests, numbers, position = [], [], [], 0
    problems: dict[int, RowError] = {}
    for file in manifest.files:
        with readable(file):
            lies = file.reader in STORED and not reading.makes_rows
            found = _stored(file) if lies else _copied(file, types, copies.name, voices)
            for place, group, rows, num_bytes, group_ids, group_digests in found:
                files += [place] if files[-1:] != [place] else []
                row = rows[0] if len(rows) else 1
                groups.append((len(files) - 1, group, position, row, num_bytes // max(len(group_ids), 1)))
                numbers += [np.array(rows, np.int32)] if reading.makes_rows else []
                bad = {i: value for i, value in enumerate(group_ids, position) if isinstance(value, RowError)}
                usable = [None if i in bad else value for i, value in enumerate(group_ids, position)]
                ids.append(pa.array(usable, pa.large_string()))
                digests.append(np.array(group_digests, np.uint64))
                position += len(usable)
                problems |= bad
                if len(problems) > MAX_PROBLEMS:
                    first = problems[min(problems)]
                    raise ManifestError(f"over {MAX_PROBLEMS:,} rows have no usable id; the first: {first}")
    if not position:
        raise ManifestError(f"the manifest has no rows: {', '.join(file.uri for file in manifest.files)}")
    places = np.array(groups, GROUP)
    index = RowIndex(pa.chunked_array(ids), np.concatenate(digests), places, problems, copies)
    manifest = replace(manifest, files=tuple(files), extra=types.schema(), groups=places)
    return replace(manifest, numbers=np.concatenate(numbers)) if numbers else manifest, index


# ---- rows that stay where they are ----


def _stored(file: ManifestFile) -> Iterator[Group]:
    rows, row = open_rows(file.uri), 1
    for group, (num_rows, num_bytes) in enumerate(rows.sizes):
        ids: list[str | RowError] = []
        for batch in rows.batches(group, [file.names["id"]], SCAN_ROWS, without_bytes=True):
            values = python_values(batch, file.names["id"])
            ids += [taken(checked_id, value) for value in file.ids(values)]
        if len(ids) != num_rows:
            raise OSError(f"row group {group} has {len(ids):,} of {num_rows:,} rows; it is damaged")
        digests = list(islice(_digests(rows, group, file), num_rows))
        yield file, group, range(row, row + num_rows), num_bytes, ids, digests
        row += num_rows


def _digests(rows: Rows, group: int, file: ManifestFile) -> Iterator[int]:
    """ROW_DIGEST of each row of a row group, without a look at bytes of clips; 0 from a damaged page on."""
    text, value = file.names["text"], file.names[file.payload.column]
    columns = [text, value] if file.payload.named else [text]
    with suppress(*UNREADABLE):
        for batch in rows.batches(group, columns, SCAN_ROWS, without_bytes=True):
            yield from map(file.payload.digest, python_values(batch, text), python_values(batch, value))
    yield from repeat(0)


# ---- rows that are copied ----


def _copied(file: ManifestFile, types: ColumnTypes, folder: str, voices: Voices) -> Iterator[Group]:
    """The rows of a file, copied into a local folder some at a time. `types` learns of their columns.

    Raises ManifestError for a file that lacks a column or whose types do not go with those of earlier files.
    """
    reading, stated = file.reading, list[str]()
    rows: Iterator[Numbered] = ((*row, number) for number, row in enumerate(_rows_of(file), 1))
    if reading.makes_rows:
        stated = file.passing if file.reader in STORED else []
        rows = _several(rows, file, voices)
        where = storage.absolute(reading.voices) if reading.voices else ""
        file = replace(file, reading=NATURAL, hive={}, voices=where)
    if reading.split_text:
        types.declare("pause_s", pa.float64(), file.uri)  # null in all rows, if no text is long
    for place, chunk in _headed(rows, file):
        values, sizes, numbers = zip(*chunk, strict=True)
        num_bytes = sum(sizes)
        table, ids = _table(values, place, types, stated, bool(reading.split_text))
        if PLACE.name in table.schema.names:  # what a block will hold
            num_bytes += pc.sum(pc.struct_field(table[PLACE.name], "size")).as_py() or 0
        copy = os.path.join(folder, f"{uuid.uuid4().hex}.parquet")
        pq.write_table(table, copy, row_group_size=len(table), compression="zstd")
        yield replace(place, copy=copy), 0, numbers, num_bytes, ids, table["row_digest"].to_numpy()


def _rows_of(file: ManifestFile) -> formats.Rows:
    reading = file.reading
    if file.reader in STORED:
        return _stored_rows(file)
    if file.reader == "txt":
        return formats.text_rows(file.uri, whole=bool(reading.split_text), voiced=reading.voiced)
    if file.reader in formats.READERS:
        return formats.READERS[file.reader](file.uri)
    named = {*file.payload.required, *reading.named.values()}
    separator = reading.separator and reading.separator.replace("\\t", "\t")
    if reading.manifest_format == "ljspeech":
        named, separator = set(), "|"
    return formats.csv_rows(file.uri, separator, named)


def _stored_rows(file: ManifestFile) -> formats.Rows:
    columns = file.columns_read
    for group, (num_rows, _) in enumerate(open_rows(file.uri).sizes):
        for batch in row_batches(file.uri, group, columns, 0, num_rows):
            values = [python_values(batch, name) for name in columns]
            for row in zip(*values, strict=True):
                yield dict(zip(columns, row, strict=True)), batch.nbytes // len(batch)


def _several(rows: Iterator[Numbered], file: ManifestFile, voices: Voices) -> Iterator[Numbered]:
    """The rows that are made of those of a file. Raises ManifestError where none of its first has a voice."""
    of_all = voices_of_all(file.reading, voices)
    for place, chunk in _headed(rows, file):
        if "voice" in place.names and not of_all and chunk[0][2] == 1:
            told = [row if isinstance(row, RowError) else row.get(place.names["voice"]) for row, *_ in chunk]
            found = [taken(lambda name: clips_of(name, voices), name) for name in told]
            if all(isinstance(clips, RowError) for clips in found):
                raise ManifestError(f"manifest file {file.uri}: no row has a voice; the first: {found[0]}")
        for row, size, number in chunk:
            if isinstance(row, RowError):
                yield row, size, number
                continue
            for made, made_size in rows_made_of(row, size, place, voices, of_all):
                yield made, made_size, number


def _headed(rows: Iterator[Numbered], file: ManifestFile) -> Iterator[tuple[ManifestFile, list[Numbered]]]:
    """Some records at a time, with the file, whose columns are known by then."""
    seen = dict.fromkeys(file.hive)
    for chunk in _chunks(rows):
        known = len(seen)
        seen |= dict.fromkeys(chain.from_iterable(row for row, *_ in chunk if isinstance(row, dict)))
        if not seen:
            problem = f"no row can be read as {file.reader}; the first: {chunk[0][0]}"
            raise ManifestError(f"manifest file {file.uri}: {problem}")
        if known < len(seen):
            file = file.with_columns(list(seen))
        yield file, chunk


def _chunks(rows: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    chunk: list[Numbered] = []
    size = 0
    for value in rows:
        chunk.append(value)
        size += value[1]
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _table(
    chunk: Sequence[formats.Row],
    file: ManifestFile,
    types: ColumnTypes,
    stated: Sequence[str],
    in_parts: bool,
) -> tuple[pa.Table, list[str | RowError]]:
    """The rows of a copy, with their pass-through columns, and the id of each or what is wrong with it.

    `types` knows those of the columns in `stated`. Rows `in_parts` are others with another pause behind them.
    """
    errors = {i: value for i, value in enumerate(chunk) if isinstance(value, RowError)}
    rows: list[Mapping[str, Any]] = [{} if isinstance(value, RowError) else value for value in chunk]
    ids, texts, values = ([row.get(file.names[own]) for row in rows] for own in file.payload.required)
    if file.reader == "csv":  # which knows no null
        texts = [text or None for text in texts]
    usable = [errors.get(i) or taken(checked_id, v) for i, v in enumerate(file.ids(ids))]
    errors |= {i: value for i, value in enumerate(usable) if isinstance(value, RowError)}
    extra: dict[str, pa.Array] = {}
    for name in file.passing:
        cells = [row.get(name, file.hive.get(name)) for row in rows]
        kind = types.known[name] if name in stated else types.observe(name, cells, file.uri)
        column, misfits = convert(name, cells, kind)
        extra[EXTRA_PREFIX + name], errors = column, misfits | errors
    if file.reader == "webdataset":
        places = [value if isinstance(value, dict) else None for value in values]
        extra[PLACE.name] = pa.array(places, PLACE.type)
    table = checked(file, usable, texts, values, errors)
    if in_parts:  # a text that has become shorter ends with another part
        pauses = [row.get("pause_s") for row in rows]
        digests = map(file.payload.digest, zip(texts, pauses, strict=True), values)
        table = set_columns(table, {ROW_DIGEST: list(digests)})
    for name, column in extra.items():
        table = table.append_column(name, column)
    return table, usable


def checked(
    file: ManifestFile,
    ids: Sequence[Any],
    texts: Sequence[Any],
    values: Sequence[Any],
    errors: dict[int, RowError],
) -> pa.Table:
    """ID, TEXT, the payload, ROW_DIGEST and ERROR of rows from their values, a RowError where there is none.

    The one place that knows what a value may be. `errors` are of rows that are known to be bad.
    """
    payload, folder = file.payload, storage.bare(file.folder)
    digests = list(map(payload.digest, texts, values))

    def passed(check: Callable[[Any], Any], cells: Sequence[Any]) -> list[Any]:
        found = [errors.get(i) or taken(check, cell) for i, cell in enumerate(cells)]
        errors.update({i: value for i, value in enumerate(found) if isinstance(value, RowError)})
        return [None if isinstance(value, RowError) else value for value in found]

    good_texts = passed(checked_text, texts)
    good_values = passed(lambda value: payload.convert(value, folder), values)
    clips, misfits = convert(payload.column, good_values, payload.field.type)
    known = misfits | errors
    records = [error_record("read", known[i]) if i in known else None for i in range(len(ids))]
    columns = {
        ID: [None if isinstance(value, RowError) else str(value) for value in ids],
        TEXT: good_texts,
        payload.field: clips,
        ROW_DIGEST: digests,
        ERROR: records,
    }
    return pa.table([pa.array(c, f.type) for f, c in columns.items()], schema=pa.schema(list(columns)))
