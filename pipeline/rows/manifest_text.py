"""Records of JSONL and CSV manifests, compressed or not; one that cannot be parsed is a `RowError`.

CSV has no types: every value is the text as it is written, so ids keep their leading zeros.
"""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from pipeline import storage
from pipeline.errors import ManifestError, RowError, is_unicode, shown
from pipeline.rows.memory import MAX_COLUMNS, MAX_JSON_CONTAINERS, MAX_JSON_DEPTH, MAX_RECORD_BYTES

JSONL = (".jsonl", ".ndjson", ".json")
CSV = (".csv", ".tsv")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}

Value = dict[str, Any] | RowError
Values = Iterator[tuple[Value, int]]  # and the size of each in bytes


@contextmanager
def open_text(uri: str) -> Iterator[BinaryIO]:
    """The bytes of a file, which its suffix may say to be compressed."""
    filesystem, path = storage.resolve(uri)
    compression = COMPRESSED.get(path[path.rfind(".") :].lower())
    with filesystem.open_input_stream(path, compression=compression) as stream:
        yield io.BufferedReader(stream, buffer_size=1 << 20)


def is_csv(uri: str) -> bool:
    return _suffix(uri) in CSV


def _suffix(uri: str) -> str:
    """The suffix of a file before that of its compression."""
    name = storage.name_of(uri).lower()
    name = name[: -len(last)] if (last := name[name.rfind(".") :]) in COMPRESSED else name
    return name[name.rfind(".") :]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that end in a line feed; of one over MAX_RECORD_BYTES the first bytes, one over the limit."""
    line = file.readline(MAX_RECORD_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
    while line:
        yield line
        while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES + 1)
        line = file.readline(MAX_RECORD_BYTES + 1)


def jsonl_rows(file: BinaryIO) -> Values:
    """One for each line that is not blank."""
    for line in _lines(file):
        if not line.isspace():
            yield _parse_json(line), len(line)


def _parse_json(line: bytes) -> Value:
    if len(line) > MAX_RECORD_BYTES:
        return RowError("RecordTooLong", f"the line has more than {MAX_RECORD_BYTES:,} bytes")
    # Every list and object takes 30 times its characters, every level a frame of native code later on.
    brackets = line.count(b"[") + line.count(b"{")
    try:
        if brackets > MAX_JSON_CONTAINERS:
            raise ValueError(f"it has more than {MAX_JSON_CONTAINERS:,} lists and objects")
        value = json.loads(line.decode())
        if brackets > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    except (ValueError, RecursionError) as error:
        return RowError("MalformedRow", f"the line is not valid JSON: {error}")
    if not isinstance(value, dict) or not value:
        return RowError("MalformedRow", f"the line holds no JSON object with columns: {shown(value)}")
    if len(value) > MAX_COLUMNS:
        return RowError("MalformedRow", f"the line has {len(value):,} columns; at most {MAX_COLUMNS:,}")
    if not is_unicode("".join(value)):
        return RowError("MalformedRow", "the name of a column holds a lone surrogate")
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def csv_rows(file: BinaryIO, uri: str) -> tuple[list[str], Values]:
    """The header of a CSV file, and its rows as Python's csv module reads them: fields in double quotes may
    hold commas and line breaks.

    Raises ManifestError for a header that cannot be used, and while the rows are read for an endless one.
    """
    records = _csv_records(file, uri)
    header = next(records, ([""], 0, 0))[0]
    problem = None
    if isinstance(header, RowError):
        problem = f"the CSV header cannot be read: {header}; lines must end in a line feed"
    elif not all(map(is_unicode, header)):
        problem = f"the file is not UTF-8 text; its first line holds {shown(header[0])}"
    elif header == [""]:
        problem = "the file is empty; its first line must name the columns"
    elif len(set(header)) < len(header) or "" in header:
        problem = f"column names must be unique and not empty, they are {shown(header)}"
    if problem or isinstance(header, RowError):
        raise ManifestError(f"manifest file {uri}: {problem}")
    return header, ((_csv_row(header, fields, lines), size) for fields, size, lines in records)


def _csv_row(header: list[str], fields: list[str] | RowError, lines: int) -> Value:
    if isinstance(fields, RowError):
        return fields
    if len(fields) != len(header):
        hint = f"; it goes over {lines:,} lines: is a quote missing?" if lines > 1 else ""
        return RowError(
            "MalformedRow", f"the record has {len(fields):,} fields, the header names {len(header):,}{hint}"
        )
    if not is_unicode("".join(fields)):
        return RowError("MalformedRow", "the record is not valid UTF-8")
    return dict(zip(header, fields, strict=True))


def _csv_records(file: BinaryIO, uri: str) -> Iterator[tuple[list[str] | RowError, int, int]]:
    """Fields, size in bytes and number of lines of all records but blank ones, the header first."""
    row = size = lines = 0  # of the record that is being read

    def decoded() -> Iterator[str]:
        nonlocal size
        for line in _lines(file):
            size += len(line)
            if size > MAX_RECORD_BYTES:
                long = f"{place()} is longer than {MAX_RECORD_BYTES:,} bytes; is a quote never closed?"
                raise ManifestError(f"manifest file {uri}: {long}")
            # Bytes that are no UTF-8 become lone surrogates, which mark the record as malformed later on.
            yield line.decode("utf-8", "surrogateescape")
        if size:  # at the end of a record's lines, the module asks for more only within quotes
            raise ManifestError(f"manifest file {uri}: a quote in {place()} is never closed")

    def place() -> str:
        return f"row {row:,}" if row else "the header"

    csv.field_size_limit(2 * MAX_RECORD_BYTES)  # `decoded` has the limit that counts
    reader = csv.reader(decoded(), delimiter="\t" if _suffix(uri) == ".tsv" else ",")
    while True:
        fields: list[str] | RowError | None
        try:
            fields = next(reader, None)
        except csv.Error:
            fields = RowError("MalformedRow", "a carriage return stands in a field without quotes")
        if fields is None:
            return
        if fields:
            yield fields, size, reader.line_num - lines
            row += 1
        size, lines = 0, reader.line_num
