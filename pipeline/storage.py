"""Paths and URIs: one way to list, read and atomically write on local disks and object stores."""

import fnmatch
import os
import posixpath
import re
import uuid
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.utils import glob_translate  # type: ignore[import-untyped]

from pipeline.errors import public

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_WILDCARD = re.compile(r"[*?\[]")
_ARROW_SCHEMES = {"s3", "gs", "gcs", "hdfs", "abfs", "abfss"}
_OBJECT_STORES = {"s3", "gcs", "abfs"}  # no folders to create, and an object appears whole or not at all
_LOCAL = pafs.LocalFileSystem()


def scheme_of(uri: str) -> str | None:
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else None


def is_local(uri: str) -> bool:
    return scheme_of(uri) in (None, "file")


def absolute(uri: str) -> str:
    """A local path made absolute (a `file://` URI becomes a path); any other URI as it is.

    Raises ValueError for one that names nothing.
    """
    if not uri or (not is_local(uri) and not uri.partition("://")[2].strip("/")):
        raise ValueError(f"{uri!r} names no file or folder")
    if not is_local(uri):
        return uri.rstrip("/")
    path = pafs.FileSystem.from_uri(uri)[1] if scheme_of(uri) else os.path.expanduser(uri)
    return os.path.abspath(path)


def join(folder: str, path: str) -> str:
    """`path` relative to `folder`; a path that is absolute or a URI stays as it is."""
    if scheme_of(path) or path.startswith("/"):
        return path
    if is_local(folder):
        return os.path.join(folder, path)
    head, query = split_query(folder)
    return f"{head.rstrip('/')}/{path}{query}"


def parent(uri: str) -> str:
    """The folder that holds `uri`, in the same notation."""
    head, query = split_query(uri)
    return posixpath.dirname(head) + query


def name_of(uri: str) -> str:
    return posixpath.basename(split_query(uri)[0])


def split_query(uri: str) -> tuple[str, str]:
    """`?key=value` is a query only on object-store URIs, where it carries connection options."""
    head, mark, query = uri.rpartition("?")
    return (head, mark + query) if scheme_of(uri) in _ARROW_SCHEMES and "=" in query else (uri, "")


def _split_host(uri: str) -> tuple[str, str, str]:
    """`scheme://user:secret@host`, `/key` and `?options`."""
    head, query = split_query(uri)
    scheme, _, rest = head.partition("://")
    host, slash, key = rest.partition("/")
    return f"{scheme}://{host}", slash + key, query


def origin(uri: str) -> str:
    """`scheme://host` or `scheme://bucket` of a URI, in lower case and without credentials."""
    return public(_split_host(uri)[0]).lower()


def bare(uri: str) -> str:
    """A path, or a URI without credentials and connection options, which `placed` gives back."""
    host, key, _ = _split_host(uri) if not is_local(uri) else ("", uri, "")
    return public(host) + key


def places(uris: Iterable[str]) -> tuple[str, ...]:
    """The different hosts and buckets that URIs lie on, with their credentials and options."""
    split = (_split_host(uri) for uri in uris if not is_local(uri))
    return tuple(dict.fromkeys(f"{host}/{query}" for host, _, query in split))


def placed(uri: str, place: str) -> str | None:
    """A URI with the credentials and options of `place`, another URI; None where it lies on another host or
    brings some of its own.
    """
    (host, key, query), (own_host, _, own_query) = _split_host(uri), _split_host(place)
    if host.lower() not in (origin(place), own_host.lower()) or query not in ("", own_query):
        return None
    return own_host + key + own_query


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI and the path within it.

    s3://, gs://, abfs:// and hdfs:// use Arrow's own filesystems (credentials, region and endpoint from the
    environment or the URI's query, e.g. `s3://bucket/x?endpoint_override=host:9000&scheme=http`); any other
    scheme uses the `fsspec` filesystem of that name.
    """
    if is_local(uri):
        return _LOCAL, absolute(uri)
    scheme = scheme_of(uri)
    if scheme not in _ARROW_SCHEMES:
        try:
            filesystem: Any = fsspec.filesystem(scheme)
        except (ImportError, TypeError, ValueError) as error:  # no library, or one that needs more than a URI
            raise ValueError(f"{scheme}:// cannot be used here: {error}") from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(filesystem._strip_protocol(uri))
    head, query = split_query(uri)
    bucket, _, key = head.partition("://")[2].partition("/")
    # Only the bucket goes through the URI parser: keys may hold spaces, '#' or '%'.
    filesystem, base = _arrow_filesystem(f"{scheme}://{bucket}{query}")
    return filesystem, posixpath.join(base.strip("/") or "/", key.rstrip("/"))


_arrow_filesystem = lru_cache(maxsize=32)(pafs.FileSystem.from_uri)


def expand(pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Files that a path, URI, folder or glob names, sorted; a plain file is returned whatever its suffix.

    In a glob, `*` and `?` stay within a folder and `**` crosses folders, but follows no links; nothing is
    listed that the pattern cannot match. Folders and wildcards leave out names that start with `.` or `_`, as
    dataset readers do.

    Raises FileNotFoundError when nothing matches.
    """
    pattern = absolute(pattern)
    if _WILDCARD.search(split_query(pattern)[0]):
        found = _glob(pattern)
    else:
        filesystem, path = resolve(pattern)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.File:
            return [pattern]
        found = _files_below(pattern) if kind == pafs.FileType.Directory else []
    found = sorted(uri for uri in found if name_of(uri).lower().endswith(tuple(suffixes)))
    if not found:
        kinds = ", ".join(suffix for suffix in suffixes if suffix.count(".") == 1)
        raise FileNotFoundError(f"no such file, or no {kinds} file in it: {public(pattern)}")
    return found


def _glob(pattern: str) -> list[str]:
    head, query = split_query(pattern)
    root = posixpath.dirname(_WILDCARD.split(head, maxsplit=1)[0])
    segments = head[len(root) :].lstrip("/").split("/")
    found = [root + query]
    for left, segment in enumerate(segments, 1 - len(segments)):
        if segment == "**":
            matches = re.compile(glob_translate(head)).match
            below = [uri for folder in found for uri in _files_below(folder, follow_links=False)]
            return [uri for uri in below if matches(split_query(uri)[0])]
        kind = pafs.FileType.Directory if left else pafs.FileType.File
        found = [uri for folder in found for uri in _matching(folder, segment, kind)]
    return found


def _matching(folder: str, segment: str, kind: pafs.FileType) -> list[str]:
    """What lies in a folder itself under the names of one segment of a glob."""
    filesystem, base = resolve(folder)
    if _WILDCARD.search(segment):
        infos = filesystem.get_file_info(pafs.FileSelector(base, allow_not_found=True))
        matches = re.compile(fnmatch.translate(segment)).match
        infos = [i for i in infos if matches(i.base_name) and not i.base_name.startswith((".", "_"))]
    else:
        infos = [filesystem.get_file_info(posixpath.join(base, segment))]
    return [join(folder, info.base_name) for info in infos if info.type == kind]


def _files_below(folder: str, follow_links: bool = True) -> list[str]:
    filesystem, base = resolve(folder)
    if filesystem is _LOCAL:
        paths = _local_files_below(base, follow_links)
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        paths = [info.path for info in infos if info.type == pafs.FileType.File]
    relative = [posixpath.relpath(path, base) for path in paths]
    return [join(folder, path) for path in relative if not re.search(r"(^|/)[._]", path)]


def _local_files_below(base: str, follow_links: bool) -> list[str]:
    """A folder that links lead to again is listed once: Arrow and fsspec would follow links in circles."""
    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(base, followlinks=follow_links, onerror=_unless_missing):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        found += [path for name in names if os.path.isfile(path := os.path.join(folder, name))]
    return found


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def list_names(folder: str, suffix: str) -> list[str]:
    """Sorted names of the files in `folder` itself that end in `suffix`; none if there is no folder."""
    filesystem, path = resolve(folder)
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except FileNotFoundError:  # it was made or removed while Arrow looked
        return []
    names = [info.base_name for info in infos if info.type == pafs.FileType.File]
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def read_bytes(uri: str) -> bytes:
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def delete_files(uris: Sequence[str]) -> None:
    """Delete files; those that are gone already are no error."""
    for uri in uris:
        filesystem, path = resolve(uri)
        try:
            filesystem.delete_file(path)
        except OSError:
            if exists(uri):
                raise


def write_atomically(uri: str, data: bytes | pa.Buffer, scratch: str) -> None:
    """Make `uri` hold `data`, or leave it as it was: no reader ever sees a part of it.

    On object stores one upload makes the object appear whole. Elsewhere the bytes go to a file in the folder
    `scratch` of the same filesystem, are flushed to the disk, and are renamed into place.
    """
    filesystem, path = resolve(uri)
    if filesystem.type_name in _OBJECT_STORES:
        _upload(filesystem, path, data)
        return
    folder = resolve(scratch)[1]
    filesystem.create_dir(posixpath.dirname(path), recursive=True)
    filesystem.create_dir(folder, recursive=True)
    temporary = posixpath.join(folder, uuid.uuid4().hex)
    if filesystem is not _LOCAL:
        _upload(filesystem, temporary, data)
        filesystem.move(temporary, path)
        return
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def upload(path: str, uri: str) -> None:
    """Copy a local file to `uri` in pieces. Others may see a part of it."""
    filesystem, target = resolve(uri)
    if filesystem.type_name not in _OBJECT_STORES:
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
    pafs.copy_files(path, target, _LOCAL, filesystem)


def no_follow(path: str, flags: int) -> int:
    """For `open(…, opener=no_follow)`: a symbolic link is an OSError."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _upload(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    # One write of a complete buffer: closing a stream after half of the data would publish that half.
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
    except NotImplementedError as error:
        raise OSError(f"{path} cannot be written: its kind of storage can only be read") from error
