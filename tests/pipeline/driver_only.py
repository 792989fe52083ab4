"""Runs without Ray: the driver alone, whose lock, plan, reading, writing and publishing are real.

`without_ray` runs all stages in this process. `driver_only` runs none: every row gets one candidate, made
from its text. As a program: `python -m tests.pipeline.driver_only MANIFEST OUTPUT BEAT LEASE PAUSE`, with the
seconds of a lease and those that a block takes.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pyarrow as pa

import pipeline.inputs
import pipeline.session
from pipeline.checkpoint import Checkpoint
from pipeline.errors import ManifestError, RunError
from pipeline.output import lock
from pipeline.progress import Summary
from pipeline.rows.columns import CANDIDATES
from pipeline.rows.normalise import RowIndex
from pipeline.rows.plan import make_plan
from pipeline.rows.read import read_block
from pipeline.run import synthesize
from pipeline.settings import ExecutionSettings, ResultSettings, Run
from pipeline.stages import Chain, Work, stages_of
from pipeline.stages.write import BlockWriter
from pipeline.stream.cluster import Cluster


def candidate_of(text: str | None) -> list[dict[str, Any]] | None:
    """What stands for the best candidate of a text."""
    if text is None:
        return None
    return [
        {"rank": 1, "candidate": 0, "score": 1.0, "speech_ids": list(text.encode()), "num_tokens": len(text)}
    ]


def write_block(work: Work, table: pa.Table) -> dict[str, Any]:
    """Write a block as it is read; returns its report."""
    candidates = pa.array([candidate_of(text) for text in table["text"].to_pylist()], CANDIDATES.type)
    table = table.drop_columns(work.manifest.payload.field.name).append_column(CANDIDATES, candidates)
    return BlockWriter(work.output, work.seed)(table).to_pylist()[0]


def stages_here(work: Work, _: Any, index: RowIndex, todo: Any, size: int, note: Any = None) -> Iterator[Any]:
    """In place of `pipeline.stream.retry.reports`: all stages in this process, block by block."""
    chain, plan = Chain(stages_of(work.run), work), make_plan(index, todo, size)
    for number in range(plan.num_blocks):
        yield (), chain(plan.slices_of(number)).to_pylist()[0]


@contextmanager
def without_ray(reports: Callable[..., Iterator[Any]] = stages_here) -> Iterator[None]:
    """Runs in this context have no cluster."""
    with mock.patch.multiple(
        pipeline.session,
        reports=reports,
        connected=lambda logs: nullcontext(),
        Cluster=mock.Mock(current=lambda gpus: Cluster(2, 0)),
    ):
        yield


@contextmanager
def driver_only(between: Callable[[int], None] = lambda number: None) -> Iterator[None]:
    """Nor models; `between` is called with a block's number before it is read."""

    def reports(work: Work, _: Any, index: RowIndex, todo: Any, size: int, note: Any = None) -> Iterator[Any]:
        plan = make_plan(index, todo, size)
        for number in range(plan.num_blocks):
            between(number)
            yield (), write_block(work, read_block(work.manifest, plan.slices_of(number)))

    with (
        without_ray(reports),
        mock.patch.multiple(
            pipeline.inputs,
            check_model=lambda checkpoint, run: None,
            describe_checkpoint=lambda location: Checkpoint(location, {"config.json": "aa"}),
        ),
    ):
        yield


def run(manifest: str, output: str, publish_bytes: int = 1, **more: Any) -> Summary:
    """A run in blocks of two rows, every block published in a file of its own."""
    execution = ExecutionSettings(rows_per_block=2, publish_bytes=publish_bytes, report_seconds=3600)
    return synthesize(Run((manifest,), output, "user/model", ResultSettings(), execution, **more))


def run_leased(manifest: str, output: str, beat: float, lease: float, pause: float) -> Summary:
    """A run with a short lease."""
    with (
        mock.patch.multiple(lock, BEAT_SECONDS=beat, LEASE_SECONDS=lease),
        driver_only(lambda number: time.sleep(pause)),
    ):
        return run(manifest, output, publish_bytes=6000)


if __name__ == "__main__":
    try:
        run_leased(*sys.argv[1:3], *map(float, sys.argv[3:]))
    except (RunError, ManifestError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
