"""One row of a finished output, sampled again from the run's own description, here and now.

A replay takes the settings from `run.json`, the text and the clips from the manifest, and the model from
where the run had it. Tokens that come out identical show that nothing they depend on has changed; where they
part, the facts that differ are named.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clvp.sampling import EngineConfig
from pipeline import storage
from pipeline.checkpoint import describe_checkpoint, fetch
from pipeline.description import ENGINE, Description, describe, differences, read_description
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.rows.manifest import open_manifest
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan
from pipeline.rows.scan import scan
from pipeline.settings import ExecutionSettings, ResultSettings
from pipeline.stages import Work, preparation
from pipeline.stages.sample import Sampler


@dataclass(frozen=True)
class ReplayedCandidate:
    """Tokens of one candidate as the output holds them and as they came out now."""

    candidate: int
    stored: list[int]
    sampled: list[int]

    @property
    def parts_at(self) -> int | None:
        """The first place where they differ; None where they are identical."""
        if self.stored == self.sampled:
            return None
        pairs = zip(self.stored, self.sampled, strict=False)
        shorter = min(len(self.stored), len(self.sampled))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


@dataclass(frozen=True)
class Replay:
    """A row's candidates by index, and every fact that is not as it was."""

    row_id: str
    candidates: list[ReplayedCandidate]
    differing: list[str]

    @property
    def identical(self) -> bool:
        return all(candidate.parts_at is None for candidate in self.candidates)


@dataclass(frozen=True)
class Sources:
    """Where the manifest and the model lie now; by default where the run had them."""

    manifest: tuple[str, ...] = ()
    model: str | None = None


class Replayer:
    """Replays rows of one output; the model is loaded once.

    Raises RunError when the output holds no run that sampled, or its manifest or model cannot be used.
    """

    def __init__(self, output: str, sources: Sources = Sources(), torch_threads: int | None = None) -> None:
        self.output = OutputFolder(storage.absolute(output))
        before = read_description(self.output)
        if before is None or "ResultSettings" not in before.get("settings", {}):
            raise RunError(f"{self.output.uri} holds no run that sampled: no run.json with its settings")
        self.before = before
        self.settings = from_json(ResultSettings, before["settings"]["ResultSettings"])
        self.execution = ExecutionSettings(engine=_engine(before), torch_threads=torch_threads)
        about = before.get("about", {})
        self.checkpoint = describe_checkpoint(sources.model or about["model"])
        opened = open_manifest(sources.manifest or tuple(about["manifest"]), AUDIO_PAYLOAD)
        self.manifest, self.index = scan(opened)
        self._sampler: Sampler | None = None

    def replay(self, row_id: str, wanted: Sequence[int] = ()) -> Replay:
        """Sample the `wanted` candidates of a row again (none: all that are stored) and compare.

        Raises RunError when the output has no such row or candidate, or the row fails now.
        """
        row = _stored_row(self.output, row_id)
        stored = {c["candidate"]: c["speech_ids"] for c in row["candidates"]}
        missing = [index for index in wanted if index not in stored]
        if missing:
            raise RunError(f"row {row_id!r} has no candidate {missing[0]}; stored are {sorted(stored)}")
        indices = sorted(wanted or stored)
        block = self._prepared(row_id)
        sampler = self._loaded()
        sampler.candidates = indices
        result = sampler(block)
        _raise_if_failed(result)
        sampled = {c["candidate"]: c["speech_ids"] for c in result["speech_ids"][0].as_py()}
        now = describe((self.settings,), self.checkpoint, self.manifest.extra, ())
        differing = differences(self.before, now | {ENGINE: json.loads(sampler.engine)})
        for name in ("text", "voice_key"):
            there, here = row[name], block[name][0].as_py()
            if there != here:
                differing.append(f"{name}: {there!r:.80} there, {here!r:.80} here")
        return Replay(row_id, [ReplayedCandidate(i, stored[i], sampled[i]) for i in indices], differing)

    def _prepared(self, row_id: str) -> pa.Table:
        """The row as the sampler takes it, read from the manifest and the clips."""
        places = np.flatnonzero(pc.equal(self.index.ids, row_id).fill_null(False).to_numpy())
        if not len(places):
            names = ", ".join(file.uri for file in self.manifest.files)
            raise RunError(f"row {row_id!r} is not in the manifest any more: {names}")
        work = Work(
            self.manifest,
            self.checkpoint,
            self.output,
            self.execution,
            self.settings.model,
            self.settings.scoring,
            self.settings,
            self.settings.sampling.seed,
        )
        block = preparation(work)(make_plan(self.index, places[:1], 1).block(0))
        _raise_if_failed(block)
        return block

    def _loaded(self) -> Sampler:
        if self._sampler is None:
            self._sampler = Sampler(
                fetch(self.checkpoint),
                self.settings,
                self.execution.engine,
                torch_threads=self.execution.torch_threads,
            )
        return self._sampler


def from_json(kind: Any, value: Any) -> Any:
    """A frozen dataclass from what `dataclasses.asdict` and JSON have made of it."""
    if not isinstance(kind, type) or not is_dataclass(kind):
        return tuple(value) if isinstance(value, list) else value
    hints = get_type_hints(kind)
    unknown = value.keys() - hints.keys()
    if unknown:
        raise RunError(f"run.json has settings that this version does not know: {', '.join(sorted(unknown))}")
    given = [field.name for field in fields(kind) if field.name in value]
    return kind(**{name: from_json(hints[name], value[name]) for name in given})


def _engine(description: Description) -> EngineConfig:
    """On a GPU the width of all products is the number of lanes, and the tokens depend on it."""
    facts: Mapping[str, Any] = description.get(ENGINE) or {}
    on_gpu = "cpu" not in str(facts.get("device", "cpu"))
    return EngineConfig(lanes=facts["quantum"] if on_gpu else None)


def _stored_row(output: OutputFolder, row_id: str) -> dict[str, Any]:
    for table in _matching(output, "data", row_id):
        return table.to_pylist()[0]
    for table in _matching(output, "errors", row_id):
        error = table.to_pylist()[0]
        raise RunError(
            f"row {row_id!r} has failed in stage {error['stage']}: {error['type']}: {error['message']}"
        )
    raise RunError(f"{output.uri} has no row {row_id!r}, neither in data nor in errors")


def _matching(output: OutputFolder, folder: str, row_id: str) -> Iterator[pa.Table]:
    """The row in each row group that has it."""
    for name in output.parquet_files(folder):
        source, path = storage.resolve(output.file(folder, name))
        with source.open_input_file(path) as stream:
            parquet = pq.ParquetFile(stream)
            for group in range(parquet.num_row_groups):
                ids = parquet.read_row_group(group, columns=["id"])["id"]
                if pc.any(pc.equal(ids, row_id)).as_py():
                    rows = parquet.read_row_group(group)
                    yield rows.filter(pc.equal(rows["id"], row_id))


def _raise_if_failed(block: pa.Table) -> None:
    error = block["error"][0].as_py()
    if error is not None:
        raise RunError(f"the row fails now, in stage {error['stage']}: {error['type']}: {error['message']}")
