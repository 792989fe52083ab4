"""The output of a run as a folder.

OUTPUT/README.md          the dataset card, by which `datasets` loads what is in data/
OUTPUT/run.json           what the run was told, and what its results depend on
OUTPUT/data/*.parquet     one row per utterance, ranked candidates inside
OUTPUT/errors/*.parquet   one row per manifest row that failed
OUTPUT/_parts/            blocks that are finished but not yet published, rows and errors in one file
OUTPUT/_manifest/         the manifest's text files as Parquet, while a run reads them
OUTPUT/_scratch/          files being written on a local disk
OUTPUT/_lock              held by the one run at work on the output
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import conditional, storage
from pipeline.errors import RunError

ROW_GROUP_BYTES = 32 << 20  # of Arrow data
CONTENT = ["data", "errors", "metrics", "_manifest", "_parts", "_retried", "_scratch", "_lock", "README.md"]


@dataclass(frozen=True)
class OutputFolder:
    """A folder on a local disk or an object store."""

    uri: str

    def check(self) -> None:
        """Raise RunError where a local output is a file, or a part of it a link: a run deletes there."""
        if storage.is_local(self.uri) and os.path.exists(self.uri) and not os.path.isdir(self.uri):
            raise RunError(f"the output {self.uri} is a file: name a folder, which need not be there")
        for name in CONTENT:
            if storage.is_local(self.uri) and os.path.islink(link := self.folder(name)):
                raise RunError(f"{link} is a symbolic link: remove it, or use another output")

    def folder(self, name: str) -> str:
        return storage.join(self.uri, name)

    def file(self, folder: str, name: str) -> str:
        return storage.join(self.folder(folder), name)

    def write(self, folder: str, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all; it replaces one of the same name."""
        storage.write_atomically(self.file(folder, name), data, self.folder("_scratch"))

    def create(self, folder: str, name: str, data: bytes | pa.Buffer, version: str | None = None) -> str:
        """Write a file that is not there, or replace this version of it; returns its new version.

        Raises ConflictError, with nothing written, where another run was faster.
        """
        return conditional.write(self.file(folder, name), data, self.folder("_scratch"), version)

    def write_table(self, folder: str, name: str, table: pa.Table) -> int:
        """Write a Parquet file as `write` does; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group(table))
        buffer = sink.getvalue()
        self.write(folder, name, buffer)
        return int(buffer.size)

    def parquet_files(self, folder: str) -> list[str]:
        """Names of the Parquet files in one of the folders, sorted."""
        return storage.list_names(self.folder(folder), ".parquet")

    @contextmanager
    def open_table(self, folder: str, name: str) -> Iterator[pq.ParquetFile]:
        source, path = storage.resolve(self.file(folder, name))
        with source.open_input_file(path) as stream:
            yield pq.ParquetFile(stream)

    def schema(self, folder: str, name: str) -> pa.Schema:
        with self.open_table(folder, name) as parquet:
            return parquet.schema_arrow

    def read_table(self, folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.open_table(folder, name) as parquet:
            return parquet.read(columns=columns)

    def matching(
        self, folder: str, ids: Collection[str], columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of these ids, of each row group that has some; of `columns` those that are there."""
        wanted = pa.array(ids, pa.string())
        for name in self.parquet_files(folder):
            with self.open_table(folder, name) as parquet:
                for group in range(parquet.num_row_groups):
                    if pc.any(pc.is_in(parquet.read_row_group(group, ["id"])["id"], wanted)).as_py():
                        rows = parquet.read_row_group(group, columns)
                        yield rows.filter(pc.is_in(rows["id"], wanted))


def rows_per_group(table: pa.Table) -> int:
    """Row groups stay small enough to be read a few at a time."""
    return min(max(1, ROW_GROUP_BYTES * max(len(table), 1) // max(table.nbytes, 1)), 65_536)
