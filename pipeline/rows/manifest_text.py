"""Records of JSONL and CSV manifests, with the byte range of each, so that any range can be read again alone.

A record that cannot be parsed is a `RowError` in its place, not the end of the file. CSV has no types: every
value is the text as it is written, so ids keep their leading zeros.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.errors import ManifestError, RowError, is_unicode, shown
from pipeline.rows.memory import MAX_COLUMNS, MAX_JSON_CONTAINERS, MAX_JSON_DEPTH, MAX_RECORD_BYTES

_BOM = b"\xef\xbb\xbf"
_CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Value = dict[str, Any] | RowError


@dataclass(frozen=True)
class Record:
    begin: int  # bytes from the start of the file
    end: int
    value: Value


def open_buffered(stream: Any, begin: int = 0) -> BinaryIO:
    """A buffered reader over an Arrow random-access file, positioned at `begin`."""
    stream.seek(begin)
    return io.BufferedReader(stream, buffer_size=1 << 20)


def jsonl_records(file: BinaryIO, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """One record per line that is not blank."""
    position = begin
    while end is None or position < end:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        length = len(line)
        value: Value
        if length > MAX_RECORD_BYTES:
            length += _skip_line(file)
            value = RowError("RecordTooLong", f"the line has {length:,} bytes; at most {MAX_RECORD_BYTES:,}")
        else:
            value = _parse_json(line.removeprefix(_BOM) if position == 0 else line)
        if isinstance(value, RowError) or value:
            yield Record(position, position + length, value)
        position += length


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while chunk := file.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _parse_json(line: bytes) -> Value:
    """The object of one line; an empty dict for a blank line."""
    if not line.strip():
        return {}
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return RowError("MalformedRow", f"the line is not valid JSON: {error}")
    if not isinstance(value, dict) or not value:
        return RowError("MalformedRow", f"the line holds no JSON object with columns: {shown(value)}")
    if len(value) > MAX_COLUMNS:
        return RowError("MalformedRow", f"the line has {len(value):,} columns; at most {MAX_COLUMNS:,}")
    if not all(map(is_unicode, value)):
        return RowError("MalformedRow", "the name of a column holds a lone surrogate")
    return _shape_error(value) or value


def _shape_error(value: Any) -> RowError | None:
    """Every level takes a frame of native code later on, every list and object 30 times its characters."""
    level, containers = [value], 1
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        containers += len(level)
    if level:
        return RowError("MalformedRow", f"the line is nested more than {MAX_JSON_DEPTH} levels deep")
    if containers > MAX_JSON_CONTAINERS:
        return RowError("MalformedRow", f"the line holds more than {MAX_JSON_CONTAINERS:,} lists and objects")
    return None


def csv_header(file: BinaryIO, name: str) -> tuple[list[str], int]:
    """Column names of a CSV file and the byte position of its first record.

    Raises ManifestError for an empty file, a repeated or an empty column name, and what is no UTF-8 text.
    """
    lines = _Lines(file, 0, name)
    try:
        header: list[str] = next(_csv_reader(lines, name), [])
    except csv.Error as error:
        raise ManifestError(
            f"{name}: the CSV header cannot be read: {error}; lines must end in a line feed"
        ) from error
    if lines.ended_after > 0:
        raise ManifestError(f"{name}: a quote in the CSV header is never closed")
    if not header:
        raise ManifestError(f"{name}: the file is empty; its first line must name the columns")
    if not all(map(is_unicode, header)):
        raise ManifestError(f"{name}: the file is not UTF-8 text; its first line holds {shown(header[0])}")
    if len(set(header)) < len(header) or "" in header:
        raise ManifestError(f"{name}: column names must be unique and not empty, they are {shown(header)}")
    return header, lines.position


def csv_records(
    file: BinaryIO, name: str, header: list[str], begin: int, end: int | None = None
) -> Iterator[Record]:
    """Records as Python's csv module reads them: fields in double quotes may hold commas and line breaks."""
    lines = _Lines(file, begin, name)
    reader = _csv_reader(lines, name)
    position = begin
    while end is None or position < end:
        value: Value
        try:
            fields = next(reader, None)
            if lines.ended_after > position:
                raise ManifestError(f"{name}: a quote in the record at byte {position:,} is never closed")
            if fields is None:
                return
            value = _csv_row(header, fields, lines.count)
        except csv.Error:
            problem = "the record cannot be read: a carriage return stands in a field without quotes"
            fields, value = [""], RowError("MalformedRow", problem)
        if fields:
            yield Record(position, lines.position, value)
        position = lines.position
        lines.next_record()


def _csv_row(header: list[str], fields: list[str], lines: int) -> Value:
    if len(fields) != len(header):
        hint = f"; it goes over {lines:,} lines: is a quote missing?" if lines > 1 else ""
        return RowError(
            "MalformedRow", f"the record has {len(fields):,} fields, the header names {len(header):,}{hint}"
        )
    if not all(map(is_unicode, fields)):
        return RowError("MalformedRow", "the record is not valid UTF-8")
    return dict(zip(header, fields, strict=True))


def _csv_reader(lines: "_Lines", name: str) -> Any:
    csv.field_size_limit(2 * MAX_RECORD_BYTES)  # `_Lines` has the limit that counts
    suffix = name[name.rfind(".") :].lower()
    return csv.reader(lines, delimiter=_CSV_DELIMITERS.get(suffix, ","))


class _Lines:
    """Decoded lines of a file for the csv module, counting the bytes it has consumed."""

    def __init__(self, file: BinaryIO, position: int, name: str) -> None:
        self.file = file
        self.position = position
        self.name = name
        self.ended_after = -1  # the position where the csv module asked for more than there is
        self.next_record()

    def next_record(self) -> None:
        self.begin = self.position
        self.count = 0  # lines of the record

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            # At the end of a record's lines, the module asks for more only within quotes.
            self.ended_after = self.position if self.count else -1
            raise StopIteration
        start = self.position
        self.position += len(line)
        self.count += 1
        if self.position - self.begin > MAX_RECORD_BYTES:
            raise ManifestError(
                f"{self.name}: the record at byte {self.begin:,} is longer than {MAX_RECORD_BYTES:,} bytes; "
                "is a quote never closed?"
            )
        # Bytes that are no UTF-8 become lone surrogates, which mark the record as malformed later on.
        return (line.removeprefix(_BOM) if start == 0 else line).decode("utf-8", "surrogateescape")
