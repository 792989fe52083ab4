"""From many small parts to few large files in `data` and `errors`, and what an earlier run has left.

Publishing reads finished parts, writes their rows to one file in `data` and their errors to one in `errors`
under names that follow from the parts, and deletes the parts. It may be killed anywhere: whatever is already
in `data` or `errors` counts, and `recover` drops it from the parts that are still there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import filesystem
from pipeline.columns import CANDIDATES, EXTRA_PREFIX, ID, SOURCE, TEXT, extra_fields, first_occurrences
from pipeline.errors import ERROR_TYPE, error_record
from pipeline.output import SEED, OutputFolder
from pipeline.plan import Rejected

# `data`: these with the pass-through columns, under their own names, after `text`.
DATA = pa.schema([ID, TEXT, SEED, CANDIDATES])
ERRORS = pa.schema([ID, SOURCE, *ERROR_TYPE])

REJECTED_FILE = "manifest.parquet"  # in `errors`: rows without an id of their own, written anew by every run
READERS = 16


@dataclass(frozen=True)
class Recovered:
    """What the output holds already."""

    ids: pa.ChunkedArray  # of all rows that are done or failed, large_string
    parts: list[str]  # not published yet
    done: int
    failed: int


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
    data = _read_columns(output, "data", output.parquet_files("data"), ["id"])
    errors = [name for name in output.parquet_files("errors") if name != REJECTED_FILE]
    failed = _read_columns(output, "errors", errors, ["id"])
    names = output.parquet_files("_parts")
    parts = _read_columns(output, "_parts", names, ["id", "error"])
    ids = pa.chunked_array([_ids(table) for table in (*data, *failed, *parts)], pa.large_string())
    first = first_occurrences(ids)
    begin = sum(map(len, (*data, *failed)))
    num_failed = sum(map(len, failed))
    kept: list[str] = []
    for name, table in zip(names, parts, strict=True):
        new = first[begin : begin + len(table)]
        begin += len(table)
        num_failed += int((table["error"].is_valid().to_numpy() & new).sum())
        if new.all():
            kept.append(name)
        elif new.any():
            publish(output, [name], table["id"].filter(pa.array(~new)).to_pylist())
        else:
            filesystem.delete_files([output.file("_parts", name)])
    return Recovered(ids, kept, int(first.sum()) - num_failed, num_failed)


def _ids(table: pa.Table) -> pa.Array:
    return (
        pa.concat_arrays(table["id"].cast(pa.large_string()).chunks)
        if len(table)
        else pa.array([], pa.large_string())
    )


def _read_columns(
    output: OutputFolder, folder: str, names: Sequence[str], columns: list[str]
) -> list[pa.Table]:
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: output.read_table(folder, name, columns), names))
