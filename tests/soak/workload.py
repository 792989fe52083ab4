"""What is run: a manifest with bad rows in it, a small random model, and the command line."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clvp.random_checkpoint import write_random_checkpoint
from tests.pipeline.clips import write_clip, write_jsonl
from tests.s3_server import CREDENTIALS
from tests.soak.processes import kill_session

REPOSITORY = Path(__file__).parents[2]
EXECUTION = {
    "--torch-threads": "1",
    "--report-seconds": "2",
    "--publish-bytes": "20000",  # a file for every few blocks, so that kills meet publishing as well
    "--rows-per-block": "4",
}
RESULTS = {"--num-candidates": "3", "--max-new-tokens": "24", "--diffusion-steps": "2", "--seed": "11"}
SAMPLING = {"--samplers": "1", "--gpus-per-sampler": "0", "--rankers": "1", "--gpus-per-ranker": "0"}
OPTIONS = {**RESULTS, **EXECUTION, **SAMPLING}
MISSING = "missing.wav"  # a clip that some rows name


@dataclass(frozen=True)
class Workload:
    """Everything that runs of the same rows share, and the command that they are."""

    manifest: Path
    model: Path
    ids: frozenset[str]  # of the rows that are done or fail, each once
    rejected: int  # rows without an id of their own
    job: str = "jobs.synthesize"
    options: Mapping[str, str] = field(default_factory=lambda: OPTIONS)

    def arguments(self, output: str) -> list[str]:
        """Of the job's command line."""
        given = {"--model": str(self.model), "--output": output, **self.options}
        if self.job == "jobs.synthesize":
            given["--manifest"] = str(self.manifest)
        return [part for pair in given.items() for part in pair if part]

    def extending(self, output: str) -> "Workload":
        """More candidates, of which some lie in an output that is finished."""
        return replace(self, options={**self.options, "--num-candidates": "5", "--extend": output})

    def retrying(self) -> "Workload":
        """The failed rows once more, now that a clip is there."""
        write_clip(self.manifest.with_name(MISSING), 0.4)
        return replace(self, options={**self.options, "--retry-failed": ""})

    def ranking(self, output: str, ids: Iterable[str]) -> "Workload":
        """The candidates of a finished output with these ids."""
        options = {"--run": output, **EXECUTION}
        return replace(self, ids=frozenset(ids), rejected=0, job="jobs.rank", options=options)


def make_workload(folder: Path, rows: int, sound: bool = False) -> Workload:
    """`rows` manifest rows, about 20 of 300 bad: in their text, their audio or their id.

    With `sound` the best candidates become sound.
    """
    clips = {"a.wav": (0.4, 16_000), "b.flac": (0.5, 44_100), "c.wav": (0.3, 48_000), "d.ogg": (0.6, 24_000)}
    for name, (seconds, rate) in clips.items():
        write_clip(folder / name, seconds, rate)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    write_clip(folder / "empty.wav", 0.0)
    voices: list[Any] = ["a.wav", "b.flac", ["c.wav", "d.ogg"], "d.ogg"]
    made = [_row(i, voices[i % len(voices)]) for i in range(rows)]
    ways: list[dict[str, Any]] = [
        {"audio": MISSING},
        {"audio": "broken.wav"},
        {"audio": "empty.wav"},
        {"audio": None},
        {"text": ""},
        {"text": None},
        {"text": "too long " * 400},
        {"id": None},
        {"id": "row-0000"},
    ]
    bad = random.Random(rows).sample(range(1, rows), max(rows // 15, len(ways)))
    for number, position in enumerate(bad):
        made[position] |= ways[number % len(ways)]
    ids = [row["id"] for row in made]
    unique = frozenset(filter(None, ids))
    return Workload(
        write_jsonl(folder / "manifest.jsonl", made),
        write_random_checkpoint(folder / "model", audio=sound),
        unique,
        len(ids) - len(unique),
    )


def _row(number: int, audio: Any) -> dict[str, Any]:
    text = f"This is text number {number}" + ", and it goes on" * (number % 4) + "."
    return {
        "id": f"row-{number:04}",
        "text": text,
        "audio": audio,
        "speaker": f"s{number % 5}",
        "n": number,
        "extra": {"tags": ["x"] * (number % 3)},
    }


class Run:
    """One start of the job in a session of its own, with a Ray instance of its own. A context manager."""

    def __init__(self, workload: Workload, output: str, command: Sequence[str] = ()) -> None:
        self.temporary = Path(
            tempfile.mkdtemp(prefix="soak-", dir="/tmp")
        )  # short: Ray puts sockets below it
        self.log = self.temporary / "log"
        command = command or ("-m", workload.job)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        variables |= {
            "RAY_TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *workload.arguments(output)],
                env={**variables, **CREDENTIALS},
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the driver, and of the session."""
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def text(self) -> str:
        """What the run has printed."""
        return self.log.read_text(errors="replace")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        kill_session(self.pid)
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)
