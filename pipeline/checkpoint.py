"""The checkpoint of a run: which files decide results, and how every node comes by exactly those.

The driver describes the checkpoint once, as names and digests. Every process then asks for a local folder
that holds what was described: a folder is used where it lies, a hub id goes through `huggingface_hub`'s
cache, and what lies in an object store is downloaded once per node, whatever the number of actors there.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from clvp.checkpoint import WEIGHT_FILES, CheckpointSource, read_json
from pipeline import node_cache, storage
from pipeline.download import RemoteFolder, partial_folder
from pipeline.errors import RunError

FindFile = Callable[[str], Path | None]  # local path of a file of the checkpoint, None where it has none


@dataclass(frozen=True)
class Checkpoint:
    """A folder, hub id (`NAME@COMMIT`) or URI, and the sha256 (hex) of each of its files that is used."""

    location: str
    files: Mapping[str, str]

    def __hash__(self) -> int:
        return hash((self.location, frozenset(self.files.items())))

    @property
    def digest(self) -> str:
        """Names the content, wherever it lies."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()[:32]


def describe_checkpoint(location: str) -> Checkpoint:
    """What the model at `location` consists of; downloads what is not on this machine.

    A hub id may name a revision, `NAME@REVISION`; the result names the commit, so that every node gets the
    same files even if the repository changes meanwhile.

    Raises RunError when it cannot be used.
    """
    try:
        if not storage.is_local(location):
            return _describe_remote(storage.absolute(location))
        folder = Path(storage.absolute(location))
        if folder.is_dir():
            return Checkpoint(str(folder), _digests(used_files(CheckpointSource(folder).file)))
        return _describe_hub(location)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise RunError(f"the model {location} cannot be used: {error}") from error


@lru_cache(maxsize=8)
def fetch(checkpoint: Checkpoint) -> str:
    """A folder on this node with exactly the files of `checkpoint`; its digests are verified.

    Cheap when another process of the node has done it before. Raises RunError naming the file that is
    missing, differs or cannot be had.
    """
    location = checkpoint.location
    try:
        if not storage.is_local(location):
            return str(_fetch_remote(checkpoint))
        folder = Path(location) if location.startswith("/") else _hub_folder(location, checkpoint.files)
        _verify(folder, checkpoint)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise RunError(f"the model {location} cannot be used on {socket.gethostname()}: {error}") from error
    return str(folder)


def used_files(find: FindFile) -> dict[str, Path]:
    """The files of a checkpoint that results depend on, by the rules by which `clvp` reads them.

    Settings of `generate` are none: the jobs bring their own. Raises FileNotFoundError for what must be
    there, CheckpointError for broken JSON.
    """
    found: dict[str, Path] = {}

    def take(name: str, required: bool = False) -> Path | None:
        path = find(_plain(name))
        if path is not None:
            found[name] = path
        elif required:
            raise FileNotFoundError(f"it holds no {name}: is it a CLVP checkpoint?")
        return path

    for name in ("config.json", "vocab.json", "merges.txt"):
        take(name, required=True)
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = take(name)
        settings |= read_json(path) if path else {}
    if settings.get("added_tokens_decoder") is None:
        take("added_tokens.json")
    if take("preprocessor_config.json") is None:
        take("processor_config.json")
    weights = next((name for name in WEIGHT_FILES if take(name)), None)
    if weights is None:
        raise FileNotFoundError(f"it holds no weights: none of {', '.join(WEIGHT_FILES)}")
    if weights.endswith(".index.json"):
        for shard in _shards(found[weights]):
            take(shard, required=True)
    return found


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map")
    return sorted(set(weight_map.values()))


def _plain(name: str) -> str:
    """An index must not name files outside of its folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"its index of weights names {name!r}, which lies outside of it")
    return name


def _digests(paths: Mapping[str, Path]) -> dict[str, str]:
    return {name: node_cache.sha256_of(path) for name, path in sorted(paths.items())}


def _verify(folder: Path, checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the files that `clvp` would read in `folder` are those of `checkpoint`."""
    found = _digests(used_files(CheckpointSource(folder).file)) if folder.is_dir() else {}
    if not found:
        raise FileNotFoundError(f"there is no folder {folder}; {_EVERYWHERE}")
    for name in sorted(checkpoint.files.keys() | found.keys()):
        if name not in found:
            raise FileNotFoundError(f"{folder / name} is missing; {_EVERYWHERE}")
        if found[name] != checkpoint.files.get(name):
            raise ValueError(f"{folder / name} is not the file that the run began with; {_EVERYWHERE}")


_EVERYWHERE = "every node needs the same files: use a shared folder, an object store or a hub id"


# ---- the hub ----


def _describe_hub(location: str) -> Checkpoint:
    name, _, revision = location.partition("@")
    source = CheckpointSource(name, revision or None)
    config = source.file("config.json")
    if config is None:
        raise FileNotFoundError("it holds no config.json: is it a CLVP checkpoint?")
    commit = config.parent.name  # the cache keeps the files of each commit in a folder of that name
    files = used_files(CheckpointSource(name, commit).file)
    return Checkpoint(f"{name}@{commit}", _digests(files))


def _hub_folder(location: str, names: Mapping[str, str]) -> Path:
    """The folder of the hub's cache that holds all of these files, downloaded where they are not there."""
    repository, _, commit = location.partition("@")
    for name in sorted(names):
        path = CheckpointSource(repository, commit or None).file(_plain(name))
        if path is None:
            raise FileNotFoundError(f"{name} is missing there")
        folder = path.parents[len(PurePosixPath(name).parts) - 1]
    return folder


# ---- object stores ----


def _describe_remote(uri: str) -> Checkpoint:
    remote = RemoteFolder.open(uri)
    note = node_cache.cache_folder() / f"described-{node_cache.key_of(repr((uri, remote.states)))}.json"
    with node_cache.locked(node_cache.key_of(uri)):
        known = node_cache.read_note(note)
        if known is not None:
            checkpoint = Checkpoint(uri, {str(name): str(digest) for name, digest in known.items()})
            if _holds(_cached(checkpoint), checkpoint):
                return checkpoint
        with partial_folder(uri) as folder:
            used_files(lambda name: remote.download(name, folder))
            checkpoint = Checkpoint(uri, remote.digests)
            _move_into_place(folder, checkpoint)
        node_cache.write_note(note, dict(checkpoint.files))
    return checkpoint


def _fetch_remote(checkpoint: Checkpoint) -> Path:
    target = _cached(checkpoint)
    if _holds(target, checkpoint):
        return target
    with node_cache.locked(node_cache.key_of(checkpoint.location)):
        if _holds(target, checkpoint):  # another process was faster
            return target
        remote = RemoteFolder.open(checkpoint.location)
        with partial_folder(checkpoint.location) as folder:
            for name, digest in checkpoint.files.items():
                if remote.download(_plain(name), folder) is None:
                    raise FileNotFoundError(f"{name} is missing there")
                if remote.digests[name] != digest:
                    raise ValueError(f"{name} is not the file that the run began with: it was replaced")
            _move_into_place(folder, checkpoint)
    return target


def _cached(checkpoint: Checkpoint) -> Path:
    return node_cache.cache_folder() / "checkpoints" / checkpoint.digest


def _holds(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether the files are there as they were written; if not, they are downloaded again."""
    try:
        return all(node_cache.sha256_of(folder / name) == sha for name, sha in checkpoint.files.items())
    except OSError:
        return False


def _move_into_place(folder: Path, checkpoint: Checkpoint) -> None:
    target = _cached(checkpoint)
    target.parent.mkdir(exist_ok=True)
    with node_cache.locked(checkpoint.digest):  # the same files may be fetched from two places
        if _holds(target, checkpoint):
            return
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
        for name, digest in checkpoint.files.items():
            node_cache.remember(target / name, digest)
