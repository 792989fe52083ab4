"""A run from beginning to end: check, lock, recover, plan, stream, publish, sum up.

Everything that can be wrong with the manifest, the settings or the output is found before a model is loaded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from clvp import ClvpConfig
from pipeline import storage
from pipeline.checkpoint import Checkpoint, describe_checkpoint, fetch
from pipeline.description import ENGINE, Description, describe, read_description, settle, settle_engine
from pipeline.errors import RunError
from pipeline.extend import Extended, check_extendable
from pipeline.metrics import MetricsLog
from pipeline.output.folder import OutputFolder
from pipeline.output.lock import Check, exclusive
from pipeline.output.publish import drop_parts, forget_failures, past_attempts, publish_rejected, recover
from pipeline.output.publisher import Publisher
from pipeline.progress import Progress, Totals
from pipeline.rows.manifest import Manifest, open_manifest
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, STORED_PAYLOAD, Payload
from pipeline.rows.plan import rejected_rows, select_rows
from pipeline.rows.scan import RowIndex, scan
from pipeline.settings import ExecutionSettings, ModelSettings, ResultSettings, Run, ScoringSettings
from pipeline.stages import Work
from pipeline.stream.cluster import Cluster, connected
from pipeline.stream.retry import reports
from pipeline.stream.stream import rows_per_block

RANKED_CANDIDATES = 16  # of a row that brings its own, as far as the size of blocks goes


@dataclass(frozen=True)
class Summary:
    """What a run has done."""

    output: str
    totals: Totals
    rejected: int  # manifest rows without an id of their own; their errors are not in `totals`
    done_before: int  # rows that the output held already
    failed_before: int
    seconds: float  # of the stream, without planning

    @property
    def tokens_per_second(self) -> float:
        return self.totals.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Recipe:
    """The settings of a run that change its results."""

    payload: Payload
    loading: ModelSettings
    scoring: ScoringSettings
    synthesis: ResultSettings | None = None
    seed: int | None = None

    @property
    def settings(self) -> tuple[Any, ...]:
        return (self.loading, self.scoring) if self.synthesis is None else (self.synthesis,)

    @property
    def num_candidates(self) -> int:
        return RANKED_CANDIDATES if self.synthesis is None else self.synthesis.num_candidates


def synthesize(run: Run) -> Summary:
    """Sample, score and store `run.results.num_candidates` candidates for every row of the manifest.

    Raises ManifestError and RunError before any model is loaded where they can be known by then.
    """
    settings = run.results
    assert isinstance(settings, ResultSettings)
    recipe = Recipe(AUDIO_PAYLOAD, settings.model, settings.scoring, settings, settings.sampling.seed)
    return _run(run, recipe, run.execution)


def rank(run: Run) -> Summary:
    """Score and rank the speech tokens that the manifest brings along (id, text, speech_ids)."""
    return _run(run, Recipe(SPEECH_PAYLOAD, run.results.model, run.results.scoring), run.execution)


def rank_again(run: Run, source: str) -> Summary:
    """Score and rank the candidates that the run in `source` has stored; `run.manifest` is not used.

    Raises RunError when `source` holds no run.
    """
    folder = OutputFolder(storage.absolute(source))
    description = read_description(folder)
    if description is None:
        raise RunError(f"{folder.uri} holds no run: there is no run.json in it")
    sampling = description.get("settings", {}).get("ResultSettings", {}).get("sampling", {})
    recipe = Recipe(STORED_PAYLOAD, run.results.model, run.results.scoring, seed=sampling.get("seed"))
    return _run(replace(run, manifest=(folder.folder("data"),)), recipe, run.execution)


def _run(job: Run, recipe: Recipe, execution: ExecutionSettings) -> Summary:
    output = OutputFolder(storage.absolute(job.output))
    opened = open_manifest(job.manifest, recipe.payload)
    checkpoint = describe_checkpoint(job.model)
    check_model(checkpoint, recipe)
    manifest, index = scan(opened)
    now = describe(recipe.settings, checkpoint, manifest.extra, job.manifest, job.extend)
    extended = check_extendable(job.extend, output, now) if job.extend else None
    with exclusive(output, lambda message: print(message, flush=True)) as check:
        description = settle(output, now)
        if extended is not None:
            description = extended.inherit_engine(output, description)
        return _Session(job, recipe, checkpoint, execution, output, description, check).run(
            manifest, index, extended
        )


@dataclass(frozen=True)
class _Session:
    """One process at work on an output that it holds."""

    job: Run
    recipe: Recipe
    checkpoint: Checkpoint
    execution: ExecutionSettings
    output: OutputFolder
    description: Description  # gets the engine's facts with the first block
    check: Check  # raises when the output is no longer held

    def run(self, manifest: Manifest, index: RowIndex, extended: Extended | None) -> Summary:
        engine = self.description[ENGINE]
        recovered = recover(self.output, None if engine is None else json.dumps(engine, sort_keys=True))
        if self.job.retry_failed and recovered.failed:
            forget_failures(self.output, recovered.parts)
            recovered = recover(self.output)
        selection = select_rows(index, recovered.ids)
        rejected = publish_rejected(self.output, rejected_rows(manifest, index, selection))
        todo = len(selection.todo)
        progress = Progress(todo, self.execution.report_seconds)
        attempts = past_attempts(self.output)
        publisher = Publisher(
            self.output, self.execution.publish_bytes, recovered.parts, attempts, self.check
        )
        progress.note(
            f"{len(index.ids):,} rows in the manifest: {len(selection.done):,} done before, "
            f"{rejected:,} rejected, {todo:,} to do"
        )
        with publisher:
            if todo:
                with connected(self.execution.worker_logs):
                    self._stream(manifest, index, selection.todo, extended, progress, publisher)
        finished = progress.totals.rows + progress.totals.failed
        if finished != todo:
            raise RunError(
                f"{todo - finished} of {todo} rows came to no end; the same command continues with them"
            )
        drop_parts(self.output)
        return Summary(
            self.output.uri, progress.totals, rejected, recovered.done, recovered.failed, progress.elapsed
        )

    def _stream(
        self,
        manifest: Manifest,
        index: RowIndex,
        todo: Any,
        extended: Extended | None,
        progress: Progress,
        publisher: Publisher,
    ) -> None:
        cluster = Cluster.current(self.execution.gpus)
        size = rows_per_block(self.execution, self.recipe.num_candidates, cluster, len(todo))
        work = Work(
            manifest,
            self.checkpoint,
            self.output,
            self.execution,
            self.recipe.loading,
            self.recipe.scoring,
            self.recipe.synthesis,
            self.recipe.seed,
            self.description[ENGINE],
            extended.open() if extended else None,
        )
        metrics = MetricsLog(self.output.uri, self.execution.report_seconds)
        progress.note(f"blocks of up to {size} rows, on {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs")
        with progress, _last_sample(metrics, progress, cluster):
            for timings, report in reports(work, cluster, index, todo, size, progress.note):
                self.check()
                if report["engine"] is not None:
                    settle_engine(self.output, self.description, json.loads(report["engine"]))
                publisher.add(report["part"], report["num_bytes"])
                progress.add(report, timings)
                metrics.add(progress.sample(cluster.gpus))


@contextmanager
def _last_sample(metrics: MetricsLog, progress: Progress, cluster: Cluster) -> Iterator[None]:
    """Records where the run stood when it ended, however it ended."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what ended the run matters more
            metrics.add(progress.sample(cluster.gpus), last=True)
        raise
    metrics.add(progress.sample(cluster.gpus), last=True)


def check_model(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise RunError when the model is unreadable, or has fewer positions than the longest candidate."""
    try:
        config = ClvpConfig.from_pretrained(fetch(checkpoint))
    except (OSError, ValueError) as error:
        raise RunError(f"the model {checkpoint.location} cannot be used: {error}") from error
    if recipe.synthesis is not None:
        sampling = recipe.synthesis.sampling
        positions = config.decoder_config.max_position_embeddings - (sampling.mel_positions == "skip_one")
        if sampling.max_new_tokens > positions:
            raise RunError(
                f"max_new_tokens={sampling.max_new_tokens} exceeds the model's {positions} positions"
            )
