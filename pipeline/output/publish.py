"""From many small parts to few large files in `data` and `errors`, and what an earlier run has left.

Publishing reads finished parts, writes their errors to one file in `errors` and their rows to one in `data`,
and deletes the parts. It may be killed anywhere: whatever is already in `data` or `errors` counts, and
`recover` drops it from the parts that are still there.

Nor can a driver that was thought dead add anything, however late: files are numbered, and a number is taken
once. The next driver publishes the same parts, so it needs the number that the late one is about to take, and
whoever comes second is refused by the store (`pipeline.conditional`). Numbers are never free again.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.conditional import ConflictError
from pipeline.errors import ERROR_TYPE, RunError
from pipeline.output.folder import ROW_GROUP_BYTES, OutputFolder, rows_per_group
from pipeline.rows.columns import (
    CANDIDATES,
    EXTRA_PREFIX,
    ID,
    ROW_DIGEST,
    SEED,
    SOURCE,
    TEXT,
    VOICE_KEY,
    extra_fields,
    first_occurrences,
)

# `data`: these with the pass-through columns, under their own names, after `text`.
DATA = pa.schema([ID, TEXT, SEED, VOICE_KEY, ROW_DIGEST, CANDIDATES])
ATTEMPT = pa.field("attempt", pa.int32())  # from 1; a row that is tried again and fails has a higher one
ERRORS = pa.schema([ID, SOURCE, ROW_DIGEST, ATTEMPT, *ERROR_TYPE])

# Tells `datasets` that the column holds sound.
AUDIO_FEATURE = {"audio": {"_type": "Audio", "sampling_rate": 24_000}}
AUDIO_METADATA = {"huggingface": json.dumps({"info": {"features": AUDIO_FEATURE}})}

REJECTED_FILE = "manifest.parquet"  # in `errors`: rows without an id of their own, written anew by every run
RETRIED = "_retried"  # what `errors` held of rows that are tried again
READERS = 16


@dataclass(frozen=True)
class Recovered:
    """What the output holds already."""

    ids: pa.ChunkedArray  # of all rows that are done or failed, large_string
    digests: pa.ChunkedArray  # ROW_DIGEST of each
    parts: list[str]  # not published yet
    done: int
    failed: int


class Files:
    """Takes the next numbers of an output's files in `data` and `errors`, from those that it finds there."""

    def __init__(self, output: OutputFolder) -> None:
        self.output = output
        self.last: dict[str, int] = {}
        for folder in ("data", "errors"):
            numbers = [re.fullmatch(r"(\d+)\.parquet", name) for name in output.parquet_files(folder)]
            self.last[folder] = max((int(number[1]) for number in numbers if number), default=0)

    def add(self, folder: str, content: pa.Buffer) -> None:
        """Write the next file. Raises RunError where another run has."""
        number = self.last[folder] + 1
        try:
            self.output.create(folder, f"{number:06}.parquet", content)
        except ConflictError:
            raise RunError(
                f"another run has written to {self.output.uri} meanwhile; the same command continues there"
            ) from None
        self.last[folder] = number


def publish(
    files: Files,
    parts: Sequence[str],
    skip_ids: Sequence[str] = (),
    attempts: Mapping[str, int] | None = None,
) -> None:
    """Move the rows and errors of `parts` into `data` and `errors`, but for those of `skip_ids`.

    `attempts` are the failed ones before this, by id. Errors go first: until the rows follow they are still
    in their parts, where the next run finds them.
    """
    output, skipped = files.output, pa.array(skip_ids, ID.type)
    data, errors = _ParquetFile(), _ParquetFile()
    for table in _read_ahead(output, parts):
        if len(skipped):
            table = table.filter(pc.invert(pc.is_in(table["id"], value_set=skipped)))
        if table["error"].null_count < len(table):  # else the whole part, without a copy
            errors.add(_error_rows(table.filter(pc.is_valid(table["error"])), attempts or {}))
            table = table.filter(pc.is_null(table["error"]))
        data.add(_data_rows(table))
    for folder, file in (("errors", errors), ("data", data)):
        encoded = file.finish()
        if encoded is not None:
            files.add(folder, encoded)
    _delete(output, "_parts", parts)


class _ParquetFile:
    """A Parquet file in memory, made of tables that come one by one, in row groups of bounded size."""

    def __init__(self) -> None:
        self.sink = pa.BufferOutputStream()
        self.writer: pq.ParquetWriter | None = None
        self.waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        if len(table):
            self.waiting.append(table)
            if sum(item.nbytes for item in self.waiting) >= ROW_GROUP_BYTES:
                self._write()

    def finish(self) -> pa.Buffer | None:
        """The whole file; None when there were no rows."""
        if self.waiting:
            self._write()
        if self.writer is None:
            return None
        self.writer.close()
        return self.sink.getvalue()

    def _write(self) -> None:
        table = pa.concat_tables(self.waiting)
        self.waiting = []
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.sink, table.schema, compression="zstd")
        self.writer.write_table(table, row_group_size=rows_per_group(table))


def _read_ahead(output: OutputFolder, parts: Sequence[str]) -> Iterator[pa.Table]:
    """The tables of the parts, in order; some are fetched ahead, since an object store answers late."""
    with ThreadPoolExecutor(READERS) as readers:
        names = iter(parts)
        running = [readers.submit(_read_part, output, name) for name in islice(names, READERS)]
        while running:
            table = running.pop(0).result()
            running += [readers.submit(_read_part, output, name) for name in islice(names, 1)]
            yield table


def _read_part(output: OutputFolder, name: str) -> pa.Table:
    """With one request for the whole file: on an object store, one for each column takes far longer."""
    content = storage.read_bytes(output.file("_parts", name))
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _delete(output: OutputFolder, folder: str, names: Sequence[str]) -> None:
    with ThreadPoolExecutor(READERS) as workers:
        list(workers.map(lambda name: storage.delete_files([output.file(folder, name)]), names))


def _data_rows(table: pa.Table) -> pa.Table:
    extra = extra_fields(table.schema)
    plain = [field.with_name(field.name.removeprefix(EXTRA_PREFIX)) for field in extra]
    fields = [ID, TEXT, *plain, *list(DATA)[2:]]
    names = [*DATA.names[:2], *(field.name for field in extra), *DATA.names[2:]]
    schema = pa.schema(fields, AUDIO_METADATA if "extra.audio" in table.schema.names else None)
    return pa.table([table[name] for name in names], schema=schema)


def _error_rows(table: pa.Table, attempts: Mapping[str, int]) -> pa.Table:
    error = table["error"].combine_chunks()
    parts = [pc.struct_field(error, name) for name in ERROR_TYPE.names]
    numbers = pa.array([attempts.get(row_id, 0) + 1 for row_id in table["id"].to_pylist()], ATTEMPT.type)
    return pa.table([*(table[name] for name in ERRORS.names[:3]), numbers, *parts], schema=ERRORS)


def publish_rejected(output: OutputFolder, rejected: Iterator[Mapping[str, Any]]) -> int:
    """Write the error table of the rows that have no id of their own; returns their number.

    The manifest alone decides them, so every run replaces what the one before wrote.
    """
    file, count = _ParquetFile(), 0
    while chunk := list(islice(rejected, 65_536)):
        file.add(pa.Table.from_pylist([{**row, "attempt": 1} for row in chunk], schema=ERRORS))
        count += len(chunk)
    if (content := file.finish()) is not None:
        output.write("errors", REJECTED_FILE, content)
    else:
        storage.delete_files([output.file("errors", REJECTED_FILE)])
    return count


def recover(files: Files, engine: str | None = None) -> Recovered:
    """Read what an earlier run has left, and finish what it was about to publish when it ended.

    A row that is stored twice loses its second place, wherever it came from. Parts whose candidates were
    sampled by another engine than `engine` (JSON of its facts) are dropped: their run was about to end for
    that reason, and their rows are sampled again.
    """
    output = files.output
    _delete(output, "_scratch", storage.list_names(output.folder("_scratch"), ""))
    data, failed = _stored(output)
    names = output.parquet_files("_parts")
    tables = _read_columns(output, "_parts", names, ["id", "row_digest", "error", "engine"])
    is_foreign = [engine is not None and pc.any(pc.not_equal(t["engine"], engine)).as_py() for t in tables]
    _delete(output, "_parts", list(compress(names, is_foreign)))
    parts = {name: t for name, t, foreign in zip(names, tables, is_foreign, strict=True) if not foreign}
    tables = [*data, *failed, *parts.values()]
    ids, digests = _joined(tables, "id", pa.large_string()), _joined(tables, "row_digest", ROW_DIGEST.type)
    first = first_occurrences(ids)
    begin = sum(map(len, (*data, *failed)))
    num_failed = sum(map(len, failed))
    kept: list[str] = []
    for name, table in parts.items():
        new = first[begin : begin + len(table)]
        begin += len(table)
        num_failed += int((table["error"].is_valid().to_numpy() & new).sum())
        if new.all():
            kept.append(name)
        elif new.any():
            publish(files, [name], table["id"].filter(pa.array(~new)).to_pylist(), past_attempts(output))
        else:
            _delete(output, "_parts", [name])
    return Recovered(ids, digests, kept, int(first.sum()) - num_failed, num_failed)


def _joined(tables: Sequence[pa.Table], name: str, dtype: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for table in tables for chunk in table[name].cast(dtype).chunks], dtype)


def _stored(output: OutputFolder) -> tuple[list[pa.Table], list[pa.Table]]:
    """Ids and digests in `data` and in `errors`, each id once."""
    columns = ["id", "row_digest"]
    places = [("data", name) for name in output.parquet_files("data")]
    tables = _read_columns(output, "data", [name for _, name in places], columns)
    num_data = len(tables)
    places += [("errors", name) for name in _error_files(output)]
    tables += _read_columns(output, "errors", [name for _, name in places[num_data:]], columns)
    first = first_occurrences(_joined(tables, "id", pa.large_string()))
    ends = np.cumsum([len(table) for table in tables])
    for i, kept in enumerate(np.split(first, ends[:-1])):
        if not kept.all():
            _keep(output, *places[i], pa.array(kept))
            tables[i] = tables[i].filter(pa.array(kept))
    return tables[:num_data], tables[num_data:]


def _keep(output: OutputFolder, folder: str, name: str, kept: pa.Array) -> None:
    """Leave only the rows [n] `kept` of a file. One that is empty then stays: its number is taken."""
    output.write_table(folder, name, output.read_table(folder, name).filter(kept))


def forget_rows(files: Files, parts: Sequence[str], ids: pa.Array) -> None:
    """Take these rows out of `data` and `errors`, so that they are rows to do; `parts` come first."""
    output = files.output
    publish(files, parts, (), past_attempts(output))
    for folder, names in (("data", output.parquet_files("data")), ("errors", _error_files(output))):
        for name, table in zip(names, _read_columns(output, folder, names, ["id"]), strict=True):
            kept = pc.invert(pc.is_in(table["id"].cast(ids.type), value_set=ids)).combine_chunks()
            if not pc.all(kept).as_py():
                _keep(output, folder, name, kept)


def forget_failures(files: Files, parts: Sequence[str]) -> None:
    """Take all rows that failed out of `errors`, so that they are rows to do; `parts` are published first.

    Ended anywhere, some rows are out and some are not, and what is out is in the history, which only ever
    says how often a row was tried.
    """
    output = files.output
    publish(files, parts, (), past_attempts(output))
    for name in _error_files(output):
        content = storage.read_bytes(output.file("errors", name))
        if pq.read_metadata(pa.BufferReader(content)).num_rows:
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            output.write(RETRIED, f"{digest}.parquet", content)
            output.write_table("errors", name, ERRORS.empty_table())


def past_attempts(output: OutputFolder) -> dict[str, int]:
    """How often the rows were tried that `forget_failures` has taken out, by id."""
    attempts: dict[str, int] = {}
    for table in _read_columns(output, RETRIED, output.parquet_files(RETRIED), ["id", "attempt"]):
        for row_id, attempt in zip(table["id"].to_pylist(), table["attempt"].to_pylist(), strict=True):
            attempts[row_id] = max(attempts.get(row_id, 0), attempt)
    return attempts


def _error_files(output: OutputFolder) -> list[str]:
    return [name for name in output.parquet_files("errors") if name != REJECTED_FILE]


def _read_columns(
    output: OutputFolder, folder: str, names: Sequence[str], columns: list[str]
) -> list[pa.Table]:
    """Raises RunError naming a file that is none of ours."""
    with ThreadPoolExecutor(READERS) as readers:
        tables = list(readers.map(lambda name: output.read_table(folder, name, columns), names))
    for name, table in zip(names, tables, strict=True):
        if missing := set(columns) - set(table.column_names):
            absent = ", ".join(sorted(missing))
            raise RunError(
                f"{output.file(folder, name)} was not written by a run (it has no {absent}): move it away, "
                "or use another output"
            )
    return tables
