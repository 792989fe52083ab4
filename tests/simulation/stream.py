"""A whole run (`pipeline.run.synthesize`) in this process, with stand-ins for audio and models."""

import contextlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from clvp.random_checkpoint import write_random_checkpoint
from pipeline import run, session, stages
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run
from tests.remade import remade
from tests.simulation.gauge import Gauge, Look
from tests.simulation.stand_ins import StandInAudio, StandInRanker, StandInSampler
from tests.simulation.workload import write_manifest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """What is run."""

    rows: int
    rows_per_block: int
    actors: int  # of each model stage
    voices: int  # different clips a block
    sample_seconds: float  # a block
    rank_seconds: float
    publish_bytes: int
    cpus: int  # that Ray is told of


@dataclass(frozen=True)
class Result:
    size: Size
    looks: list[Look]
    first_block: float  # seconds from the beginning of the stream
    stream_began: float  # seconds from the beginning of the run: scan, plan, checkpoint
    blocks: int
    files: list[int]  # bytes of each output file


def run_stream(size: Size, folder: Path) -> Result:
    """Run all rows through the graph; `folder` gets the manifest and the output."""
    manifest = folder / "manifest.parquet"
    write_manifest(manifest, size.rows)
    checkpoint = write_random_checkpoint(folder / "checkpoint")
    pool = Pool(max_size=size.actors, min_size=size.actors, num_cpus=0, num_gpus=1)
    execution = ExecutionSettings(
        rows_per_block=size.rows_per_block,
        samplers=pool,
        rankers=pool,
        publish_bytes=size.publish_bytes,
        report_seconds=30,
    )
    settings = ResultSettings(num_candidates=16)
    whole = Run((str(manifest),), str(folder / "output"), str(checkpoint), settings, execution)
    clock = _Clock()
    with _ray(size), _stand_ins(size), Gauge(lambda: clock.rows, _store_usage) as gauge:
        with mock.patch.object(session, "reports", clock.watch(session.reports)):
            run.synthesize(whole)
        gauge.look()
    files = [path.stat().st_size for path in (folder / "output" / "data").glob("*.parquet")]
    first = clock.first - clock.began
    return Result(size, gauge.looks, first, clock.began - clock.created, clock.blocks, files)


class _Clock:
    """Counts what the stream brings to the driver."""

    def __init__(self) -> None:
        self.created = time.monotonic()
        self.began = self.first = 0.0
        self.rows = self.blocks = 0

    def watch(self, reports: Any) -> Any:
        def watched(*arguments: Any) -> Iterator[Any]:
            self.began = time.monotonic()
            for timings, report in reports(*arguments):
                self.first = self.first or time.monotonic()
                self.blocks += 1
                self.rows += report["rows"]
                yield timings, report

        return watched


@contextlib.contextmanager
def _stand_ins(size: Size) -> Iterator[None]:
    makes = {
        "audio": lambda work: StandInAudio(size.voices),
        "sample": lambda work: StandInSampler(size.sample_seconds, work.run.results.num_candidates),
        "rank": lambda work: StandInRanker(size.rank_seconds),
    }
    changes = {name: lambda _, make=make: make for name, make in makes.items()}
    with mock.patch.object(stages, "declared", remade(changes)):
        yield


@contextlib.contextmanager
def _ray(size: Size) -> Iterator[None]:
    """An instance of our own, whose GPUs exist on paper."""
    with (
        mock.patch.dict(os.environ, {"RAY_idle_worker_killing_time_threshold_ms": "600000"}),
        tempfile.TemporaryDirectory(prefix="sim-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        ray.init(
            address="local",
            num_cpus=size.cpus,
            num_gpus=2 * size.actors,
            object_store_memory=1 << 30,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        )
        try:
            yield
        finally:
            ray.shutdown()


def _store_usage() -> tuple[int, int]:
    if not ray.is_initialized():
        return 0, 0
    with contextlib.redirect_stdout(io.StringIO()):
        reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return reply.store_stats.object_store_bytes_used, reply.store_stats.spilled_bytes_total
