"""`OUTPUT/run.json`: what a run was told, and all that its results depend on.

The *fingerprint* decides whether a run may continue an output: the version of this package, the settings that
change results, the digests of the model's files, the types of the manifest's columns, and the facts of the
engine that drew the tokens, which are added once the first block is there. `about` is for people: where the
manifest and the model lie, and when it began. How a run is executed is not in it.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.checkpoint import Checkpoint
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import REJECTED_FILE, RETRIED

SCHEMA_VERSION = 2
NAME = "run.json"
ENGINE = "engine"
PACKAGE = "clvp"

Description = dict[str, Any]


def describe(
    settings: Sequence[Any],
    checkpoint: Checkpoint,
    columns: pa.Schema,
    manifest: Sequence[str],
    extended: str | None = None,
) -> Description:
    """The description of a run about to begin. `settings` are frozen dataclasses, `columns` pass through."""
    description = {
        "schema_version": SCHEMA_VERSION,
        "package_version": importlib.metadata.version(PACKAGE),
        "settings": {type(part).__name__: dataclasses.asdict(part) for part in settings},
        "model_files": dict(checkpoint.files),
        "columns": {field.name: str(field.type) for field in columns},
        ENGINE: None,
        "about": {
            "manifest": [public(storage.absolute(uri)) for uri in manifest],
            "model": public(checkpoint.location),
            "extended": extended,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "ray": importlib.metadata.version("ray"),
        },
    }
    return json.loads(json.dumps(description))


def read_description(output: OutputFolder) -> Description | None:
    """What `run.json` holds, None where there is none. Raises RunError when it is damaged."""
    uri = output.file("", NAME)
    if not storage.exists(uri):
        return None
    try:
        value = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise RunError(f"{uri} is damaged ({error}): restore it, or use another output") from error
    if not isinstance(value, dict):
        raise RunError(f"{uri} is damaged (no JSON object): restore it, or use another output")
    return value


def settle(output: OutputFolder, now: Description) -> Description:
    """Write the description of a new output, or check that this run continues the one that is there.

    A run that has ended before it stored a row, say since its model was broken, binds nobody.

    Raises RunError naming every field of the fingerprint that differs.
    """
    before = read_description(output)
    differing = differences(before, now) if before is not None else []
    if before is None or (differing and not _holds_rows(output)):
        write(output, now)
        return now
    if differing:
        raise RunError(
            f"{output.uri} was made with other settings ({'; '.join(differing)}): "
            "use them again, or another output"
        )
    return before


def _holds_rows(output: OutputFolder) -> bool:
    """Rejected rows do not count: they follow from the manifest alone, and every run writes them anew."""
    files = [
        name for folder in ("data", "errors", "_parts", RETRIED) for name in output.parquet_files(folder)
    ]
    return any(name != REJECTED_FILE for name in files)


def settle_engine(output: OutputFolder, description: Description, facts: Mapping[str, Any]) -> None:
    """Record the engine's facts with the first block. Raises RunError for a block of another engine."""
    if description[ENGINE] is None:
        description[ENGINE] = dict(facts)
        write(output, description)
        return
    differing = sorted(_differences(description[ENGINE], dict(facts), ENGINE))
    if differing:
        raise RunError(
            f"the samplers of this run are not alike ({'; '.join(differing)}), so their tokens may differ: "
            "use one kind of device for an output. What was sampled alike is kept"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields of the fingerprint that differ, as text. An engine not known yet differs from none."""
    left, right = ({k: v for k, v in d.items() if k != "about"} for d in (before, now))
    if left.get(ENGINE) is None or right.get(ENGINE) is None:
        left.pop(ENGINE, None)
        right.pop(ENGINE, None)
    return sorted(_differences(left, right))


def public(uri: str) -> str:
    """Without the query of an object store's URI, which may hold credentials."""
    return uri if storage.is_local(uri) else uri.partition("?")[0]


def write(output: OutputFolder, description: Description) -> None:
    output.write("", NAME, json.dumps(description, indent=2).encode())


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path}: {_short(before)} there, {_short(now)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
