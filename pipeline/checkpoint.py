"""The checkpoint of a run: which files decide results, and how every node comes by exactly those.

The driver describes the checkpoint once, as names and digests. Every process then asks for a local folder
that holds what was described: a folder is used where it lies, a hub id goes through `huggingface_hub`'s
cache, pinned to a commit, and what lies in an object store is downloaded once per node, whatever the number
of actors there.
"""

import errno
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
from filelock import FileLock

from clvp.checkpoint import (
    CODEC_CONFIG_FILE,
    CODEC_FILE,
    DEMO,
    DEMO_FOLDER,
    DIFFUSION_FILE,
    RANDOM_VOICES_FILE,
    VOCODER_FILE,
    WAVEFORM_CONFIG_FILE,
    WEIGHT_FILES,
    CheckpointSource,
    read_json,
    weight_map,
)
from pipeline import storage
from pipeline.cache import cache_folder, remembered
from pipeline.errors import RunError

# They decide nothing where no candidate becomes sound.
SOUND_FILES = (WAVEFORM_CONFIG_FILE, DIFFUSION_FILE, VOCODER_FILE, CODEC_CONFIG_FILE, CODEC_FILE)
PIECE_BYTES = 64 << 20  # of an object; Arrow makes a request of each
LARGE_BYTES, SETTLED_SECONDS = 64 << 20, 5.0  # of a file whose digest is remembered
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A folder, hub id (`NAME@COMMIT`), URI or "demo", and the sha256 (hex) of each of its files in use."""

    location: str
    files: Mapping[str, str]
    version: str = ""  # of a URI: changes with the objects below it

    def __hash__(self) -> int:
        return hash((self.location, self.version, frozenset(self.files.items())))


def describe_checkpoint(location: str) -> Checkpoint:
    """What the model at `location` consists of; downloads what is not on this machine.

    A hub id may name a revision, `NAME@REVISION`; the result names the commit, so that every node gets the
    same files even if the repository changes meanwhile.

    Raises RunError when it cannot be used.
    """
    with _refusing(location, ""):
        if not storage.is_local(location):
            location = storage.absolute(location)
            version = _version(location)
            return Checkpoint(location, _digests(_download(location, version)), version)
        if location == DEMO:
            return Checkpoint(DEMO, _digests(DEMO_FOLDER))
        folder = Path(storage.absolute(location))
        if folder.is_dir():
            return Checkpoint(str(folder), _digests(folder))
        name, _, revision = location.partition("@")
        config = CheckpointSource(name, revision or None).file("config.json")
        if config is None:
            raise FileNotFoundError("it holds no config.json: is it a CLVP checkpoint?")
        # The hub's cache keeps the files of each commit in a folder of that name.
        used_files(CheckpointSource(name, config.parent.name).file)
        return Checkpoint(f"{name}@{config.parent.name}", _digests(config.parent))


def check_files(location: str) -> None:
    """Raise RunError for a local folder that lacks a file: quick, where digests of weights take seconds.

    What is no folder may be a hub id; one without its user would be asked for in vain, for half a minute.
    """
    folder = Path(storage.absolute(location)) if storage.is_local(location) else None
    with _refusing(location, ""):
        if folder is not None and folder.is_dir():
            used_files(CheckpointSource(folder).file)
        elif folder is not None and location != DEMO and "/" not in location:
            raise FileNotFoundError("there is no such folder, and an id on the hub is USER/NAME")


@lru_cache(maxsize=8)
def fetch(checkpoint: Checkpoint) -> str:
    """A folder on this node with the files of `checkpoint`. Cheap once a process of the node has had it.

    Raises RunError naming the file that is missing, was replaced or cannot be had.
    """
    location = checkpoint.location
    with _refusing(location, f" on {socket.gethostname()}"):
        if not storage.is_local(location):
            return str(_download(location, checkpoint.version, checkpoint.files))
        name, _, commit = location.partition("@")
        # The hub's cache locks every file it fetches, and asks nobody for a commit's file that is there.
        on_hub = location != DEMO and not location.startswith("/")
        source = CheckpointSource(name, commit) if on_hub else CheckpointSource(location)
        files = used_files(source.file)
        if differing := sorted(files.keys() ^ checkpoint.files.keys()):
            raise FileNotFoundError(
                f"{', '.join(differing)}: not the files that the run began with; every node needs the same: "
                "use a shared folder, an object store or a hub id"
            )
        return str(files["config.json"].parent)


@contextmanager
def _refusing(location: str, where: str) -> Iterator[None]:
    """Whatever is wrong with a checkpoint, as one sentence without credentials."""
    try:
        yield
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "; make room, or name another folder in CLVP_CACHE" if full else ""
        text = f"the model {location} cannot be used{where}: {error}{hint}"
        raise RunError(storage.public(text)) from error


def used_files(find: Callable[[str], Path | None]) -> dict[str, Path]:
    """The files of a checkpoint that results depend on, by the rules by which `clvp` reads them.

    `find` gives the local path of a file, None where there is none. Settings of `generate` are none: the jobs
    bring their own. Raises FileNotFoundError for what must be there, CheckpointError for broken JSON.
    """
    found: dict[str, Path] = {}

    def take(*names: str, required: bool = False) -> Path | None:
        """The first of these that is there."""
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"its index of weights names {name!r}, which lies outside of it")
            path = find(name)
            if path is not None:
                found[name] = path
                return path
        if required:
            raise FileNotFoundError(f"it holds no {' or '.join(names)}: is it a CLVP checkpoint?")
        return None

    for name in ("config.json", "vocab.json", "merges.txt"):
        take(name, required=True)
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = take(name)
        settings |= read_json(path) if path else {}
    if settings.get("added_tokens_decoder") is None:
        take("added_tokens.json")
    take("preprocessor_config.json", "processor_config.json")
    weights = take(*WEIGHT_FILES, required=True)
    if weights is not None and weights.name.endswith(".index.json"):
        for shard in sorted(set(weight_map(weights).values())):
            take(shard, required=True)
    if take(CODEC_CONFIG_FILE):
        take(CODEC_FILE, required=True)
    elif take(WAVEFORM_CONFIG_FILE):
        take(DIFFUSION_FILE, required=True)
        take(VOCODER_FILE, required=True)
        take(RANDOM_VOICES_FILE)
    return found


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for name, path in sorted(used_files(CheckpointSource(folder).file).items()):
        digests[name] = _sha256(path)
    return digests


def _sha256(path: Path) -> str:
    """Of a file; a large one is read as a whole once, until it changes."""
    with open(path, "rb") as file:

        def read() -> str:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

        state = os.fstat(file.fileno())
        # What has just been written might change once more within a tick of the clock that times are told by.
        settled = time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS
        if state.st_size < LARGE_BYTES or not settled:
            return read()
        # Some file systems tell the same times of all files: other weights differ everywhere.
        samples = [_sample(file, part * (state.st_size - SAMPLE_BYTES) // 2) for part in range(3)]
        times = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        return remembered(("sha256", str(path.resolve()), *times, *samples), read, str)


def _sample(file: BinaryIO, place: int) -> str:
    file.seek(place)
    return hashlib.sha256(file.read(SAMPLE_BYTES)).hexdigest()


def _version(uri: str) -> str:
    """Follows from the names, sizes and times of all objects below a URI."""
    filesystem, path = storage.resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    states = sorted((info.path, info.size or 0, info.mtime_ns or 0) for info in infos if info.is_file)
    return hashlib.blake2b(repr((uri, states)).encode(), digest_size=16).hexdigest()


def _download(uri: str, version: str, digests: Mapping[str, str] | None = None) -> Path:
    """A folder of this node's cache with the files below a URI, which must be of these `digests` if given.

    It gets its name once it is whole, so what a killed process leaves is never taken for a checkpoint.
    """
    target = cache_folder() / "checkpoints" / version
    target.parent.mkdir(exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if target.is_dir():
            return target
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            used_files(lambda name: _copied(uri, name, partial))
            if digests and (changed := digests.items() ^ _digests(partial).items()):
                names = ", ".join(sorted({name for name, _ in changed}))
                raise ValueError(f"{names}: not the files that the run began with; they were replaced")
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _copied(uri: str, name: str, folder: Path) -> Path | None:
    """A file below a URI, copied into `folder`; None if there is none. OSError when it is incomplete."""
    filesystem, path = storage.resolve(uri)
    info = filesystem.get_file_info(f"{path}/{name}")
    if not info.is_file:
        return None
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(info.path, str(target), filesystem, pafs.LocalFileSystem(), chunk_size=PIECE_BYTES)
    if target.stat().st_size != info.size:
        raise OSError(f"{name} has {info.size:,} bytes, but only {target.stat().st_size:,} of them came")
    return target
