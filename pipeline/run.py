"""A run from beginning to end: check, plan, stream, publish, sum up.

Everything that can be wrong with the manifest, the settings or the output is found before a model is loaded.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import Dataset

from clvp import ClvpConfig
from pipeline import filesystem, graph
from pipeline.cluster import Cluster, block_reports, connect
from pipeline.errors import RunError
from pipeline.manifest import Manifest, open_manifest
from pipeline.metrics import MetricsLog
from pipeline.output import OutputFolder
from pipeline.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, Payload
from pipeline.plan import make_plan, rejected_rows, select_rows
from pipeline.progress import Progress, Totals
from pipeline.publish import publish, publish_rejected, recover
from pipeline.scan import scan
from pipeline.settings import ExecutionSettings, ModelSettings, ResultSettings, ScoringSettings

SCHEMA_VERSION = 1
DESCRIPTION = "run.json"
RANKED_CANDIDATES = 16  # of a row that brings its own, as far as the size of blocks goes


@dataclass(frozen=True)
class Job:
    """What a run reads and writes: paths or URIs, and a checkpoint folder or hub id."""

    manifest: tuple[str, ...]
    output: str
    model: str


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


def synthesize(job: Job, settings: ResultSettings, execution: ExecutionSettings | None = None) -> Summary:
    """Sample, score and store `settings.num_candidates` candidates for every row of a manifest.

    Raises ManifestError and RunError before any model is loaded where they can be known by then.
    """
    execution = execution or ExecutionSettings()
    config = _read_config(job.model)
    positions = config.decoder_config.max_position_embeddings
    positions -= settings.sampling.mel_positions == "skip_one"
    if settings.sampling.max_new_tokens > positions:
        raise RunError(
            f"max_new_tokens={settings.sampling.max_new_tokens} exceeds the model's {positions} positions"
        )

    return _run(
        job,
        AUDIO_PAYLOAD,
        settings,
        execution,
        settings.num_candidates,
        lambda work: graph.synthesis_graph(work, settings),
    )


def rank(
    job: Job,
    loading: ModelSettings,
    scoring: ScoringSettings,
    execution: ExecutionSettings | None = None,
) -> Summary:
    """Score and rank the speech tokens that a manifest brings along (id, text, speech_ids)."""
    execution = execution or ExecutionSettings()
    _read_config(job.model)

    return _run(
        job,
        SPEECH_PAYLOAD,
        (loading, scoring),
        execution,
        RANKED_CANDIDATES,
        lambda work: graph.ranking_graph(work, loading, scoring),
    )


def _run(
    job: Job,
    payload: Payload,
    settings: Any,
    execution: ExecutionSettings,
    num_candidates: int,
    build: Callable[[graph.Work], Dataset],
) -> Summary:
    output = OutputFolder(filesystem.absolute(job.output))
    manifest, index = scan(open_manifest(job.manifest, payload))
    _describe(output, settings, manifest)
    recovered = recover(output)
    selection = select_rows(index, recovered.ids)
    rejected = publish_rejected(output, rejected_rows(manifest, index, selection))
    todo = len(selection.todo)
    progress = Progress(todo, execution.report_seconds)
    publisher = _Publisher(output, execution.publish_bytes, recovered.parts)
    if todo:
        connect(execution.worker_logs)
        cluster = Cluster.current()
        plan = make_plan(
            index, selection.todo, graph.rows_per_block(execution, num_candidates, cluster, todo)
        )
        work = graph.Work(manifest, plan, job.model, output, execution, cluster)
        progress.note(
            f"{len(index.ids):,} rows in the manifest: {len(selection.done):,} done before, "
            f"{rejected:,} rejected, {todo:,} to do in {plan.num_blocks:,} blocks"
        )
        metrics = MetricsLog(output.uri, execution.report_seconds)
        with progress, _last_sample(metrics, progress, cluster):
            for report in block_reports(build(work)):
                progress.add(report)
                publisher.add(report["part"], report["num_bytes"])
                metrics.add(progress.sample(cluster.gpus))
    publisher.finish()
    finished = progress.totals.rows + progress.totals.failed
    if finished != todo:
        raise RunError(
            f"{todo - finished} of {todo} rows came to no end; the same command continues with them"
        )
    return Summary(output.uri, progress.totals, rejected, recovered.done, recovered.failed, progress.elapsed)


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


def _read_config(model: str) -> ClvpConfig:
    try:
        return ClvpConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise RunError(f"the model {model} cannot be used: {error}") from error


def _describe(output: OutputFolder, settings: Any, manifest: Manifest) -> None:
    """Write the run description, or check that this run is the one that the output was made by."""
    parts = settings if isinstance(settings, tuple) else (settings,)
    description = {
        "schema_version": SCHEMA_VERSION,
        "settings": {type(part).__name__: dataclasses.asdict(part) for part in parts},
        "columns": {field.name: str(field.type) for field in manifest.extra},
    }
    uri = output.file("", DESCRIPTION)
    if filesystem.exists(uri):
        before = json.loads(filesystem.read_bytes(uri))
        differing = sorted(_differences(before, json.loads(json.dumps(description))))
        if differing:
            raise RunError(
                f"{output.uri} was made with other settings ({'; '.join(differing)}): "
                "use them again, or another output"
            )
    else:
        output.write("", DESCRIPTION, json.dumps(description, indent=2).encode())


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path}: {before!r} there, {now!r} here"


class _Publisher:
    """Publishes finished parts, in the background, whenever there are enough for a file."""

    def __init__(self, output: OutputFolder, enough_bytes: int, parts: list[str]) -> None:
        self.output = output
        self.enough_bytes = enough_bytes
        self.parts = list(parts)
        self.num_bytes = 0
        self.running: list[Any] = []

    def add(self, part: str, num_bytes: int) -> None:
        self.parts.append(part)
        self.num_bytes += num_bytes
        if self.num_bytes >= self.enough_bytes:
            # No CPU is reserved: the stages may hold them all until the end of the run.
            self.running.append(_publish_task.options(num_cpus=0).remote(self.output, self.parts))
            self.parts, self.num_bytes = [], 0
            done, self.running = ray.wait(self.running, num_returns=len(self.running), timeout=0)
            ray.get(done)

    def finish(self) -> None:
        if self.running:
            ray.get(self.running)
        if self.parts:
            publish(self.output, self.parts)
            self.parts = []


@ray.remote
def _publish_task(output: OutputFolder, parts: list[str]) -> None:
    publish(output, parts)
