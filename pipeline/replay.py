"""One row of a finished output, sampled again from the run's own description, here and now.

A replay takes the settings from `run.json`, the text and the clips from the manifest, and the model from
where the run had it. Tokens that come out identical show that nothing they depend on has changed; where they
part, the facts that differ are named.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clvp.quality import NAMED
from clvp.sampling import EngineConfig
from pipeline import storage
from pipeline.checkpoint import describe_checkpoint
from pipeline.description import Description, describe, differences, load_sampled
from pipeline.errors import RunError
from pipeline.inputs import check_measures
from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import EXTRA_PREFIX
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan
from pipeline.settings import ExecutionSettings, ResultSettings


@dataclass(frozen=True)
class ReplayedCandidate:
    """Tokens of one candidate as the output holds them and as they came out now."""

    candidate: int
    stored: list[int]
    sampled: list[int]

    @property
    def parts_at(self) -> int | None:
        """The first place where they differ; None where they are identical."""
        pairs = enumerate(zip_longest(self.stored, self.sampled))
        return next((i for i, (stored, sampled) in pairs if stored != sampled), None)


@dataclass(frozen=True)
class Replay:
    """A row's candidates by index, and every fact that is not as it was."""

    row_id: str
    candidates: list[ReplayedCandidate]
    differing: list[str]

    @property
    def identical(self) -> bool:
        return all(candidate.parts_at is None for candidate in self.candidates)


class Replayer:
    """Replays rows of one output; models are loaded once. `manifest`, `model` and `voices` say where they lie
    now; by default where the run had them. `audio_hosts` and `recognizer` are as in a run; `measures` names
    those of the user's own that the run was measured by: run.json alone is not trusted to name code.

    Raises RunError when the output holds no run that sampled, or its manifest or model cannot be used.
    """

    def __init__(
        self,
        output: str,
        manifest: Sequence[str] = (),
        model: str | None = None,
        torch_threads: int | None = None,
        audio_hosts: Sequence[str] = (),
        recognizer: str | None = None,
        measures: Sequence[str] = (),
        voices: str | None = None,
    ) -> None:
        folder = OutputFolder(storage.absolute(output))
        before, sampled = load_sampled(folder, manifest, model, voices)
        self.before, results = before, sampled.results
        assert isinstance(results, ResultSettings)
        for name in results.measuring.measure:
            if name not in (*NAMED, *measures):
                raise RunError(f"run.json names the code {name}: name it too (--measure) if you trust it")
        run = replace(
            sampled,
            execution=ExecutionSettings(
                engine=_engine(before),
                torch_threads=torch_threads,
                audio_hosts=tuple(audio_hosts),
                recognizer=recognizer,
            ),
        )
        check_measures(run)
        checkpoint = describe_checkpoint(run.model)
        opened, self.index = scan(open_manifest(run.manifest, AUDIO_PAYLOAD, reading=run.reading))

        from pipeline.stages import Chain, Work, computed_columns, output_columns, stages_of  # with DuckDB

        # Loose files of the output stay as they are.
        quiet = replace(results, audio=replace(results.audio, audio_files=False))
        self.work = Work(replace(run, results=quiet), opened, checkpoint, folder, quiet.sampling.seed)
        self.now = describe(run, checkpoint, output_columns(run, opened))
        stages = stages_of(self.work.run)
        self._computed = [column.name for column in computed_columns(stages)]
        self._chain = cache(lambda: Chain(stages[:-1], self.work))  # loads the models

    def replay(self, row_id: str, wanted: Sequence[int] = ()) -> Replay:
        """Sample the `wanted` candidates of a row again (none: all that are stored) and compare.

        Raises RunError when the output has no such row or candidate, or the row fails now.
        """
        row = _stored_row(self.work.output, row_id)
        stored = {c["candidate"]: c["speech_ids"] for c in row["candidates"]}
        if missing := [index for index in wanted if index not in stored]:
            raise RunError(f"row {row_id!r} has no candidate {missing[0]}; stored are {sorted(stored)}")
        indices = sorted(wanted or stored)
        found = self._run(row_id, indices)
        sampled = {c["candidate"]: c["speech_ids"] for c in found["candidates"]}
        now = replace(self.now, engine=json.loads(found["engine"]))
        compared = ["text", "voice_key"]
        if len(indices) == len(stored):  # what stages have computed is of all candidates
            compared += self._computed
        differing = differences(self.before, now)
        for name in compared:
            there, here = row[name], found.get(EXTRA_PREFIX + name, found.get(name))
            if there != here:
                differing.append(f"{name}: {there!r:.80} there, {here!r:.80} here")
        return Replay(row_id, [ReplayedCandidate(i, stored[i], sampled[i]) for i in indices], differing)

    def _run(self, row_id: str, candidates: Sequence[int]) -> dict[str, Any]:
        """The row as it would be written, with these candidates."""
        from pipeline.stages.choose import Chooser
        from pipeline.stages.sample import Sampler  # with torch: seconds

        places = np.flatnonzero(pc.equal(self.index.ids, row_id).fill_null(False).to_numpy())
        if not len(places):
            names = ", ".join(dict.fromkeys(file.uri for file in self.work.manifest.files))
            raise RunError(f"row {row_id!r} is not in the manifest any more: {names}")
        chain = self._chain()
        for _, stage in chain.steps:
            if isinstance(stage, Sampler):
                stage.candidates = candidates
            if isinstance(stage, Chooser):
                stage.refuses = False  # the row is stored; the candidate that was good may not be wanted
        row = chain(make_plan(self.index, places[:1], 1).slices_of(0)).to_pylist()[0]
        if (error := row["error"]) is not None:
            raise RunError("the row fails now, in stage {stage}: {type}: {message}".format_map(error))
        return row


def _engine(description: Description) -> EngineConfig:
    """What the tokens depend on: the kind of products on a CPU, on a GPU their width, the number of lanes."""
    facts = description.engine or {}
    if "cpu" in str(facts.get("device", "cpu")):
        return EngineConfig(products=facts.get("products"))
    return EngineConfig(lanes=facts.get("quantum"))


def _stored_row(output: OutputFolder, row_id: str) -> dict[str, Any]:
    for table in output.matching("data", [row_id]):
        return table.to_pylist()[0]
    for table in output.matching("errors", [row_id]):
        reason = "stage {stage}: {type}: {message}".format_map(table.to_pylist()[0])
        raise RunError(f"row {row_id!r} has failed in {reason}")
    raise RunError(f"{output.uri} has no row {row_id!r}, neither in data nor in errors")
