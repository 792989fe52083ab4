"""A manifest: one or many files of many formats that name the rows of a run.

`open_manifest` finds the files and their readers; `pipeline.rows.normalise` makes Parquet of text, and finds
the place of every row; `pipeline.rows.read` reads the rows of a block, on any machine, alone.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from tarfile import TarError
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pydantic import Field

from clvp.fields import Checked
from pipeline import storage
from pipeline.errors import ManifestError, RowError, public, shown
from pipeline.rows.formats import SUFFIXES
from pipeline.rows.memory import MAX_COLUMNS
from pipeline.rows.payloads import Payload, checked_id, checked_text, paths_in, taken
from pipeline.rows.stored import open_rows
from pipeline.rows.types import ColumnTypes, example

STORED = ("parquet", "arrow")  # rows that are read where they lie
READERS = {"nemo": "jsonl", "lhotse": "jsonl", "commonvoice": "csv", "ljspeech": "csv", "datasets": "arrow"}
# In a folder the first that there are: tables, tars, texts.
TIERS = (("parquet", "arrow", "jsonl", "csv", "kaldi"), ("webdataset",), ("txt",))
# What `datasets` and the hub keep beside the rows, and what looks like rows but has no reader.
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_UNREAD = re.compile(r"\.(parquet|pq|arrow|jsonl|ndjson|json|csv|tsv|tar)\.\w+$|\.(xlsx?|orc|avro|feather)$")
_HIVE = re.compile(r"/([^/=]+)=([^/]*)(?=/)")
# Columns of others, where our own are missing: Common Voice and NeMo.
_OTHERS = {"audio": ("audio_filepath", "path"), "text": ("sentence",)}
# Columns of the output, which no manifest may bring along.
RESERVED = ("seed", "voice_key", "row_digest", "candidates")
RANDOM = "random"  # the voice that belongs to nobody
# Of an utterance: its text's id, its number there from 1, seconds of silence behind it (null: the text ends).
PARTS = ("part_of", "part", "pause_s")

KNOWN = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes if suffix.count(".") == 1)
NOTHING = pa.schema([])

# What reading a damaged file raises; pyarrow has no one class of errors.
UNREADABLE = (OSError, pa.ArrowException, UnicodeError, OverflowError, EOFError, TarError)

GROUP = np.dtype(
    [
        ("file", np.int32),
        ("group", np.int32),  # Parquet row group
        ("first", np.int64),  # position in the manifest of its first row
        ("row", np.int64),  # record number in the file, from 1, of that row
        ("num_bytes", np.int64),  # of a row, on average
    ]
)

# fmt: off
Format = Literal["auto", "parquet", "arrow", "datasets", "jsonl", "nemo", "lhotse", "csv", "commonvoice",
                 "ljspeech", "kaldi", "webdataset", "txt"]
# fmt: on


@dataclass(frozen=True)
class Reading(Checked):
    """How a manifest is to be understood, where it does not say so itself."""

    manifest_format: Format = "auto"  # of all files; auto: told by their names and columns
    # where they have other names, as in id=utt,text=sentence,audio=path; id=audio: clips' names are the ids
    columns: str | None = None
    separator: str | None = None  # of a table's fields; None: told by its first line
    # a folder with a folder of clips for each voice; the column voice names one, or several as in ada&bob
    voices: str | None = None
    # the voice of all rows; of ada,bob or "*" (all that there are) each row is made in each, as ID/VOICE;
    # random: a voice of nobody for each row, where the model can make one
    voice: str | None = None
    # cut texts into utterances of about so many characters (200), as ID/0001, at most half as many more
    split_text: bool | Annotated[int, Field(ge=20, le=1000)] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = self.columns.split(",") if self.columns else []
        if not all(re.fullmatch("[^=]+=.+", pair) for pair in pairs):
            raise ValueError(f"columns={self.columns!r} is no list such as id=utt,text=sentence")
        if self.separator is not None and len(self.separator.replace("\\t", "\t")) != 1:
            raise ValueError(f"separator={self.separator!r} is not one character")
        if self.voice and self.voice != RANDOM and not self.voices:
            raise ValueError(f"voice={self.voice!r} needs the folder that holds it: --voices")

    @property
    def named(self) -> dict[str, str]:
        """`columns` by our own names."""
        return dict(pair.split("=", 1) for pair in self.columns.split(",")) if self.columns else {}

    @property
    def voiced(self) -> bool:
        """Whether rows are spoken in voices that have names, not in clips of the manifest."""
        return bool(self.voices or self.voice)

    @property
    def makes_rows(self) -> bool:
        """Whether rows are made of those that the manifest has."""
        return bool(self.voiced or self.split_text)

    @property
    def told(self) -> list[str]:
        """The names in `voice`, or patterns of names."""
        return [name.strip() for name in self.voice.split(",")] if self.voice else []

    @property
    def crosses(self) -> bool:
        """Whether a row is made in several voices."""
        return self.voice is not None and bool({",", "*"} & {*self.voice})


NATURAL = Reading()


@dataclass(frozen=True)
class ManifestFile:
    uri: str
    reader: str  # a key of SUFFIXES
    payload: Payload
    reading: Reading
    hive: Mapping[str, str] = field(default_factory=dict)  # columns that folders like speaker=ada/ give
    names: Mapping[str, str] = field(default_factory=dict)  # where it has its own columns: id, text, payload
    columns: tuple[str, ...] = ()  # all that are there
    copy: str = ""  # Parquet of some of its rows
    voices: str = ""  # what clips are relative to, where it is another folder than the file's

    @property
    def folder(self) -> str:
        """What clips are relative to."""
        if self.voices:
            return self.voices
        if self.reader == "txt" and not self.uri.lower().endswith(SUFFIXES["txt"]):
            return self.uri
        common_voice = "sentence" in self.names.values() and self.names.get("audio") == "path"
        return storage.join(storage.parent(self.uri), "clips") if common_voice else storage.parent(self.uri)

    @property
    def passing(self) -> list[str]:
        """Columns that pass through to the output."""
        own = {*self.names.values(), *self.payload.required, *self.payload.replaced}
        return [name for name in dict.fromkeys([*self.columns, *self.hive]) if name not in own]

    @property
    def columns_read(self) -> list[str]:
        """The columns of a Parquet or Arrow file that are needed."""
        names = dict(self.names)
        if self.reading.voiced and names.get(self.payload.column) != names["id"]:
            names.pop(self.payload.column, None)
        passed = (name for name in self.passing if name in self.columns)
        return [*dict.fromkeys([*names.values(), *passed])]

    def ids(self, values: Sequence[Any]) -> Sequence[Any]:
        """Ids as the file has them; where clips name the rows, the name of the first without its suffix."""
        if self.names["id"] != self.names.get(self.payload.column):
            return values
        first = [next(iter(paths_in(value)), None) for value in values]
        return [os.path.splitext(name)[0] if isinstance(name, str) else name for name in first]

    def with_columns(self, columns: Sequence[str]) -> "ManifestFile":
        """The file with the columns that it has. Raises ManifestError for such as cannot be used."""
        where, reading, needed = f"manifest file {self.uri}", self.reading, self.payload.required
        if len(columns) > MAX_COLUMNS:
            raise ManifestError(f"{where} has {len(columns):,} columns; at most {MAX_COLUMNS:,}")
        names = {n: next((c for c in (n, *_OTHERS.get(n, ())) if c in columns), n) for n in needed}
        if names.get("audio") in _OTHERS["audio"] and "id" not in columns:
            names["id"] = names["audio"]
        names |= ({"voice": "voice"} if reading.voiced else {}) | reading.named
        if reading.voiced:  # which bring the clips
            unneeded = {"audio", *(["voice"] if reading.voice else [])}
            names = {own: name for own, name in names.items() if own not in unneeded or name in columns}
        if missing := [name for name in dict.fromkeys(names.values()) if name not in columns]:
            raise ManifestError(
                f"{where} has no column {' and no column '.join(map(repr, missing))}; "
                f"its columns are {_listed(columns)}; --columns id=NAME,text=NAME says which is which"
            )
        if repeated := [name for name, count in Counter(columns).items() if count > 1]:
            raise ManifestError(f"{where} has more than one column named {_listed(repeated)}")
        file = replace(self, names=names, columns=tuple(columns))
        reserved = (*RESERVED, *(PARTS if reading.split_text else ()))
        if clashing := [name for name in file.passing if name in reserved]:
            problem = f"the column {clashing[0]!r} clashes with the output's; rename or drop it"
            raise ManifestError(f"{where}: {problem}")
        return file


@dataclass(frozen=True)
class Manifest:
    files: tuple[ManifestFile, ...]  # one that is no Parquet is there once for each of its copies
    payload: Payload
    extra: pa.Schema = NOTHING  # pass-through columns, by their own names
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, GROUP))  # in order
    # record number in its file of each row, where rows are made of others: int32 [n]
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def source(self, position: int) -> str:
        """Where a row stands, for messages: file and record number from 1."""
        group = groups_of(self.groups, position)
        number = self.numbers[position] if len(self.numbers) else group["row"] + position - group["first"]
        return f"{public(self.files[group['file']].uri)}, row {number}"

    def places(self, hosts: Sequence[str]) -> tuple[str, ...]:
        """Where clips may come from: these hosts, and those that the clips of its files are relative to."""
        return storage.places([*hosts, *(file.folder for file in self.files)])


def groups_of(groups: np.ndarray, positions: np.ndarray | int) -> np.ndarray:
    """GROUP of the rows at these positions."""
    return groups[np.searchsorted(groups["first"], positions, side="right") - 1]


def open_manifest(
    patterns: Sequence[str], payload: Payload, output: str | None = None, reading: Reading = NATURAL
) -> Manifest:
    """Find the manifest's files and check the columns of those that state them (Parquet, Arrow).

    A folder may hold the output of the run: what lies in it is no manifest.

    Raises ManifestError naming the file and column at fault.
    """
    if reading.makes_rows and not payload.named:
        raise ManifestError("voices and split_text are of texts that are to be spoken")
    known = (*payload.required, *(["voice"] if reading.voiced else []))
    if unknown := set(reading.named) - set(known):
        raise ManifestError(f"columns can name {', '.join(known)}, not {shown(min(unknown))}")
    files: dict[str, ManifestFile] = {}
    for pattern in patterns:
        try:
            found = storage.expand(pattern)
        except Exception as error:  # filesystems of fsspec raise their own kinds
            hub = re.fullmatch(r"[\w-]+/[\w-]+", pattern) and f"; is it hf://datasets/{pattern}?"
            raise ManifestError(f"manifest {pattern}: {error}{hub or ''}") from error
        if output is not None:
            inside = storage.split_query(output)[0].rstrip("/") + "/"
            found = [uri for uri in found if not storage.split_query(uri)[0].startswith(inside)]
        chosen = _chosen(pattern, found, payload, reading)
        files |= {file.uri: file for file in chosen if file.uri not in files}
    if not files:
        raise ManifestError(f"no manifest was given, or all of it lies in the output folder {output}")
    types, opened = ColumnTypes(NOTHING), []
    for file in files.values():
        with readable(file):
            if file.reader in STORED:
                schema = open_rows(file.uri).schema
                file = file.with_columns(schema.names)
                _check_types(file, schema)
                for name in file.passing:
                    dtype = schema.field(name).type if name in schema.names else pa.string()
                    types.declare(name, dtype, file.uri)
        opened.append(file)
    return Manifest(tuple(opened), payload, types.schema())


def _reader_of(uri: str) -> str:
    """A key of SUFFIXES, or nothing."""
    name = storage.name_of(uri).lower()
    return next((reader for reader, suffixes in SUFFIXES.items() if name.endswith(suffixes)), "")


def _chosen(pattern: str, found: Sequence[str], payload: Payload, reading: Reading) -> Iterator[ManifestFile]:
    """The files that a pattern has found which are manifests. Raises ManifestError for those that may be."""
    asked = READERS.get(reading.manifest_format, reading.manifest_format)
    place = storage.absolute(pattern)
    readers = {uri: _reader_of(uri) for uri in found if storage.name_of(uri) not in _NO_ROWS}
    if asked != "auto":
        fitting = [uri for uri, reader in readers.items() if reader == asked]
        readers = dict.fromkeys(fitting or readers, asked)
    elif unread := [uri for uri, reader in readers.items() if not reader and _UNREAD.search(uri.lower())]:
        raise ManifestError(f"manifest file {unread[0]} has no reader; known are {KNOWN}. Move or convert it")
    tier = next((tier for tier in TIERS if set(tier) & set(readers.values())), ())
    if found and not tier:
        problem = f"no file of a known kind ({KNOWN}); --manifest-format names another file's"
        raise ManifestError(f"manifest {pattern}: {problem}")
    if tier == ("txt",) and place not in found and storage.exists(place):
        yield ManifestFile(place, "txt", payload, reading)
        return
    for uri, reader in readers.items():
        if reader in tier:
            below = uri.removeprefix(place.partition("*")[0].rpartition("/")[0])
            hive = {name: unquote(value) for name, value in _HIVE.findall(below)}
            yield ManifestFile(uri, reader, payload, reading, hive)


@contextmanager
def readable(file: ManifestFile) -> Iterator[None]:
    """What reading a damaged file raises, as ManifestError."""
    try:
        yield
    except UNREADABLE as error:
        raise ManifestError(f"manifest file {file.uri} cannot be read: {error}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


def _check_types(file: ManifestFile, schema: pa.Schema) -> None:
    """Raises ManifestError for a column of a type that no row's value can have."""
    names, value = file.names, file.names.get(file.payload.column)
    checks: dict[str, Any] = {} if names["id"] == value else {names["id"]: checked_id}
    checks |= {names["text"]: checked_text}
    if value is not None and not file.reading.voiced:
        checks |= {value: lambda value: file.payload.convert(value, "")}
    for name, check in checks.items():
        dtype = schema.field(name).type
        problem = taken(check, example(dtype))
        if isinstance(problem, RowError) and (check is checked_id or "null" not in str(dtype)):
            raise ManifestError(f"manifest file {file.uri}: column {name!r} holds {dtype}: {problem}")


@contextmanager
def shared(manifest: Manifest, folder: str, needed: Collection[int]) -> Iterator[Manifest]:
    """The manifest, with the copies among the files of these numbers in `folder`, which all nodes reach.

    What an earlier run has left there is deleted, and so are the copies afterwards.
    """

    def clear() -> None:
        storage.delete_files([storage.join(folder, name) for name in storage.list_names(folder, ".parquet")])

    clear()
    copies = {number: copy for number in needed if (copy := manifest.files[number].copy)}
    places = {number: storage.join(folder, storage.name_of(copy)) for number, copy in copies.items()}
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(storage.upload, copies.values(), places.values()))
        files = (replace(file, copy=places.get(i, file.copy)) for i, file in enumerate(manifest.files))
        yield replace(manifest, files=tuple(files))
    finally:
        clear()
