"""A run from beginning to end: check, lock, recover, plan, stream, publish, sum up.

Everything that can be wrong with the manifest, the settings or the output is found before a model is loaded.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from clvp import ClvpConfig
from clvp.waveform.files import WAVEFORM_CONFIG_FILE
from pipeline import storage
from pipeline.checkpoint import Checkpoint, describe_checkpoint, fetch
from pipeline.description import Description, describe, load, load_sampled, settle, settle_engine
from pipeline.errors import RunError, safe, shown
from pipeline.extend import check_extendable
from pipeline.metrics import MetricsLog
from pipeline.output.folder import OutputFolder
from pipeline.output.lock import Held, exclusive
from pipeline.output.publish import (
    Files,
    Recovered,
    forget_failures,
    forget_rows,
    past_attempts,
    publish,
    publish_rejected,
    recover,
)
from pipeline.output.publisher import Publisher
from pipeline.output.stored_candidates import open_stored
from pipeline.progress import Progress, Totals
from pipeline.rows.manifest import NATURAL, Reading, groups_of, open_manifest, shared
from pipeline.rows.normalise import RowIndex, scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, STORED_PAYLOAD, Payload
from pipeline.rows.plan import Selection, rejected_rows, select_rows
from pipeline.settings import ResultSettings, Run
from pipeline.stages import Work, output_columns
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


def synthesize(run: Run) -> Summary:
    """Sample, score and store `run.results.num_candidates` candidates for every row of the manifest.

    Raises ManifestError and RunError before any model is loaded where they can be known by then.
    """
    assert isinstance(run.results, ResultSettings)
    return _run(run, AUDIO_PAYLOAD, run.results.sampling.seed)


def rank(run: Run) -> Summary:
    """Score and rank the speech tokens that the manifest brings along (id, text, speech_ids)."""
    return _run(run, SPEECH_PAYLOAD, None)


def rank_again(run: Run, source: str) -> Summary:
    """Score and rank the candidates that the run in `source` has stored; `run.manifest` is not used.

    Raises RunError when `source` holds no run.
    """
    folder = OutputFolder(storage.absolute(source))
    before = load(folder)
    if before is None:
        raise RunError(f"{folder.uri} holds no run: there is no run.json in it")
    seed = before.results.sampling.seed if isinstance(before.results, ResultSettings) else None
    return _run(replace(run, manifest=(folder.folder("data"),), reading=NATURAL), STORED_PAYLOAD, seed)


def _run(run: Run, payload: Payload, seed: int | None) -> Summary:
    output = OutputFolder(storage.absolute(run.output))
    opened = open_manifest(run.manifest, payload, output.uri, run.reading)
    checkpoint = describe_checkpoint(run.model)
    run = decided(run, checkpoint)
    check_model(checkpoint, run)
    manifest, index = scan(opened)
    now = describe(run, checkpoint, output_columns(run, manifest))
    earlier = OutputFolder(storage.absolute(run.extend)) if run.extend is not None else None
    extended = None if earlier is None else check_extendable(earlier, output, now)
    with exclusive(output, lambda message: print(safe(message), flush=True)) as held:
        description = settle(output, now)
        work = Work(run, manifest, checkpoint, output, seed)
        if earlier is not None and extended is not None:
            work = replace(work, stored=open_stored(earlier, extended.settings["num_candidates"]))
            if description.engine is None and extended.engine is not None:
                description = settle_engine(output, description, extended.engine)
        return _finish(work, index, description, held)


def _finish(work: Work, index: RowIndex, description: Description, held: Held) -> Summary:
    """Do what is left to do in an output that is held."""
    output, execution = work.output, work.run.execution
    files = Files(output)
    recovered, selection = _recovered(work, index, files, description)
    rejected = publish_rejected(output, rejected_rows(work.manifest, index, selection))
    todo = len(selection.todo)
    progress = Progress(todo, execution.report_seconds)
    publisher = Publisher(files, execution.publish_bytes, recovered.parts, past_attempts(output), held)
    progress.note(
        f"{len(index.ids):,} rows in the manifest: {len(selection.done):,} done before, "
        f"{rejected:,} rejected, {todo:,} to do"
    )
    if len(selection.changed):
        progress.note(
            f"{len(selection.changed):,} of the rows done before have another text or audio now (the first: "
            f"{shown(index.ids[int(selection.changed[0])].as_py())}): --redo-changed makes them anew"
        )
    if gone := recovered.done + recovered.failed - len(selection.done):
        progress.note(f"{gone:,} rows of the output are not in the manifest any more; they stay")
    needed = np.unique(groups_of(index.groups, selection.todo)["file"])
    with publisher, shared(work.manifest, output.folder("_manifest"), needed.tolist()) as manifest:
        if todo:
            with connected(execution.worker_logs):
                work = replace(work, manifest=manifest)
                _stream(work, index, selection.todo, description, progress, publisher)
    finished = progress.totals.rows + progress.totals.failed
    if finished != todo:
        raise RunError(
            f"{todo - finished} of {todo} rows came to no end; the same command continues with them"
        )
    _check_stored(files, index)
    return Summary(output.uri, progress.totals, rejected, recovered.done, recovered.failed, progress.elapsed)


def _recovered(
    work: Work, index: RowIndex, files: Files, description: Description
) -> tuple[Recovered, Selection]:
    """What the output holds already, without what is to be made again."""
    engine = description.engine
    recovered = recover(files, None if engine is None else json.dumps(engine, sort_keys=True))
    if work.run.retry_failed and recovered.failed:
        forget_failures(files, recovered.parts)
        recovered = recover(files)
    selection = select_rows(index, recovered.ids, recovered.digests)
    if work.run.redo_changed and len(selection.changed):
        forget_rows(files, recovered.parts, index.ids.take(pa.array(selection.changed)).combine_chunks())
        recovered = recover(files)
        selection = select_rows(index, recovered.ids, recovered.digests)
    return recovered, selection


def _check_stored(files: Files, index: RowIndex) -> None:
    """Count what the output holds in the end, rather than what was written to it.

    Parts that are left were written by processes that died before they could tell.
    """
    stored = recover(files)
    publish(files, stored.parts)
    if missing := len(select_rows(index, stored.ids, stored.digests).todo):
        raise RunError(
            f"{missing:,} rows that were done are not in {files.output.uri} any more: were files deleted "
            "there? The same command makes them again"
        )


def _stream(
    work: Work,
    index: RowIndex,
    todo: np.ndarray,
    description: Description,
    progress: Progress,
    publisher: Publisher,
) -> None:
    results, execution = work.run.results, work.run.execution
    candidates, sounds = RANKED_CANDIDATES, 0
    if isinstance(results, ResultSettings):
        candidates, sounds = results.num_candidates, min(results.num_candidates, results.audio.most)
    cluster = Cluster.current(execution.gpus)
    size = rows_per_block(execution, candidates, cluster, len(todo), sounds)
    work = replace(work, engine=description.engine)
    metrics = MetricsLog(work.output.uri, execution.report_seconds)
    progress.note(f"blocks of up to {size} rows, on {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs")
    with progress:
        try:
            for timings, report in reports(work, cluster, index, todo, size, progress.note):
                publisher.held.check()
                if report["engine"] is not None:
                    description = settle_engine(work.output, description, json.loads(report["engine"]))
                publisher.add(report["part"], report["num_bytes"])
                progress.add(report, timings)
                metrics.add(progress.sample(cluster.gpus))
        except BaseException:
            with suppress(OSError):  # what ended the run matters more
                metrics.add(progress.sample(cluster.gpus), last=True)
            raise
        metrics.add(progress.sample(cluster.gpus), last=True)


def decode(run: Run, source: str) -> Summary:
    """Make the candidates that the run in `source` has stored audible, in an output of its own.

    Of `run.results`, `audio` and `waveform` count. Manifest and model are where the run had them by default.

    Raises RunError when `source` holds no run that sampled.
    """
    folder = OutputFolder(storage.absolute(source))
    before, results, manifest, model = load_sampled(folder, run.manifest, run.model)
    assert isinstance(run.results, ResultSettings)
    audio = (
        replace(run.results.audio, audio="best") if run.results.audio.audio == "auto" else run.results.audio
    )
    return synthesize(
        replace(
            run,
            manifest=manifest,
            reading=Reading(**before.about.reading),
            model=model,
            results=replace(results, waveform=run.results.waveform, audio=audio),
            extend=folder.uri,
        )
    )


def decided(run: Run, checkpoint: Checkpoint) -> Run:
    """The run with `audio="auto"` replaced by what the checkpoint can. Raises RunError where it cannot."""
    if not isinstance(run.results, ResultSettings):
        return run
    audio, can = run.results.audio, WAVEFORM_CONFIG_FILE in checkpoint.files
    if audio.audio not in ("auto", "none") and not can:
        raise RunError(
            f"the model {checkpoint.location} has no files for sound ({WAVEFORM_CONFIG_FILE}): add them with "
            "python -m jobs.convert --diffusion FILE --vocoder FILE --output FOLDER, or use --audio none"
        )
    if audio.audio == "auto":
        audio = replace(audio, audio="best" if can else "none")
    return replace(run, results=replace(run.results, audio=audio))


def check_model(checkpoint: Checkpoint, run: Run) -> None:
    """Raise RunError when the model is unreadable, or has fewer positions than the longest candidate."""
    try:
        config = ClvpConfig.from_pretrained(fetch(checkpoint))
    except (OSError, ValueError) as error:
        raise RunError(f"the model {checkpoint.location} cannot be used: {error}") from error
    if isinstance(run.results, ResultSettings):
        sampling = run.results.sampling
        positions = config.decoder_config.max_position_embeddings - (sampling.mel_positions == "skip_one")
        if sampling.max_new_tokens > positions:
            raise RunError(
                f"max_new_tokens={sampling.max_new_tokens} exceeds the model's {positions} positions"
            )
