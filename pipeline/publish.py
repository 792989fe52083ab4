"""From many small parts to few large files in `data` and `errors`, and what an earlier run has left.

Publishing reads finished parts, writes their rows to one file in `data` and their errors to one in `errors`
under names that follow from the parts, and deletes the parts. It may be killed anywhere: whatever is already
in `data` or `errors` counts, and `recover` drops it from the parts that are still there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import filesystem
from pipeline.columns import EXTRA_PREFIX, ID, SOURCE, TEXT, extra_fields, first_occurrences
from pipeline.errors import ERROR_TYPE, error_record
from pipeline.output import SEED, OutputFolder
from pipeline.plan import Rejected
from pipeline.rank import CANDIDATES

# `data`: these with the pass-through columns, under their own names, after `text`.
DATA = pa.schema([ID, TEXT, SEED, CANDIDATES])
ERRORS = pa.schema([ID, SOURCE, *ERROR_TYPE])

REJECTED_FILE = "manifest.parquet"  # in `errors`: rows without an id of their own, written anew by every run
READERS = 16


@dataclass(frozen=True)
class Recovered:
    """What the output holds already."""

    published: pa.ChunkedArray  # ids in `data` and `errors`, large_string
    parts: list[str] = field(default_factory=list)  # unpublished parts
    part_ids: pa.ChunkedArray = field(default_factory=lambda: pa.chunked_array([], pa.large_string()))

    def done_ids(self) -> pa.ChunkedArray:
        return pa.chunked_array([*self.published.chunks, *self.part_ids.chunks], pa.large_string())


def publish(output: OutputFolder, parts: Sequence[str], skip_ids: Sequence[str] = ()) -> None:
    """Move the rows and errors of `parts` into `data` and `errors`, but for those of `skip_ids`.

    Errors go first: until the rows follow they are still in their parts, where the next run finds them.
    """
    tables = [output.read_table("_parts", name) for name in parts]
    table = pa.concat_tables(tables)
    if len(skip_ids):
        table = table.filter(pc.invert(pc.is_in(table["id"], value_set=pa.array(skip_ids, ID.type))))
    failed = table.filter(pc.is_valid(table["error"]))
    done = table.filter(pc.is_null(table["error"]))
    name = hashlib.blake2b("\0".join(sorted(parts)).encode(), digest_size=16).hexdigest() + ".parquet"
    if len(failed):
        output.write_table("errors", name, _error_rows(failed))
    if len(done):
        output.write_table("data", name, _data_rows(done))
    filesystem.delete_files([output.file("_parts", part) for part in parts])


def _data_rows(table: pa.Table) -> pa.Table:
    extra = extra_fields(table.schema)
    fields = [ID, TEXT, *(f.with_name(f.name.removeprefix(EXTRA_PREFIX)) for f in extra), SEED, CANDIDATES]
    names = ["id", "text", *(f.name for f in extra), "seed", "candidates"]
    return pa.table([table[name] for name in names], schema=pa.schema(fields))


def _error_rows(table: pa.Table) -> pa.Table:
    error = table["error"].combine_chunks()
    parts = [pc.struct_field(error, name) for name in ERROR_TYPE.names]
    return pa.table([table["id"], table["source"], *parts], schema=ERRORS)


def publish_rejected(output: OutputFolder, rejected: Iterator[Rejected]) -> int:
    """Write the error table of the rows that have no id of their own; returns their number.

    The manifest alone decides them, so every run replaces what the one before wrote.
    """
    sink = pa.BufferOutputStream()
    count = 0
    with pq.ParquetWriter(sink, ERRORS, compression="zstd") as writer:
        while chunk := list(islice(rejected, 65_536)):
            rows = [{"id": r.id, "source": r.source, **error_record("manifest", r.error)} for r in chunk]
            writer.write_table(pa.Table.from_pylist(rows, schema=ERRORS))
            count += len(rows)
    if count:
        output.write("errors", REJECTED_FILE, sink.getvalue())
    else:
        filesystem.delete_files([output.file("errors", REJECTED_FILE)])
    return count


def recover(output: OutputFolder) -> Recovered:
    """Read what an earlier run has left, and finish what it was about to publish when it ended."""
    filesystem.delete_files(
        [output.file("_scratch", name) for name in filesystem.list_names(output.folder("_scratch"), "")]
    )
    errors = [name for name in output.parquet_files("errors") if name != REJECTED_FILE]
    published = _read_ids(output, [("data", name) for name in output.parquet_files("data")])
    published += _read_ids(output, [("errors", name) for name in errors])
    parts = output.parquet_files("_parts")
    part_ids = _read_ids(output, [("_parts", name) for name in parts])
    first = first_occurrences(pa.chunked_array([*published, *part_ids], pa.large_string()))
    start = sum(map(len, published))
    kept: dict[str, pa.Array] = {}
    for name, ids in zip(parts, part_ids, strict=True):
        repeated = ~first[start : start + len(ids)]
        start += len(ids)
        if repeated.all():
            filesystem.delete_files([output.file("_parts", name)])
        elif repeated.any():
            publish(output, [name], ids.filter(pa.array(repeated)).to_pylist())
            published.append(ids)
        else:
            kept[name] = ids
    return Recovered(
        pa.chunked_array(published, pa.large_string()),
        list(kept),
        pa.chunked_array(list(kept.values()), pa.large_string()),
    )


def _read_ids(output: OutputFolder, files: Sequence[tuple[str, str]]) -> list[pa.Array]:
    """The ids in each of the (folder, name) files."""

    def read(file: tuple[str, str]) -> pa.Array:
        return output.read_table(*file, columns=["id"])["id"].cast(pa.large_string()).combine_chunks()

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read, files))
