"""Paths and URIs: one way to list, read and atomically write on local disks and object stores."""

import os
import posixpath
import re
import uuid
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_WILDCARD = re.compile(r"[*?\[]")
_ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss"}
_OBJECT_STORES = {"s3", "gcs", "abfs"}  # no folders to create, and an object appears whole or not at all


def scheme_of(uri: str) -> str | None:
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else None


def is_local(uri: str) -> bool:
    return scheme_of(uri) in (None, "file")


def absolute(uri: str) -> str:
    """A local path made absolute (a `file://` URI becomes a path); any other URI as it is."""
    scheme = scheme_of(uri)
    if scheme is None:
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(pafs.FileSystem.from_uri(uri)[1])
    return uri.rstrip("/")


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
    if is_local(uri):
        return os.path.dirname(uri)
    head, query = split_query(uri)
    return posixpath.dirname(head) + query


def name_of(uri: str) -> str:
    return posixpath.basename(split_query(uri)[0] if scheme_of(uri) else uri)


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI and the path within it.

    s3://, gs://, abfs:// and hdfs:// use Arrow's own filesystems (credentials, region and endpoint from the
    environment or the URI's query, e.g. `s3://bucket/x?endpoint_override=host:9000&scheme=http`); any other
    scheme uses the `fsspec` filesystem of that name.
    """
    scheme = scheme_of(uri)
    if scheme is None:
        return _local(), absolute(uri)
    if scheme in _ARROW_SCHEMES:
        return _arrow_filesystem(uri)
    return _fsspec_filesystem(scheme), _fsspec_path(scheme, uri)


def expand(pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Files that a path, URI, folder or glob names, sorted; a plain file is returned whatever its suffix.

    Folders and globs leave out names that start with `.` or `_`, as dataset readers do.

    Raises FileNotFoundError when nothing matches.
    """
    pattern = absolute(pattern)
    if _WILDCARD.search(split_query(pattern)[0].removeprefix(f"{scheme_of(pattern)}://")):
        matches = _glob_regex(split_query(pattern)[0]).fullmatch
        found = [uri for uri in _list_below(_fixed_folder(pattern)) if matches(split_query(uri)[0])]
    else:
        filesystem, path = resolve(pattern)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [pattern]
        found = _list_below(pattern) if info.type == pafs.FileType.Directory else []
    found = sorted(uri for uri in found if name_of(uri).lower().endswith(tuple(suffixes)))
    if not found:
        raise FileNotFoundError(f"no such file, or no {', '.join(suffixes)} file in it: {pattern}")
    return found


def list_names(folder: str, suffix: str) -> list[str]:
    """Sorted names of the files in `folder` itself that end in `suffix`; none if there is no folder."""
    filesystem, path = resolve(folder)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
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
        except FileNotFoundError:
            continue
        except OSError:
            if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
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
    scratch_path = resolve(scratch)[1]
    filesystem.create_dir(posixpath.dirname(path), recursive=True)
    filesystem.create_dir(scratch_path, recursive=True)
    temporary = posixpath.join(scratch_path, uuid.uuid4().hex)
    if isinstance(filesystem, pafs.LocalFileSystem):
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    else:
        _upload(filesystem, temporary, data)
        filesystem.move(temporary, path)


def _upload(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    # One write of a complete buffer: closing a stream after half of the data would publish that half.
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _list_below(folder: str) -> list[str]:
    filesystem, base = resolve(folder)
    head, query = split_query(folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        relative = _local_files(base)
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        relative = [posixpath.relpath(i.path, base) for i in infos if i.type == pafs.FileType.File]
    visible = [path for path in relative if not any(part.startswith((".", "_")) for part in path.split("/"))]
    return [f"{head.rstrip('/')}/{path}{query}" for path in visible]


def _local_files(base: str) -> list[str]:
    """Regular files below a folder, relative to it. A folder that links lead to again is listed once: Arrow
    would follow links in circles.
    """
    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(base, followlinks=True, onerror=_unless_missing):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        paths = [os.path.join(folder, name) for name in names]
        found += [os.path.relpath(path, base) for path in paths if os.path.isfile(path)]
    return found


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _fixed_folder(pattern: str) -> str:
    """The folder above the first wildcard."""
    head, query = split_query(pattern)
    first = _WILDCARD.search(head)
    return posixpath.dirname(head[: first.start()] if first else head) + query


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**/` crosses folders, `[...]` is a set of characters."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(p if p.startswith("[") and p.endswith("]") else special.get(p, re.escape(p)) for p in parts)
    )


def split_query(uri: str) -> tuple[str, str]:
    """`?key=value` is a query only on object-store URIs, where it carries connection options."""
    if scheme_of(uri) in _ARROW_SCHEMES and "?" in uri and "=" in uri.rpartition("?")[2]:
        head, _, query = uri.rpartition("?")
        return head, f"?{query}"
    return uri, ""


def _arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    head, query = split_query(uri)
    scheme, _, rest = head.partition("://")
    if scheme.lower() == "file":
        return _local(), pafs.FileSystem.from_uri(uri)[1]
    bucket, _, key = rest.partition("/")
    # Only the bucket goes through the URI parser: keys may hold spaces, '#' or '%'.
    filesystem, base = _bucket_filesystem(f"{scheme}://{bucket}{query}")
    return filesystem, posixpath.join(base, key.rstrip("/")) if base.strip("/") else f"/{key.rstrip('/')}"


@lru_cache(maxsize=32)
def _bucket_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(uri)


@lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


@lru_cache(maxsize=8)
def _fsspec_filesystem(scheme: str) -> pafs.FileSystem:
    import fsspec  # type: ignore[import-untyped]

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))


def _fsspec_path(scheme: str, uri: str) -> str:
    import fsspec

    protocol: Any = fsspec.get_filesystem_class(scheme)
    return str(protocol._strip_protocol(uri))
