"""Stage 6, `write`: a finished block becomes one file, whole or absent.

    OUTPUT/run.json           what the run was told, and what its results depend on
    OUTPUT/data/*.parquet     one row per utterance, ranked candidates inside
    OUTPUT/errors/*.parquet   one row per manifest row that failed
    OUTPUT/_parts/            blocks that are finished but not yet published, rows and errors in one file
    OUTPUT/_scratch/          files being written on a local disk
    OUTPUT/_lock              held by the one run at work on the output

A block's file holds its rows *and* its errors, so no kill can leave a row in both or half of a block. Its
name follows from the ids in it: a block that is written twice replaces itself. `pipeline.publish` merges the
files of many blocks into few in `data` and `errors`, which is all that readers look at.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import filesystem
from pipeline.columns import (
    CANDIDATES,
    ENGINE,
    ID,
    SOURCE,
    TEXT,
    VOICE_KEY,
    extra_fields,
    require_columns,
)
from pipeline.errors import ERROR

SEED = pa.field("seed", pa.int64())

INPUT = pa.schema([ID, TEXT, VOICE_KEY, CANDIDATES, ENGINE, SOURCE, ERROR])
# And the pass-through columns, prefixed.
PART = pa.schema([ID, TEXT, SEED, VOICE_KEY, CANDIDATES, ENGINE, SOURCE, ERROR])

# What the stage hands to the driver: one row per block.
REPORT = pa.schema(
    [
        ("part", pa.string()),
        ("num_bytes", pa.int64()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        ("candidates", pa.int64()),
        ("tokens", pa.int64()),
        ("unfinished", pa.int64()),  # candidates without a stop token
        ("engine", pa.string()),  # null where nothing was sampled
    ]
)


@dataclass(frozen=True)
class OutputFolder:
    """A folder on a local disk or an object store."""

    uri: str

    def folder(self, name: str) -> str:
        return filesystem.join(self.uri, name)

    def file(self, folder: str, name: str) -> str:
        return filesystem.join(self.folder(folder), name)

    def write(self, folder: str, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all; it replaces one of the same name."""
        filesystem.write_atomically(self.file(folder, name), data, self.folder("_scratch"))

    def write_table(self, folder: str, name: str, table: pa.Table) -> int:
        """Write a Parquet file as `write` does; returns its size in bytes."""
        buffer = encode_parquet(table)
        self.write(folder, name, buffer)
        return int(buffer.size)

    def parquet_files(self, folder: str) -> list[str]:
        """Names of the Parquet files in one of the folders, sorted."""
        return filesystem.list_names(self.folder(folder), ".parquet")

    def read_table(self, folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
        source, path = filesystem.resolve(self.file(folder, name))
        with source.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read(columns=columns)


def encode_parquet(table: pa.Table) -> pa.Buffer:
    """A Parquet file in memory. Row groups stay small enough to be read a few at a time."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group(table, 32 << 20))
    return sink.getvalue()


def rows_per_group(table: pa.Table, num_bytes: int) -> int:
    """Rows of a row group of about `num_bytes` of Arrow data."""
    return min(max(1, num_bytes * max(len(table), 1) // max(table.nbytes, 1)), 65_536)


def lost_row(row_id: str, source: str, error: Mapping[str, str], extra: Sequence[pa.Field]) -> pa.Table:
    """A block [1] in the place of a row that no stage could bring to an end. `extra`: prefixed fields."""
    known = {"id": row_id, "source": source, "error": error}
    fields = [*INPUT, *extra]
    return pa.table([pa.array([known.get(f.name)], f.type) for f in fields], schema=pa.schema(fields))


class BlockWriter:
    """Callable on a block: writes its part and returns its report."""

    def __init__(self, output: OutputFolder, seed: int | None) -> None:
        self.output = output
        self.seed = seed

    def __call__(self, table: pa.Table) -> pa.Table:
        require_columns(table, INPUT)
        if not len(table):
            return REPORT.empty_table()
        name = part_name(table["id"].to_pylist())
        num_bytes = self.output.write_table("_parts", name, as_part(table, self.seed))
        return report_of(table, name, num_bytes)


def as_part(table: pa.Table, seed: int | None) -> pa.Table:
    """The rows and errors of a finished block with the columns PART and the pass-through ones."""
    fields = [*PART, *extra_fields(table.schema)]
    seeds = pa.array([seed] * len(table), SEED.type)
    return pa.table([seeds if f.name == "seed" else table[f.name] for f in fields], schema=pa.schema(fields))


def part_name(ids: list[str]) -> str:
    return hashlib.blake2b("\0".join(ids).encode(), digest_size=16).hexdigest() + ".parquet"


def report_of(table: pa.Table, name: str, num_bytes: int) -> pa.Table:
    candidates = pc.list_flatten(table["candidates"])
    failed = len(table) - table["error"].null_count
    row = {
        "part": name,
        "num_bytes": num_bytes,
        "rows": len(table) - failed,
        "failed": failed,
        "candidates": len(candidates),
        "tokens": pc.sum(pc.struct_field(candidates, "num_tokens")).as_py() or 0,
        "unfinished": pc.sum(pc.invert(pc.struct_field(candidates, "finished"))).as_py() or 0,
        "engine": next((value for value in table["engine"].to_pylist() if value is not None), None),
    }
    return pa.Table.from_pylist([row], schema=REPORT)
