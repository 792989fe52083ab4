"""`python -m jobs.plan` as it is used."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from clvp.random_checkpoint import write_random_checkpoint
from jobs.plan import describe, main
from pipeline.stream.cluster import Cluster
from pipeline.trial import Forecast, Trial
from tests.pipeline.clips import write_clip, write_jsonl


def forecast(gpus: float, failed: int = 5) -> Forecast:
    trial = Trial(
        rows=50,
        failed=failed,
        candidates=800,
        all_s=2400.0,
        best_s=150.0,
        num_bytes=5_000_000,
        seconds=90.0,
        pace=0.4,
        stages={"prepare": 0.1, "sample": 0.4, "rank": 0.2, "write": 0.01},
    )
    return Forecast(trial, 1_000_000, Cluster(8, min(gpus, 1)), Cluster(8, gpus))


def test_what_is_printed() -> None:
    lines = describe(forecast(gpus=16), 2.5).splitlines()
    assert lines[0] == "50 of 1,000,000 rows tried in 1.50 min, on 8 CPU cores and 1 GPUs"
    cells = {line[:26].strip(): line[26:].strip() for line in lines[1:]}
    assert cells == {
        "GPU hours": "111.4",  # a million rows of 0.4 s, and the start
        "wall time, 16 GPUs": "6.96 h",
        "failed rows": "100,000",
        "candidates stored": "16,000,000",
        "speech, best candidates": "833 h",
        "speech, all stored ones": "13,333 h",
        "output": "100,000 MB",
        "cost": "278.56",
        "prepare, s per row": "0.100",
        "sample, s per row": "0.400",
        "rank, s per row": "0.200",
        "write, s per row": "0.0100",
    }


def test_without_gpus_there_is_no_price() -> None:
    text = describe(forecast(gpus=0, failed=0), 2.5)
    assert "cost" not in text
    assert "CPU core hours" in text


@pytest.mark.parametrize("option", [["--sample-rows", "0"], ["--temperature", "-1"], ["--gpus", "0"]])
def test_bad_options_end_it_at_once(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--manifest", "m.jsonl", "--model", "m", *option])
    assert ended.value.code == 2
    assert "is out of range" in capsys.readouterr().err


@pytest.mark.proof
def test_the_command(tmp_path: Path) -> None:
    """Twice on processors: as it is, and for GPUs, of which no trial here can know anything."""
    model = write_random_checkpoint(tmp_path / "model")
    write_clip(tmp_path / "a.wav", 0.4, 16_000)
    rows = [{"id": i, "text": f"This is number {i}.", "audio": "a.wav"} for i in range(200)]
    manifest = write_jsonl(tmp_path / "m.jsonl", rows)
    options = [
        "--num-candidates",
        "2",
        "--max-new-tokens",
        "12",
        "--sample-rows",
        "8",
        "--rows-per-block",
        "2",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(tmp_path / "tmp"),
        "CLVP_CACHE": str(tmp_path / "c"),
    }
    (tmp_path / "tmp").mkdir()
    # Ray makes sockets below its folder, whose names must be short.
    ray_folder = tempfile.mkdtemp(prefix="clvp-ray-", dir="/tmp")
    environment["RAY_TMPDIR"] = ray_folder

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.plan", "--manifest", str(manifest), "--model", str(model)]
        return subprocess.run(
            [*command, *options, *more],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=environment,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 of 200 rows tried in ")
    assert "candidates stored                    400\n" in done.stdout
    assert not list((tmp_path / "tmp").glob("clvp-trial-*"))
    refused = run("--gpus", "4")
    assert refused.returncode == 1
    assert "this machine has no GPU" in refused.stderr
    shutil.rmtree(ray_folder, ignore_errors=True)
