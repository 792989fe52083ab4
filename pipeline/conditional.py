"""Writes that happen only where nobody else has written: what keeps two drivers of one output apart.

An object store makes an object only if it is absent (`If-None-Match: *`), and replaces only the version that
was read (`If-Match`), however late the request arrives. Arrow's filesystems cannot ask for that, obstore can.
On other filesystems this looks first and writes then: enough where a lock keeps others out (a local disk),
with a gap of one request where there is none (hdfs, fsspec).
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store, from_url

from pipeline import storage
from pipeline.errors import public

WRITE_TIMEOUT = "600s"  # of a whole file of `data`, over a slow line


class ConflictError(Exception):
    """Somebody else has written this object."""


def read(uri: str) -> tuple[bytes, str] | None:
    """Content and version of an object, None where there is none."""
    store, key = _store(uri)
    try:
        if store is None:
            content = storage.read_bytes(uri)
            return content, _digest(content)
        with _as_os_error(uri):
            found = obstore.get(store, key)
            return bytes(found.bytes()), str(found.meta["e_tag"])
    except FileNotFoundError:
        return None


def write(uri: str, data: bytes | pa.Buffer, scratch: str, version: str | None = None) -> str:
    """Make an object that is not there, or replace this version of it; returns its new version.

    `scratch`: see `storage.write_atomically`. Raises ConflictError, with nothing written, where there is
    another; OSError for what else goes wrong.
    """
    store, key = _store(uri)
    if store is None:
        found = read(uri)
        if (found and found[1]) != version:
            raise ConflictError(uri)
        storage.write_atomically(uri, data, scratch)
        return _digest(data)
    try:
        with _as_os_error(uri):
            condition: Any = "create" if version is None else {"e_tag": version}
            put = obstore.put(store, key, bytes(data), mode=condition, use_multipart=False)
            return str(put["e_tag"])
    except (AlreadyExistsError, PreconditionError):
        found = read(uri)
        if found is None or found[0] != bytes(data):
            raise ConflictError(uri) from None
        return found[1]  # it is ours: a request that was repeated had arrived the first time


def _digest(content: bytes | pa.Buffer) -> str:
    return hashlib.blake2b(content).hexdigest()


@contextmanager
def _as_os_error(uri: str) -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise FileNotFoundError(public(uri)) from error
    except (AlreadyExistsError, PreconditionError):
        raise
    except BaseError as error:
        raise OSError(f"{public(uri)}: {public(str(error))[:500]}") from None


def _store(uri: str) -> tuple[Any, str]:
    """The object store of a URI, None where it is none, and the object's name in it."""
    if storage.scheme_of(uri) not in ("s3", "gs", "gcs", "abfs", "abfss"):
        return None, ""
    head, query = storage.split_query(uri)
    scheme, _, rest = head.partition("://")
    bucket, _, key = rest.partition("/")
    return _open(f"{scheme.lower().replace('gcs', 'gs')}://{bucket}", query), key


@lru_cache(maxsize=8)
def _open(root: str, query: str) -> Any:
    """A store by what Arrow too reads from a URI's login and query, and from the environment."""
    given = dict(parse_qsl(query.lstrip("?")))
    plain = given.get("scheme") == "http"
    client: Any = {"timeout": WRITE_TIMEOUT, "allow_http": plain}
    if not root.startswith("s3://"):
        return from_url(root, client_options=client)
    login, _, bucket = root.removeprefix("s3://").rpartition("@")
    key, _, secret = login.partition(":")
    endpoint = given.get("endpoint_override")
    config = {
        "access_key_id": key or given.get("access_key"),
        "secret_access_key": secret or given.get("secret_key"),
        "session_token": given.get("session_token"),
        "region": storage.resolve(f"{root}{query}")[0].region,
        "endpoint": endpoint
        and (endpoint if "://" in endpoint else f"http{'' if plain else 's'}://{endpoint}"),
    }
    provider = None
    if not config["access_key_id"] and "AWS_ACCESS_KEY_ID" not in os.environ:
        with suppress(ImportError, ValueError):  # the profiles in ~/.aws, which obstore does not read
            from obstore.auth.boto3 import Boto3CredentialProvider

            provider = Boto3CredentialProvider()
    found: Any = {name: value for name, value in config.items() if value}
    return S3Store(bucket, config=found, client_options=client, credential_provider=provider)
