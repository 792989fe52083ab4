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
from pipeline.forecast import Fleet, Trial, TrialBlock, forecast
from pipeline.stream.cluster import Cluster
from pipeline.trial import Trialled
from tests.pipeline.clips import write_clip, write_jsonl


def trialled(is_gpu: bool, failed: int = 1, blocks: int = 5) -> Trialled:
    seconds = {"prepare": 1.0, "sample": 4.0, "rank": 2.0, "write": 0.1}
    block = TrialBlock(10, failed, 160, 30.0, 480.0, 1e6, seconds)
    fleet = Fleet({"sample": 16, "rank": 16}, 16, is_gpu)
    return Trialled(
        Trial(1_000_000, [block] * blocks, 60.0), fleet, Cluster(8, 1.0 if is_gpu else 0.0), 0, 90
    )


def test_what_is_printed() -> None:
    trial = trialled(is_gpu=True)
    lines = describe(trial, forecast(trial.trial, trial.fleet), 2.5).splitlines()
    assert lines[0] == "50 of 1,000,000 rows tried in 1.50 min, on 8 CPU cores and 1 GPUs"
    cells = {line[:26].strip(): line[26:].split() for line in lines[2:] if line}
    assert cells["GPU hours"] == ["111.4", "111.4", "to", "111.4"]  # 1e6 rows of 0.4 s, and the start
    assert cells["wall time, 16 GPUs"][:2] == ["6.96", "h"]
    assert cells["failed rows"][0] == "100,000"
    assert cells["candidates stored"][0] == "16,000,000"
    assert cells["speech, best candidates"][:2] == ["833", "h"]
    assert cells["output"][:2] == ["100", "GB"]
    assert cells["cost"][0] == "278.48"  # 111.392 GPU-hours
    assert cells["sample"] == ["0.400", "16", "100", "%", "all", "others", "wait", "for", "it"]
    assert cells["rank"] == ["0.200", "16", "50", "%"]
    assert cells["CPU cores that feed it"] == ["4.4"]


def test_what_cannot_be_known_is_not_printed() -> None:
    trial = trialled(is_gpu=False, failed=0, blocks=1)
    text = describe(trial, forecast(trial.trial, trial.fleet), 2.5)
    assert "cost" not in text
    assert "CPU core hours" in text
    assert "to ?" in text
    assert "inf" not in text


@pytest.mark.parametrize("option", [["--sample-rows", "0"], ["--temperature", "-1"], ["--gpus", "0"]])
def test_bad_options_end_it_at_once(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--manifest", "m.jsonl", "--model", "m", *option])
    assert ended.value.code == 2
    assert "is out of range" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """Twice on processors: as it is, and for GPUs, of which no trial here can know anything."""
    model = write_random_checkpoint(tmp_path / "model")
    write_clip(tmp_path / "a.wav", 0.4, 16_000)
    rows = [{"id": i, "text": f"This is number {i}.", "audio": "a.wav"} for i in range(200)]
    manifest = write_jsonl(tmp_path / "m.jsonl", rows)
    options = [
        "--num-candidates",
        "2",
        "--max-speech-tokens",
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
    assert "candidates stored                    400   400 to 400" in done.stdout
    assert not list((tmp_path / "tmp").glob("clvp-trial-*"))
    refused = run("--gpus", "4")
    assert refused.returncode == 1
    assert "this machine has no GPU" in refused.stderr
    shutil.rmtree(ray_folder, ignore_errors=True)
