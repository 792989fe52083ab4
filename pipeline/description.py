"""`OUTPUT/run.json`: what a run was told, and all that its results depend on.

The *fingerprint* decides whether a run may continue an output: all but `about`, which is for people and says
where the manifest and the model lie, and when it began. The facts of the engine that drew the tokens are
added once the first block is there. How a run is executed is not in it. Loads neither torch nor Ray.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, get_type_hints

import pyarrow as pa
from pydantic_core import from_json as parsed

from clvp.checkpoint import RANDOM_VOICES_FILE
from clvp.fields import Checked
from pipeline import storage
from pipeline.checkpoint import SOUND_FILES, Checkpoint
from pipeline.errors import RunError, shown
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import REJECTED_FILE, RETRIED
from pipeline.output.retype import retype, without_values
from pipeline.rows.manifest import Reading
from pipeline.settings import RankingSettings, ResultSettings, Run

SCHEMA_VERSION = 4
NAME = "run.json"
ADDED_FACTS = ("waveform", "measures")  # of an engine's: of what comes after its tokens


@dataclass(frozen=True)
class About(Checked):
    """For people; a run that differs here may continue the output."""

    manifest: tuple[str, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)  # how the manifest is understood
    model: str = ""
    extended: str | None = None
    began: str = ""
    python: str = ""
    ray: str = ""


@dataclass(frozen=True)
class Description(Checked):
    """The fields of run.json, as they are named and nested there."""

    schema_version: int
    package_version: str
    job: str  # "synthesize" or "rank"
    settings: Mapping[str, Any]  # ResultSettings or RankingSettings, field by field
    model_files: Mapping[str, str]  # sha256 by name
    columns: Mapping[str, str]  # Arrow types by name: the manifest's that pass through, and those of stages
    engine: Mapping[str, Any] | None = None  # facts
    about: About = field(default_factory=About)

    @property
    def results(self) -> ResultSettings | RankingSettings:
        """Raises RunError for settings that this version does not know, or that no run can have."""
        try:
            return from_json(ResultSettings if self.job == "synthesize" else RankingSettings, self.settings)
        except ValueError as error:
            raise RunError(f"the settings in run.json are damaged: {error}") from error


def describe(run: Run, checkpoint: Checkpoint, columns: pa.Schema) -> Description:
    """The description of a run about to begin. `columns` are those of the output beside its own."""
    settings = json.loads(json.dumps(dataclasses.asdict(run.results)))
    voices = run.reading.voices and storage.public(storage.absolute(run.reading.voices))
    sound = settings.get("audio", {}).get("audio", "none") != "none"
    unused = {*(() if sound else SOUND_FILES), *(() if run.reading.voiced else (RANDOM_VOICES_FILE,))}
    return Description(
        SCHEMA_VERSION,
        importlib.metadata.version("clvp"),
        "synthesize" if "sampling" in settings else "rank",
        settings,
        {name: digest for name, digest in checkpoint.files.items() if name not in unused},
        {column.name: str(column.type) for column in columns},
        about=About(
            tuple(storage.public(storage.absolute(uri)) for uri in run.manifest),
            dataclasses.asdict(replace(run.reading, voices=voices)),
            storage.public(checkpoint.location),
            run.extend and storage.public(run.extend),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            platform.python_version(),
            importlib.metadata.version("ray"),
        ),
    )


def load(output: OutputFolder) -> Description | None:
    """What `run.json` holds, None where there is none. Raises RunError that says why it cannot be used."""
    uri = output.file("", NAME)
    if not storage.exists(uri):
        return None
    try:
        value = parsed(storage.read_bytes(uri))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{uri} has schema version {version!r}, and this version reads {SCHEMA_VERSION}: "
                "go on with the version that made it, or use another output"
            )
        return from_json(Description, value)
    except (ValueError, TypeError) as error:
        raise RunError(f"{uri} is damaged ({error}): restore it, or use another output") from error


def save(output: OutputFolder, description: Description) -> Description:
    output.write("", NAME, json.dumps(dataclasses.asdict(description), indent=2).encode())
    return description


def settle(output: OutputFolder, now: Description) -> Description:
    """Write the description of a new output, or check that this run continues the one that is there.

    A run that has ended before it stored a row, say since its model was broken, binds nobody.

    Raises RunError naming every field of the fingerprint that differs.
    """
    return _continued(output, load(output), now) or save(output, now)


def retyped(output: OutputFolder, before: Description, now: Description) -> Description:
    """The description of an output, with the types of now for columns in which no stored row has a value."""
    both = before.columns.keys() & now.columns.keys()
    free = without_values(output, {name for name in both if before.columns[name] != now.columns[name]})
    return replace(before, columns={**before.columns, **{name: now.columns[name] for name in free}})


def retype_empty(output: OutputFolder, now: Description, columns: pa.Schema) -> None:
    """Let columns of the output without a value have the types that they have now."""
    before = load(output)
    if before is not None and (after := retyped(output, before, now)) != before:
        retype(output, pa.schema([f for f in columns if after.columns[f.name] != before.columns.get(f.name)]))
        save(output, after)


def check_continues(output: OutputFolder, run: Run, checkpoint: Checkpoint) -> None:
    """Raise RunError where `settle` would, for all but the columns, which take longer to know."""
    before, now = load(output), describe(run, checkpoint, pa.schema([]))
    _continued(output, before, now if before is None else replace(now, columns=before.columns))


def _continued(output: OutputFolder, before: Description | None, now: Description) -> Description | None:
    """The description that holds, None where a new run begins."""
    differing = differences(before, now) if before is not None else []
    if before is None and _holds_rows(output):
        raise RunError(
            f"{output.uri} holds Parquet files but no {NAME}, which says what made them: restore it, or use "
            "another output"
        )
    if before is not None and differing and _holds_rows(output):
        if new := sorted(now.columns.keys() - before.columns.keys()):
            raise RunError(
                f"the manifest has new columns ({', '.join(map(shown, new))}), which the rows in "
                f"{output.uri} lack: leave them out, or use another output"
            )
        raise RunError(
            f"{output.uri} was made with other settings ({'; '.join(differing)}): "
            "use them again, or another output"
        )
    return None if differing else before


def _holds_rows(output: OutputFolder) -> bool:
    """Rejected rows do not count: they follow from the manifest alone, and every run writes them anew."""
    folders = ("data", "errors", "_parts", RETRIED)
    return any(name != REJECTED_FILE for folder in folders for name in output.parquet_files(folder))


def settle_engine(output: OutputFolder, description: Description, facts: Mapping[str, Any]) -> Description:
    """Record the engine's facts with the first block. Raises RunError for a block of another engine.

    What is known of an earlier run that this one extends lacks the facts of what comes after the tokens.
    """
    known = description.engine
    if known is None or (
        not known.keys() & {*ADDED_FACTS} and known == {name: facts.get(name) for name in known}
    ):
        return save(output, replace(description, engine=dict(facts)))
    if differing := differing_fields(known, facts, "engine"):
        raise RunError(
            f"the samplers of this run are not alike ({'; '.join(differing)}), so their tokens may differ: "
            "use one kind of device for an output. What was sampled alike is kept"
        )
    return description


def differences(before: Description, now: Description) -> list[str]:
    """The fields of the fingerprint that differ, as text. An engine not known yet differs from none."""
    if before.engine is None or now.engine is None:
        before, now = replace(before, engine=None), replace(now, engine=None)
    left, right = (dataclasses.asdict(replace(d, about=About())) for d in (before, now))
    return differing_fields(left, right)


def differing_fields(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs in two nested objects, as text: the path of each field with both values."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [f"{path}: {shown(before)} there, {shown(now)} here"] if before != now else []
    at = {key: f"{path}.{key}" if path else key for key in before.keys() | now.keys()}
    return sorted(text for key in at for text in differing_fields(before.get(key), now.get(key), at[key]))


def check_alike(
    expected: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    path: str,
    problem: str,
    same: str = "kind of device and the same versions",
) -> None:
    """Raise RunError, `problem` with what differs, unless facts are those `expected` (None: any)."""
    if expected is not None and (differing := differing_fields(expected, facts, path)):
        raise RunError(f"{problem} ({'; '.join(differing)}): use the same {same}, or another output")


def load_sampled(
    output: OutputFolder, manifest: Sequence[str] = (), model: str | None = None, voices: str | None = None
) -> tuple[Description, Run]:
    """The description of a run that sampled, and the run, with `ResultSettings`; manifest, voices and model
    are where they are given, or where the run had them.

    Raises RunError when `output` holds no such run.
    """
    before = load(output)
    if before is None or not isinstance(before.results, ResultSettings):
        raise RunError(f"{output.uri} holds no run that sampled: no run.json with its settings")
    reading = Reading(**before.about.reading)
    if reading.voices:
        reading = replace(reading, voices=voices or trusted(reading.voices, output))
    lies = tuple(manifest) or tuple(trusted(uri, output) for uri in before.about.manifest)
    model = model or trusted(before.about.model, output)
    return before, Run(lies, output.uri, model, before.results, reading=reading)


def trusted(uri: str, output: OutputFolder) -> str:
    """A path that run.json names, or a URI on the output's own host or bucket, with its options.

    Raises RunError for others: a request to wherever somebody's run.json says may carry credentials.
    """
    found = uri if storage.is_local(uri) else storage.placed(uri, output.uri)
    if found is None:
        raise RunError(f"run.json names {uri}, on another host or bucket: name it yourself if you trust it")
    return found


def from_json(kind: Any, value: Any) -> Any:
    """A dataclass of checked fields from what `dataclasses.asdict` and JSON have made of it.

    Raises RunError for unknown fields, TypeError for missing ones, ValueError for one of another type.
    """
    if not isinstance(kind, type) or not is_dataclass(kind) or not isinstance(value, dict):
        return value
    hints = get_type_hints(kind)
    if unknown := value.keys() - hints.keys():
        raise RunError(f"run.json has settings that this version does not know: {', '.join(sorted(unknown))}")
    return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
