"""A folder that the processes of one node share: digests of files, and what was downloaded once for all.

`CLVP_CACHE` names it, else it is `clvp` in `XDG_CACHE_HOME` or `~/.cache`, or in the folder for temporary
files where a home cannot be written. It may be deleted at any time between runs.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from pipeline.errors import RunError


def cache_folder() -> Path:
    """The folder, which exists and can be written. Raises RunError where there is none."""
    named = os.environ.get("CLVP_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "clvp"
    spare = Path(tempfile.gettempdir()) / f"clvp-{os.getuid()}"
    problem = ""
    for folder in [Path(named).expanduser()] if named else [home, spare]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            problem = f"{folder} cannot be written"
        except OSError as error:
            problem = str(error)
    raise RunError(f"no folder to keep model files in: {problem}; name another in CLVP_CACHE")


def key_of(text: str) -> str:
    """A name for a file of the cache."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `name` of this node, which ends with the process however that ends.

    Yields False when another process holds it and `wait` is false.
    """
    folder = cache_folder() / "locks"
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content; computed once per node and state of the file."""
    path = path.absolute()
    known = _remembered(path)
    if known is not None:
        return known
    with locked(key_of(str(path))):
        known = _remembered(path)  # another process may have been faster
        if known is not None:
            return known
        state = _state(path)  # from before, so that a file that changes meanwhile is read again next time
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _remember(path, state, digest)
        return digest


def remember(path: Path, digest: str) -> None:
    """Note the digest of a file that this process has just written."""
    _remember(path.absolute(), _state(path), digest)


def _state(path: Path) -> list[int]:
    """Differs after every write, a replacement that keeps size and times included."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _note(path: Path) -> Path:
    folder = cache_folder() / "digests"
    folder.mkdir(exist_ok=True)
    return folder / f"{key_of(str(path))}.json"


def _remembered(path: Path) -> str | None:
    note = read_note(_note(path))
    if note is None or note.get("state") != _state(path):
        return None
    return str(note.get("sha256"))


def _remember(path: Path, state: list[int], digest: str) -> None:
    write_note(_note(path), {"path": str(path), "state": state, "sha256": digest})


def read_note(path: Path) -> dict[str, object] | None:
    """A note of the cache; None where there is none, or one that a full disk cut off."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_note(path: Path, content: dict[str, object]) -> None:
    """Write a note whole or not at all. Raises RunError where the disk is full."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_fully(file: FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file. Raises RunError where the disk is full."""
    written = 0
    try:
        while written < len(data):
            written += file.write(memoryview(data)[written:])
    except OSError as error:
        raise cannot_write(Path(str(file.name)), error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """What a node that cannot keep a model's files ends the run with."""
    reason = error.strerror or str(error)
    return RunError(f"cannot write {path}: {reason}; make room, or name another folder in CLVP_CACHE")
