"""One session of a run, once its input is found: lock, recover, plan, stream, publish, sum up."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.card import write_card
from pipeline.description import ADDED_FACTS, Description, describe, load, retype_empty, settle, settle_engine
from pipeline.errors import RunError, safe, shown
from pipeline.extend import check_extendable
from pipeline.inputs import Inputs
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
from pipeline.progress import Progress, Summary
from pipeline.rows.manifest import groups_of, shared
from pipeline.rows.normalise import RowIndex
from pipeline.rows.plan import Selection, rejected_rows, select_rows
from pipeline.settings import ResultSettings
from pipeline.stages import Work, output_columns
from pipeline.stages.choose import check_formulas
from pipeline.stream.cluster import Cluster, connected
from pipeline.stream.exported import Exported
from pipeline.stream.retry import reports
from pipeline.stream.stream import rows_per_block
from pipeline.stream.watch import watch

RANKED_CANDIDATES = 16  # of a row that brings its own, as far as the size of blocks goes


def run_session(inputs: Inputs, output: OutputFolder, seed: int | None) -> Summary:
    """Bring every row to an end. Raises RunError where the output belongs to another run."""
    run, manifest = inputs.run, inputs.manifest
    check_formulas(run)
    columns = output_columns(run, manifest)
    now = describe(run, inputs.checkpoint, columns)
    earlier = OutputFolder(storage.absolute(run.extend)) if run.extend is not None else None
    extended = None if earlier is None else check_extendable(earlier, output, now)
    with exclusive(output, lambda message: print(safe(message), flush=True)) as held:
        retype_empty(output, now, columns)
        description = settle(output, now)
        work = Work(run, manifest, inputs.checkpoint, output, seed)
        if earlier is not None and extended is not None:
            work = replace(work, stored=open_stored(earlier, extended.settings["num_candidates"]))
            if description.engine is None and extended.engine is not None:
                facts = {k: v for k, v in extended.engine.items() if k not in ADDED_FACTS}
                description = settle_engine(output, description, facts)
        return _finish(work, inputs.index, description, held)


def _finish(work: Work, index: RowIndex, description: Description, held: Held) -> Summary:
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
    if progress.left:
        raise RunError(f"{progress.left} of {todo} rows came to no end; the same command continues with them")
    _check_stored(files, index)
    write_card(output, load(output) or description)
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
    metrics, exported = MetricsLog(work.output.uri, execution.report_seconds), Exported()
    progress.note(f"blocks of up to {size} rows, on {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs")
    watch(progress.see)
    with progress:
        try:
            for timings, report in reports(work, cluster, index, todo, size, progress.note):
                publisher.held.check()
                if report["engine"] is not None:
                    description = settle_engine(work.output, description, json.loads(report["engine"]))
                publisher.add(report["part"], report["num_bytes"])
                progress.add(report, timings)
                exported.add(report, timings, progress.left, progress.states)
                metrics.add(progress.sample(cluster.gpus))
        except BaseException:
            with suppress(OSError):  # what ended the run matters more
                metrics.add(progress.sample(cluster.gpus), last=True)
            raise
        metrics.add(progress.sample(cluster.gpus), last=True)
