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

from pipeline.errors import ManifestError, RowError

MAX_RECORD_BYTES = 64 << 20  # a longer record is an error without ever being held in memory
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
        return RowError("MalformedRow", f"the line holds no JSON object with columns: {value!r:.60}")
    return value


def csv_header(file: BinaryIO, name: str) -> tuple[list[str], int]:
    """Column names of a CSV file and the byte position of its first record.

    Raises ManifestError for an empty file, a repeated or an empty column name.
    """
    lines = _Lines(file, 0, name)
    try:
        header: list[str] = next(_csv_reader(lines, name), [])
    except csv.Error as error:
        raise ManifestError(f"{name}: the CSV header cannot be read: {error}") from error
    if not header:
        raise ManifestError(f"{name}: the file is empty; its first line must name the columns")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated or "" in header:
        raise ManifestError(f"{name}: column names must be unique and not empty, the header is {header}")
    return header, lines.position


def csv_records(
    file: BinaryIO, name: str, header: list[str], begin: int, end: int | None = None
) -> Iterator[Record]:
    """Records as Python's csv module reads them: fields in double quotes may hold commas and line breaks."""
    lines = _Lines(file, begin, name)
    reader = _csv_reader(lines, name)
    position = begin
    while end is None or position < end:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ManifestError(
                f"{name}: the record at byte {position:,} cannot be read ({error}); is a quote never closed?"
            ) from error
        if fields is None:
            return
        if fields:
            yield Record(position, lines.position, _csv_row(header, fields))
        position = lines.position


def _csv_row(header: list[str], fields: list[str]) -> Value:
    if len(fields) != len(header):
        return RowError(
            "MalformedRow", f"the record has {len(fields)} fields, the header names {len(header)}"
        )
    if not all(field.isascii() or _is_utf8(field) for field in fields):
        return RowError("MalformedRow", "the record is not valid UTF-8")
    return dict(zip(header, fields, strict=True))


def _csv_reader(lines: "_Lines", name: str) -> Any:
    csv.field_size_limit(MAX_RECORD_BYTES)  # the module's default of 128 KiB is below a long text
    suffix = name[name.rfind(".") :].lower()
    return csv.reader(lines, delimiter=_CSV_DELIMITERS.get(suffix, ","))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Lines:
    """Decoded lines of a file for the csv module, counting the bytes it has consumed."""

    def __init__(self, file: BinaryIO, position: int, name: str) -> None:
        self.file = file
        self.position = position
        self.name = name

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_RECORD_BYTES:
            raise ManifestError(
                f"{self.name}: the line at byte {self.position:,} is over {MAX_RECORD_BYTES:,} bytes"
            )
        start = self.position
        self.position += len(line)
        # Bytes that are no UTF-8 become lone surrogates, which mark the record as malformed later on.
        return (line.removeprefix(_BOM) if start == 0 else line).decode("utf-8", "surrogateescape")
