"""A trial: some blocks of a run, through the real stages, to tell what the whole run will take.

The blocks are drawn as `pipeline.trial_rows` says, and written and published like those of any run, into a
folder that goes away.
"""

import math
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline import storage
from pipeline.checkpoint import describe_checkpoint
from pipeline.errors import ManifestError, RunError
from pipeline.forecast import Fleet, Trial, TrialBlock
from pipeline.output.folder import OutputFolder, encode_parquet
from pipeline.output.publish import publish
from pipeline.progress import Progress
from pipeline.rows.manifest import open_manifest
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import select_rows
from pipeline.rows.scan import RowIndex, scan
from pipeline.run import check_model
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run
from pipeline.stages import Work, gpu_shares, grouped, stages_of
from pipeline.stream.autoscaler import launcher_gpus
from pipeline.stream.cluster import Cluster, connected
from pipeline.stream.envelope import Timing
from pipeline.stream.retry import reports
from pipeline.stream.stream import rows_per_block
from pipeline.trial_rows import choose_rows

BLOCKS_PER_SAMPLER = 8
WARM_AFTER = 3  # a worker that had as many blocks of a stage was still warming up in the first


@dataclass(frozen=True)
class Trialled:
    """A trial that was run: its figures, how much of the manifest it was, and what it ran on."""

    trial: Trial
    fleet: Fleet  # of the run that is planned
    cluster: Cluster  # of the trial
    rejected: int  # manifest rows without an id of their own
    seconds: float


def run_trial(
    manifest: tuple[str, ...],
    model: str,
    settings: ResultSettings,
    execution: ExecutionSettings,
    gpus: int | None = None,
    sample_rows: int | None = None,
    scratch: str | None = None,
) -> Trialled:
    """Run some blocks on the hardware at hand, for a run on `gpus` GPUs (None: on this hardware).

    `sample_rows` None takes eight blocks for every sampler. `scratch` is a folder or URI that all nodes
    reach; None is one for temporary files of this machine.

    Raises ManifestError and RunError as a run would.
    """
    checkpoint = describe_checkpoint(model)
    run = Run(manifest, "", model, settings, execution)
    check_model(checkpoint, run)
    opened, index = scan(open_manifest(manifest, AUDIO_PAYLOAD))
    todo = select_rows(index, pa.chunked_array([], pa.large_string())).todo
    if not len(todo):
        raise ManifestError("the manifest has no row with an id of its own")
    with connected(execution.worker_logs), _scratch_output(scratch) as output:
        gpus = gpus or launcher_gpus()
        cluster = _trial_cluster(gpus)
        if scratch is None and _has_other_nodes():
            raise RunError(
                "the trial needs a folder or URI that all nodes of this cluster reach: name it (scratch)"
            )
        fleet = planned_fleet(cluster, run, gpus)
        wanted = cluster if gpus is None else Cluster(cluster.cpus, gpus)
        size = rows_per_block(execution, settings.num_candidates, wanted, len(todo))
        run = replace(run, execution=_at_hand(run, cluster))
        work = Work(run, opened, checkpoint, output, settings.sampling.seed, page_bytes=index.page_bytes)
        samplers = planned_fleet(cluster, run, None).workers["sample"]
        blocks = math.ceil(sample_rows / size) if sample_rows else BLOCKS_PER_SAMPLER * int(samplers)
        chosen = choose_rows(opened, index, todo, size, blocks)
        started = time.perf_counter()
        measured, startup = _run_blocks(work, cluster, index, chosen, size)
        seconds = time.perf_counter() - started
    trial = Trial(len(todo), measured, startup)
    return Trialled(trial, fleet, cluster, len(index.ids) - len(todo), seconds)


def _trial_cluster(gpus: int | None) -> Cluster:
    """What there is. A cluster that grows may have no GPU yet: then the trial waits for one."""
    cluster = Cluster.current()
    if gpus is None or cluster.gpus:
        return cluster
    if not os.environ.get("RAY_ADDRESS"):
        raise RunError("this machine has no GPU: a forecast for GPUs needs a trial on one of them")
    return Cluster.current(1)


def _at_hand(run: Run, cluster: Cluster) -> ExecutionSettings:
    """With pools that the hardware of the trial can fill."""
    shares, execution = gpu_shares(stages_of(run)), run.execution
    return replace(
        execution,
        samplers=_pool_at_hand(execution.samplers, shares["sample"], cluster),
        rankers=_pool_at_hand(execution.rankers, shares["rank"], cluster),
    )


def _pool_at_hand(pool: Pool, gpu_share: float, cluster: Cluster) -> Pool:
    """As many of a pool's actors as the trial has GPUs for."""
    share = cluster.resources(pool, gpu_share)["num_gpus"]
    if not share:
        return pool
    limit = max(int(cluster.gpus if pool.num_gpus is None else cluster.gpus / share), 1)
    return replace(pool, min_size=min(pool.min_size, limit), max_size=min(pool.max_size or limit, limit))


def _has_other_nodes() -> bool:
    """Whether blocks may be written elsewhere than on this machine."""
    alive = sum(node["Alive"] for node in ray.nodes())
    return alive > 1 or not ray.cluster_resources().get("CPU", 0)


def planned_fleet(cluster: Cluster, run: Run, gpus: int | None) -> Fleet:
    """Workers of a run on `gpus` GPUs with as many CPU cores as they need; None: on this cluster."""
    wanted = cluster if gpus is None else Cluster(cluster.cpus, gpus)
    stages = stages_of(run)
    shares = gpu_shares(stages)
    workers: dict[str, float] = {}
    reserved = 0.0
    for stage in stages:
        if stage.pool is not None:
            arguments = wanted.pool(stage.pool, shares[stage.name])
            workers[stage.name] = arguments["compute"].max_size
            reserved += workers[stage.name] * arguments["num_cpus"]
    if gpus is None:
        free = max(cluster.cpus - reserved, cluster.task_cpus)
        for name, group in grouped(stages):
            if group[0].pool is None:
                workers[name] = free / cluster.cpus_of(group)
    return Fleet(workers, wanted.gpus or cluster.cpus, bool(wanted.gpus))


@contextmanager
def _scratch_output(scratch: str | None) -> Iterator[OutputFolder]:
    """A new folder, deleted afterwards."""
    parent = storage.absolute(scratch or tempfile.gettempdir())
    output = OutputFolder(storage.join(parent, f"clvp-trial-{uuid.uuid4().hex}"))
    try:
        yield output
    finally:
        source, path = storage.resolve(output.uri)
        with suppress(FileNotFoundError):
            source.delete_dir(path)


def _run_blocks(
    work: Work, cluster: Cluster, index: RowIndex, rows: np.ndarray, size: int
) -> tuple[tuple[TrialBlock, ...], float]:
    """The blocks of the rows at these positions, and the seconds until the first, without its own."""
    finished: list[tuple[tuple[Timing, ...], dict[str, Any]]] = []
    startup = 0.0
    progress = Progress(len(rows), work.run.execution.report_seconds)
    progress.note(f"a trial of {len(rows):,} rows in blocks of up to {size}")
    with progress:
        for timings, report in reports(work, cluster, index, rows, size, progress.note):
            if not finished:
                startup = max(progress.elapsed - sum(timing.seconds for timing in timings), 0.0)
            finished.append((timings, report))
            progress.add(report, timings)
    seconds = warm_seconds([timings for timings, _ in finished])
    stored = [_stored(work.output, report["part"]) for _, report in finished]
    publish(work.output, [report["part"] for _, report in finished])
    per_token = _bytes_per_token(work.output)
    blocks = [
        TrialBlock(
            rows=report["rows"] + report["failed"],
            failed=report["failed"],
            candidates=len(candidates),
            best_s=_sum(candidates, "duration_s", pc.equal(pc.struct_field(candidates, "rank"), 1)),
            all_s=_sum(candidates, "duration_s"),
            num_bytes=per_token * _sum(candidates, "num_tokens"),
            seconds=block_seconds,
        )
        for (_, report), candidates, block_seconds in zip(finished, stored, seconds, strict=True)
    ]
    return tuple(blocks), startup


def warm_seconds(blocks: Sequence[Sequence[Timing]]) -> list[dict[str, float]]:
    """Seconds by stage of each block, without the first one of each worker that had several."""
    had = Counter((timing.stage, timing.worker) for timings in blocks for timing in timings)
    seen: set[tuple[str, str]] = set()
    result: list[dict[str, float]] = []
    for timings in blocks:
        seconds = {}
        for timing in timings:
            worker = (timing.stage, timing.worker)
            if worker in seen or had[worker] < WARM_AFTER:
                seconds[timing.stage] = timing.seconds
            seen.add(worker)
        result.append(seconds)
    return result


def _stored(output: OutputFolder, part: str) -> pa.Array:
    """All candidates of a part."""
    return pc.list_flatten(output.read_table("_parts", part, ["candidates"])["candidates"]).combine_chunks()


def _sum(candidates: pa.Array, name: str, mask: pa.Array | None = None) -> float:
    values = pc.struct_field(candidates, name)
    return float(pc.sum(values if mask is None else values.filter(mask)).as_py() or 0)


def _bytes_per_token(output: OutputFolder) -> float:
    """Of the published files, as far as they grow with the rows: half of the rows against all of them."""
    tables = [output.read_table("data", name) for name in output.parquet_files("data")]
    if not tables:
        return 0.0
    table = pa.concat_tables(tables)
    half = table.slice(0, len(table) // 2)
    tokens, fewer = (_sum(pc.list_flatten(t["candidates"]), "num_tokens") for t in (table, half))
    size, smaller = encode_parquet(table).size, encode_parquet(half).size
    return (size - smaller) / max(tokens - fewer, 1.0) if len(half) else size / max(tokens, 1.0)
