"""Files of an object store, copied to this node."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from pipeline import node_cache, storage

PIECE_BYTES = 64 << 20  # Arrow makes a request of every read


@dataclass
class RemoteFolder:
    """Files below a URI. `digests` (sha256, hex) grows with what is downloaded."""

    filesystem: pafs.FileSystem
    path: str
    sizes: dict[str, int]
    states: list[tuple[str, int, int]]  # name, size and time of every file: they change with the content
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, uri: str) -> "RemoteFolder":
        """List a folder. Raises OSError or ArrowException where there is none."""
        source, path = storage.resolve(uri)
        infos = source.get_file_info(pafs.FileSelector(path, recursive=True))
        files = {info.path[len(path) :].lstrip("/"): info for info in infos if info.is_file}
        states = sorted((name, info.size, info.mtime_ns or 0) for name, info in files.items())
        return cls(source, path, {name: info.size for name, info in files.items()}, states)

    def download(self, name: str, folder: Path) -> Path | None:
        """Copy a file into `folder` and note its digest; None where there is no such file.

        Raises OSError when it comes incomplete, RunError when it cannot be written.
        """
        if name not in self.sizes:
            return None
        target, digest, count = folder / name, hashlib.sha256(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = self.filesystem.open_input_stream(f"{self.path}/{name}")
        with stream, open(target, "wb", buffering=0) as file:
            while piece := stream.read(PIECE_BYTES):
                node_cache.write_fully(file, piece)
                digest.update(piece)
                count += len(piece)
        if count != self.sizes[name]:
            raise OSError(f"{name} has {self.sizes[name]:,} bytes, but only {count:,} of them came")
        self.digests[name] = digest.hexdigest()
        return target


@contextmanager
def partial_folder(uri: str) -> Iterator[Path]:
    """An empty folder for files of `uri` on their way; the caller holds the node's lock `key_of(uri)`.

    What processes that were killed have left behind is removed on this occasion.
    """
    parent = node_cache.cache_folder() / "partial"
    parent.mkdir(exist_ok=True)
    folder = parent / node_cache.key_of(uri)
    for leftover in parent.iterdir():
        if leftover != folder:
            with node_cache.locked(leftover.name, wait=False) as free:
                if free:
                    shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
