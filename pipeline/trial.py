"""A trial: a random sample of a manifest's rows through a run of its own, scaled up to the whole.

The sample is written as a manifest into a folder that goes away, and run as any manifest would be, on the
hardware at hand. Its pace is that between its first finished block and its last; what came before is the
start, which every run has once.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ManifestError, RunError
from pipeline.inputs import find_inputs
from pipeline.metrics import read_sessions
from pipeline.output.folder import OutputFolder
from pipeline.progress import Summary
from pipeline.rows.columns import ID, TEXT
from pipeline.rows.manifest import NATURAL, Manifest
from pipeline.rows.normalise import RowIndex
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan, select_rows
from pipeline.rows.read import read_block
from pipeline.run import synthesize
from pipeline.settings import Pool, ResultSettings, Run

if TYPE_CHECKING:
    from pipeline.stream.cluster import Cluster

BLOCKS_PER_DEVICE = 8


@dataclass(frozen=True)
class Trial:
    """What a sample took and gave."""

    rows: int  # those that failed included
    failed: int
    candidates: int
    all_s: float  # of speech, of all stored candidates
    best_s: float  # of speech, of the best ones
    num_bytes: int  # of output, without what every file has once
    seconds: float
    pace: float  # seconds per row, once blocks come out
    stages: Mapping[str, float]  # seconds of one worker per row, by stage


@dataclass(frozen=True)
class Forecast:
    """A trial, and the run of `num_rows` rows that it foretells."""

    trial: Trial
    num_rows: int
    tried_on: "Cluster"
    planned: "Cluster"

    @property
    def devices(self) -> float:
        """GPUs, or CPU cores where there are none."""
        return self.planned.gpus or self.planned.cpus

    def scaled(self, amount: float) -> float:
        """An amount of the trial in the whole run."""
        return amount * self.num_rows / self.trial.rows

    @property
    def wall_s(self) -> float:
        """The start of the trial, and its pace on more devices."""
        start = max(self.trial.seconds - self.trial.pace * self.trial.rows, 0.0)
        tried_on = self.tried_on.gpus or self.tried_on.cpus
        return start + self.num_rows * self.trial.pace * tried_on / self.devices

    @property
    def device_hours(self) -> float:
        return self.wall_s * self.devices / 3600


def run_trial(run: Run, sample_rows: int | None = None, scratch: str | None = None) -> Forecast:
    """Try some rows of `run` on the hardware at hand, for `run.execution.gpus` GPUs (None: this hardware).

    `sample_rows` None takes eight blocks for every device. `scratch` is a folder or URI that all nodes
    reach; None is one for temporary files of this machine.

    Raises ManifestError and RunError as a run would.
    """
    execution = run.execution
    assert isinstance(run.results, ResultSettings)
    inputs = find_inputs(run, AUDIO_PAYLOAD)
    todo = select_rows(inputs.index, pa.chunked_array([], pa.large_string())).todo
    if not len(todo):
        raise ManifestError("the manifest has no row with an id of its own")

    from pipeline.stream.cluster import Cluster, connected  # with Ray: a second
    from pipeline.stream.stream import rows_per_block

    with connected(execution.worker_logs), _scratch_folder(scratch) as folder:
        cluster = Cluster.current()
        if execution.gpus and not cluster.gpus:
            if not os.environ.get("RAY_ADDRESS"):
                raise RunError("this machine has no GPU: a forecast for GPUs needs a trial on one of them")
            cluster = Cluster.current(1)  # one that grows: the trial waits for a GPU
        if scratch is None and (cluster.nodes > 1 or not cluster.cpus):
            raise RunError(
                "the trial needs a folder or URI that all nodes of this cluster reach: name it (scratch)"
            )
        planned = replace(cluster, gpus=execution.gpus or cluster.gpus)
        size = rows_per_block(execution, run.results.num_candidates, planned, len(todo))
        wanted = sample_rows or BLOCKS_PER_DEVICE * size * max(int(cluster.gpus), 1)
        chosen = np.random.default_rng(0).choice(todo, min(wanted, len(todo)), replace=False)
        sample = storage.join(folder, "sample.parquet")
        _write_sample(sample, inputs.manifest, inputs.index, np.sort(chosen))
        at_hand = replace(
            execution,
            rows_per_block=size,
            gpus=int(cluster.gpus) or None,
            audio_hosts=inputs.manifest.places(execution.audio_hosts),
            samplers=Pool(num_gpus=execution.samplers.num_gpus),
            rankers=Pool(num_gpus=execution.rankers.num_gpus),
            report_seconds=min(execution.report_seconds, 1.0),
        )
        output = storage.join(folder, "output")
        tried = replace(run, manifest=(sample,), reading=NATURAL, output=output, execution=at_hand)
        return Forecast(_measured(synthesize(tried)), len(todo), cluster, planned)


@contextmanager
def _scratch_folder(scratch: str | None) -> Iterator[str]:
    """A new folder, deleted afterwards."""
    name = f"clvp-trial-{uuid.uuid4().hex}"
    folder = storage.join(storage.absolute(scratch), name) if scratch else tempfile.mkdtemp(prefix=name)
    filesystem, path = storage.resolve(folder)
    filesystem.create_dir(path, recursive=True)
    try:
        yield folder
    finally:
        with suppress(FileNotFoundError):
            filesystem.delete_dir(path)


def _write_sample(uri: str, manifest: Manifest, index: RowIndex, positions: np.ndarray) -> None:
    """A manifest of the rows at these positions. What cannot be read is null there, and fails again."""
    plan = make_plan(index, positions, rows_per_block=64)
    schema = pa.schema([ID, TEXT, manifest.payload.field, *manifest.extra])
    filesystem, path = storage.resolve(uri)
    with filesystem.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for number in range(plan.num_blocks):
            table = read_block(manifest, plan.slices_of(number))
            table = table.drop_columns(["source", "row_digest", "error"])
            writer.write_table(table.rename_columns(schema.names))


def _measured(summary: Summary) -> Trial:
    output = OutputFolder(summary.output)
    (session,) = read_sessions(output.uri)
    first, last = session.samples[0], session.samples[-1]
    rows = last.rows + last.failed
    # Between the first finished block and the last, or over all where there is but one.
    since = rows - first.rows - first.failed
    pace = (last.elapsed_s - first.elapsed_s) / since if since else last.elapsed_s / rows
    files = [(folder, name) for folder in ("data", "errors") for name in output.parquet_files(folder)]
    return Trial(
        rows=rows,
        failed=last.failed,
        candidates=last.candidates,
        all_s=last.audio_s,
        best_s=summary.totals.best_s,
        num_bytes=sum(stored_bytes(output, *file) for file in files),
        seconds=last.elapsed_s,
        pace=pace,
        stages={name: seconds / rows for name, seconds in last.busy_s.items()},
    )


def stored_bytes(output: OutputFolder, folder: str, name: str) -> int:
    """Those of a file's columns: what grows with its rows, without the kilobytes that describe it."""
    with output.open_table(folder, name) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    return sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
