"""`lint-imports` (part of `make check`) finds an import that goes up, and a circle; what a driver loads."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("pipeline/rows/plan.py", "from pipeline.stages import Work", "the wings of the pipeline"),
        ("pipeline/stages/tokens.py", "from pipeline.stages.rank import Ranker", None),
        ("pipeline/rows/columns.py", "from pipeline.rows.token_measures import NGRAM", "no circles"),
        ("clvp/mel.py", "import ray", "the model family"),
        ("pipeline/run.py", "from argparse import ArgumentParser", "the pipeline knows"),
        ("pipeline/new.py", "", "the wings of the pipeline"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, module: str, line: str, broken: str | None) -> None:
    for name in ("clvp", "pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(line + "\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    found = [text for text in result.stdout.splitlines() if text.endswith(" BROKEN")]
    assert (result.returncode != 0) == bool(found) == (broken is not None), result.stdout + result.stderr
    assert broken is None or any(text.startswith(broken) for text in found)


def test_a_driver_does_without_torch() -> None:
    """It declares stages, whose workers import torch when they make them: seconds of every start."""
    loaded = "import sys, pipeline.session, pipeline.replay, pipeline.trial; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 0


def test_loading_does_without_the_compiler() -> None:
    """Arithmetic on `meta`, of initial values say, makes torch import it: a second of each start."""
    loaded = (
        "import sys; from clvp import ClvpModelForConditionalGeneration as M; M.from_pretrained('demo');"
        "from clvp.waveform.files import load_waveform_decoder; load_waveform_decoder('demo');"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 0
