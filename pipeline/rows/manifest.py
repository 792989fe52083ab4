"""A manifest: one or many Parquet, JSONL or CSV files that name the rows of a run.

`open_manifest` resolves the files and checks their columns; `pipeline.rows.scan` makes Parquet of text files
and finds the place of every row; `pipeline.rows.read` reads the rows of a block, on any machine, alone.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ManifestError, shown
from pipeline.rows.arrow_values import is_text_type
from pipeline.rows.manifest_text import COMPRESSED, CSV, JSONL, csv_rows, is_csv, open_text
from pipeline.rows.memory import MAX_COLUMNS
from pipeline.rows.parquet_rows import open_parquet
from pipeline.rows.payloads import Payload
from pipeline.rows.row_types import ColumnTypes

PARQUET = (".parquet", ".pq")
SUFFIXES = (*PARQUET, *(text + compressed for compressed in ("", *COMPRESSED) for text in (*JSONL, *CSV)))
KNOWN = f"{', '.join((*PARQUET, *JSONL, *CSV))}; text also with {', '.join(COMPRESSED)} behind it"
RESERVED = (
    "seed",
    "voice_key",
    "row_digest",
    "candidates",
)  # columns of the output that a manifest must not bring along

NOTHING = pa.schema([])

# What reading a damaged file raises; pyarrow has no one class of errors.
UNREADABLE = (OSError, pa.ArrowException, UnicodeError, OverflowError)


@dataclass(frozen=True)
class ManifestFile:
    uri: str
    parquet: str = ""  # where its rows lie: in itself, or in a copy of some of them; "" for none yet
    columns: tuple[str, ...] = ()  # there
    first_row: int = 1  # record number in the file, from 1, of the first row there

    @property
    def is_copy(self) -> bool:
        return self.parquet != self.uri


@dataclass(frozen=True)
class Manifest:
    files: tuple[ManifestFile, ...]  # a text file is there once for each of its copies
    payload: Payload
    extra: pa.Schema = NOTHING  # pass-through columns, by their own names


def open_manifest(patterns: Sequence[str], payload: Payload, output: str | None = None) -> Manifest:
    """Find the manifest's files and check the columns of those that state them (Parquet, CSV).

    A folder may hold the output of the run: what lies in it is no manifest.

    Raises ManifestError naming the file and column at fault.
    """
    uris: list[str] = []
    for pattern in patterns:
        if not pattern:
            raise ManifestError("a manifest's name is empty")
        try:
            found = storage.expand(pattern, SUFFIXES)
            uris += [uri for uri in found if uri not in uris and not _lies_in(uri, output)]
        except (OSError, ValueError) as error:
            raise ManifestError(f"manifest {pattern}: {error}") from error
    if not uris:
        raise ManifestError(f"no manifest was given, or all of it lies in the output folder {output}")
    types = ColumnTypes()
    files = []
    for file in (ManifestFile(uri) for uri in uris):
        with readable(file):
            files.append(_opened(file, payload, types))
    return Manifest(tuple(files), payload, types.schema())


def _lies_in(uri: str, folder: str | None) -> bool:
    if folder is None:
        return False
    return storage.split_query(uri)[0].startswith(storage.split_query(folder)[0].rstrip("/") + "/")


@contextmanager
def readable(file: ManifestFile) -> Iterator[None]:
    """What reading a damaged file raises, as ManifestError."""
    try:
        yield
    except UNREADABLE as error:
        raise ManifestError(f"manifest file {file.uri} cannot be read: {error}") from error


def _opened(file: ManifestFile, payload: Payload, types: ColumnTypes) -> ManifestFile:
    """The file with its columns, where it states them (Parquet)."""
    uri, name, schema = file.uri, storage.name_of(file.uri).lower(), NOTHING
    if not name.endswith(SUFFIXES):
        raise ManifestError(f"manifest file {uri}: the format is told by the suffix, one of {KNOWN}")
    if name.endswith(PARQUET):
        with open_parquet(uri) as parquet:
            schema = parquet.schema_arrow
        file = replace(file, parquet=uri, columns=tuple(schema.names))
    elif is_csv(uri):
        with open_text(uri) as stream:
            schema = pa.schema([(column, pa.string()) for column in csv_rows(stream, uri)[0]])
    if len(schema):
        check_columns(uri, schema.names, payload)
        _check_types(uri, schema, payload)
        for column in schema:
            if column.name not in payload.own:
                types.declare(column.name, column.type, uri)
    return file


def check_columns(uri: str, names: Sequence[str], payload: Payload) -> None:
    if len(names) > MAX_COLUMNS:
        raise ManifestError(f"manifest file {uri} has {len(names):,} columns; at most {MAX_COLUMNS:,}")
    missing = [name for name in payload.required if name not in names]
    if missing:
        raise ManifestError(
            f"manifest file {uri} has no column {' and no column '.join(map(repr, missing))}; "
            f"its columns are {_listed(names)}"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ManifestError(f"manifest file {uri} has more than one column named {_listed(repeated)}")
    clashing = [name for name in RESERVED if name in names and name not in payload.own]
    if clashing:
        raise ManifestError(
            f"manifest file {uri}: the column {clashing[0]!r} clashes with the output's; rename or drop it"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


def _check_types(uri: str, schema: pa.Schema, payload: Payload) -> None:
    id_type, text_type = schema.field("id").type, schema.field("text").type
    if not (is_text_type(id_type) or pa.types.is_integer(id_type)):
        raise ManifestError(
            f"manifest file {uri}: column 'id' must hold strings or integers, it holds {id_type}"
        )
    if not (is_text_type(text_type) or pa.types.is_null(text_type)):
        raise ManifestError(f"manifest file {uri}: column 'text' must hold strings, it holds {text_type}")
    name = payload.column
    if not payload.accepts(schema.field(name).type):
        found = schema.field(name).type
        raise ManifestError(f"manifest file {uri}: column {name!r} must be {payload.expected}; it is {found}")


@contextmanager
def shared(manifest: Manifest, folder: str, needed: Collection[int]) -> Iterator[Manifest]:
    """The manifest, with the copies among the files of these numbers in `folder`, which all nodes reach.

    What an earlier run has left there is deleted, and so are the copies afterwards.
    """

    def clear() -> None:
        storage.delete_files([storage.join(folder, name) for name in storage.list_names(folder, ".parquet")])

    clear()
    files = list(manifest.files)
    try:
        for number in needed:
            if files[number].is_copy:
                uri = storage.join(folder, storage.name_of(files[number].parquet))
                storage.upload(files[number].parquet, uri)
                files[number] = replace(files[number], parquet=uri)
        yield replace(manifest, files=tuple(files))
    finally:
        clear()
