"""One reference clip, from bytes, a path or a URI that may be opened, to a waveform (`clvp.audio.clip`)."""

import fnmatch
import io
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import torch

from clvp.audio.clip import ClipError, read_clip
from pipeline import storage
from pipeline.errors import RowError
from pipeline.rows.formats import AUDIO
from pipeline.rows.memory import MAX_CLIPS


def decode_clip(
    data: bytes | None, path: str | None, seconds: float, root: str | None = None, places: Sequence[str] = ()
) -> torch.Tensor:
    """The first `seconds` of a clip, as `read_clip` gives them.

    `data` wins over `path`. With `root`, a path must lie below it, after symbolic links are resolved; else a
    URI must lie on a host or bucket of `places`. Credentials and options come from them, not from `path`.

    Raises RowError for anything that cannot be read or holds no voice.
    """
    with _open_clip(data, path, root, places) as stream:
        try:
            return read_clip(stream, seconds)
        except ClipError as error:
            raise RowError(error.kind, f"{clip_name(path)}: {error}") from error


def clip_name(path: str | None) -> str:
    """What messages call a clip."""
    return "embedded audio" if path is None else repr(path)


def _open_clip(data: bytes | None, path: str | None, root: str | None, places: Sequence[str]) -> BinaryIO:
    """A seekable binary stream, to be closed by the caller."""
    if data is not None:
        return io.BytesIO(data)
    assert path is not None  # as `pipeline.rows.payloads` sees to
    found = path
    try:
        found, places = allowed(path, root, places)
        return _open_local(found, root) if storage.is_local(found) else _open_remote(found, places)
    except FileNotFoundError as error:
        # fsspec says it of whatever a server answers.
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        raise RowError("AudioNotFound", f"no such file: {path!r}{reason or _other_form(found)}") from error
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise RowError("UnreadableAudio", f"{path!r}: {getattr(error, 'strerror', None) or error}") from error


def listed_clips(
    clips: Sequence[Mapping[str, Any]], root: str | None, places: Sequence[str]
) -> list[dict[str, Any]]:
    """The clips of a row, where a folder (`ada/`) or names (`ada/*.wav`) stand for the files there, sorted.

    Raises RowError where there are none or too many, or `decode_clip` may not open them.
    """
    found: list[dict[str, Any]] = []
    for clip in clips:
        folder, _, pattern = (clip["path"] or "").rpartition("/")
        listed = clip["bytes"] is None and storage.scheme_of(folder) not in ("http", "https")
        if not listed or (pattern and "*" not in pattern):
            found.append(dict(clip))
            continue
        pattern = pattern or "*"
        names = storage.list_names(storage.parent(allowed(f"{folder}/{pattern}", root, places)[0]), "")
        names = [name for name in fnmatch.filter(names, pattern) if name.lower().endswith(AUDIO)]
        if not names:
            raise RowError("AudioNotFound", f"there are no clips: {clip['path']!r}")
        found += [{"bytes": None, "path": storage.join(folder, name)} for name in names]
    if len(found) > MAX_CLIPS:
        raise RowError("TooManyClips", f"audio names {len(found):,} clips; at most {MAX_CLIPS} are used")
    return found


def allowed(path: str, root: str | None, places: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Where a path may be opened, with the options that this takes, and the places that it may lead to.

    Raises RowError.
    """
    if root is not None:
        return contained(path, root), (root,)
    return storage.absolute(path) if storage.is_local(path) else _named(path, places), places


def _other_form(path: str) -> str:
    """A hint, where a file that is missing has a name of the same look."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, path)
        if other != path and os.path.lexists(other):
            return f"; there is one whose name is written in the Unicode form {form}: {other!a}"
    return ""


def contained(path: str, root: str) -> str:
    """`path`, symbolic links resolved, or with the options of `root`. Raises RowError unless it lies below
    `root`, a folder or URI.
    """
    if storage.is_local(root) and storage.is_local(path):
        real_root = os.path.realpath(storage.absolute(root))
        real_path = os.path.realpath(storage.absolute(path))
        inside = real_path.startswith(real_root.rstrip("/") + "/")
    else:
        real_path = "" if storage.is_local(path) else storage.placed(path, root) or ""
        head, root_head = (storage.split_query(uri)[0] for uri in (real_path, root))
        below = head.removeprefix(root_head.rstrip("/") + "/")
        inside = below != head and not {"", ".", ".."} & set(below.split("/"))
    if not inside:
        raise RowError("AudioOutsideRoot", f"{path!r} is not below the audio root {root!r}")
    return real_path


def _named(path: str, places: Sequence[str]) -> str:
    """A URI with the options of the place that it lies on. Raises RowError where there is none."""
    for place in places:
        if found := storage.placed(path, place):
            return found
    raise RowError(
        "AudioNotAllowed",
        f"{path!r} lies on a host or bucket that was not named, or brings credentials or options of its own: "
        f"if you trust it, name it with all that it needs, as in --audio-hosts {storage.origin(path)}",
    )


def _open_local(path: str, root: str | None) -> BinaryIO:
    """`path` is absolute; below a `root` it has no links, and one that has come since is not followed."""
    flags, folder = os.O_RDONLY | os.O_CLOEXEC, None
    with ExitStack() as opened:
        if root is not None:
            real_root = os.path.realpath(storage.absolute(root))
            *folders, path = os.path.relpath(path, real_root).split("/")
            for name in (real_root, *folders):
                folder = os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                opened.callback(os.close, folder)
            flags |= os.O_NOFOLLOW
        # Before it is opened: opening a device may do something.
        _check_is_file(os.stat(path, dir_fd=folder, follow_symlinks=root is None).st_mode)
        # O_NONBLOCK: opening a FIFO, should there be one by now, must not wait for a writer.
        descriptor = os.open(path, flags | os.O_NONBLOCK, dir_fd=folder)
    try:
        _check_is_file(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb", buffering=1 << 18)
    except OSError:
        os.close(descriptor)
        raise


def _check_is_file(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder, FIFO, socket or device, not a file")


def _open_remote(path: str, places: Sequence[str]) -> BinaryIO:
    if storage.scheme_of(path) in ("http", "https"):
        reader = _web(tuple(places)).open(path)
    else:
        filesystem, name = storage.resolve(path)
        reader = filesystem.open_input_file(name)
    return io.BufferedReader(reader, buffer_size=1 << 19)


@lru_cache(maxsize=8)
def _web(places: tuple[str, ...]) -> Any:
    """fsspec's filesystem of the web, but no server sends it on to a host that is not named."""
    origins = set(map(storage.origin, places))

    async def check(request: Any, send: Any) -> Any:
        if (target := storage.origin(str(request.url))) not in origins:
            raise PermissionError(f"the server sends on to {target}, which is not in --audio-hosts")
        return await send(request)

    return fsspec.filesystem("https", client_kwargs={"middlewares": (check,)})
