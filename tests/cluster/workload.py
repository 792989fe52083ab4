"""The run of the cluster tests: long enough to be disturbed in the middle, and its undisturbed result."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clvp.random_checkpoint import write_random_checkpoint
from tests.cluster.ray_head import ENVIRONMENT, ROOT
from tests.cluster.slow_store import slow_store
from tests.pipeline.clips import write_clip, write_jsonl

NUM_ROWS = 256
BAD_ROWS = {"row-007", "row-050"}  # their audio is not there
NUM_VOICES = 4
SECONDS_PER_CLIP = 0.06  # to fetch one: audio and sampling take about as long, so that both want more nodes


@dataclass(frozen=True)
class Workload:
    """Inputs of the run, and the tables that an undisturbed one wrote."""

    manifest: Path
    model: Path
    store: str  # that the clips lie in
    rows: pa.Table
    errors: pa.Table

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Of `python`: the same in every run, as far as results go."""
        return arguments(self.manifest, self.model, self.store, output, *more)


def arguments(manifest: Path, model: Path, store: str, output: Path, *more: str) -> list[str]:
    command = ["-m", "jobs.synthesize", "--manifest", str(manifest), "--output", str(output)]
    command += ["--audio-hosts", store]
    command += ["--model", str(model), "--num-candidates", "16", "--max-new-tokens", "120"]
    return [*command, "--rows-per-block", "4", "--torch-threads", "1", "--report-seconds", "2", *more]


@contextmanager
def prepared_workload(folder: Path) -> Iterator[Workload]:
    """Write the inputs, and do the run once on a Ray instance of its own."""
    model = write_random_checkpoint(folder / "model")
    for voice in range(NUM_VOICES):
        write_clip(folder / f"store/voice-{voice}.wav", 0.4, 16_000)
    with slow_store(folder / "store", SECONDS_PER_CLIP) as uri:
        rows = []
        for number in range(NUM_ROWS):
            name = f"row-{number:03}"
            audio = "no.wav" if name in BAD_ROWS else uri.format(f"voice-{number % NUM_VOICES}.wav")
            rows.append({"id": name, "text": f"Text of {name}.", "audio": audio})
        manifest = write_jsonl(folder / "manifest.jsonl", rows)
        output = folder / "undisturbed"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= ENVIRONMENT | {"RAY_TMPDIR": "/tmp"}
        store = uri.replace("/{}", "")
        command = [sys.executable, *arguments(manifest, model, store, output)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=280)
        yield Workload(manifest, model, store, *read_output(output))


def read_output(output: Path) -> tuple[pa.Table, pa.Table]:
    """Rows and errors, in the order of their ids; without the clock's columns none of them may differ."""
    return tuple(pq.read_table(output / name).sort_by("id") for name in ("data", "errors"))


def check_output(output: Path, workload: Workload) -> None:
    """Every row of the manifest once, and the same to the bit as in the undisturbed run."""
    rows, errors = read_output(output)
    ids = rows["id"].to_pylist() + errors["id"].to_pylist()
    assert sorted(ids) == [f"row-{number:03}" for number in range(NUM_ROWS)]
    assert set(errors["id"].to_pylist()) == BAD_ROWS
    assert rows.equals(workload.rows)
    assert errors.equals(workload.errors)
