"""The command for GPUs, rehearsed on a CPU: tests and benchmarks that have not run on one yet still run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import PARTS, ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute of work
def test_the_rehearsal_does_every_part_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.gpu",
        "--rehearse",
        "--output",
        str(tmp_path),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    failed = [path.read_text() for path in tmp_path.glob("*.failed.md")]
    assert (first.returncode, failed) == (0, []), first.stderr
    names = [line.split(":")[0] for line in first.stdout.splitlines()]
    assert names == [part.name for part in PARTS]
    for part in PARTS:
        text = (tmp_path / f"{part.name}.md").read_text()
        assert "| --- |" in text if part.benchmark else " passed" in text
        assert " skipped" not in text
    report = (tmp_path / "gpu.md").read_text()
    assert "Versus the bandwidth of the GPU" in report
    assert "bfloat16" in report
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "")
