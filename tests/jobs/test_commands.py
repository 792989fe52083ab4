"""`clvp JOB`, and that a mistake in the input is told before anything heavy is loaded."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clvp.random_checkpoint import write_random_checkpoint
from jobs.__main__ import JOBS, main
from pipeline.settings import ResultSettings
from tests.pipeline.clips import write_clip, write_jsonl
from tests.pipeline.synthetic_output import make_rows, write_data, write_description

HEAVY = ["torch", "ray", "transformers", "duckdb", "matplotlib", "datasets"]
TEMPERATURE = "--temperature: temperature=-1.0 is out of range"

# Runs jobs in one process that has loaded nothing before, and tells after each what it has loaded.
PROBE = """
import contextlib, io, json, sys
from jobs.__main__ import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([code, said.getvalue(), heavy]))
"""


def told(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and words of each command, which has loaded nothing heavy."""
    arguments = [sys.executable, "-c", PROBE, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [heavy for _, _, heavy in found] == [[]] * len(commands), found
    return [(code or 0, said) for code, said, _ in found]


def test_every_job_helps_without_loading_anything_heavy() -> None:
    for job, (code, said) in zip(JOBS, told([[job, "--help"] for job in JOBS]), strict=True):
        assert code == 0
        assert f"jobs.{job} [" in said or f"{job} [options]" in said, said
        assert said.count("default:") == len([line for line in said.split("--") if "default:" in line]), said


def test_the_names_are_those_of_the_modules(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "jobs"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__", "cli", "options"}
    assert set(JOBS) == modules
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {job} " in shown for job in JOBS)
    with pytest.raises(SystemExit) as stopped:
        main(["synthesise"])
    assert stopped.value.code == 2
    assert "'synthesize'" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    model = str(write_random_checkpoint(tmp_path / "model"))
    write_clip(tmp_path / "a.wav", 0.4, 16_000)
    row = {"id": "a", "text": "So it is.", "audio": "a.wav"}
    good = str(write_jsonl(tmp_path / "good.jsonl", [row]))
    lacking = str(write_jsonl(tmp_path / "lacking.jsonl", [{"id": "a", "text": "So it is."}]))
    empty = str(write_jsonl(tmp_path / "empty.jsonl", []))
    new, config = str(tmp_path / "new"), str(tmp_path / "config.yaml")
    Path(config).write_text("results: {sampling: {temprature: 1}}")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    write_data(tmp_path / "other", make_rows(2, 2))
    write_description(tmp_path / "other", settings=dataclasses.asdict(ResultSettings(num_candidates=7)))

    write_data(tmp_path / "foreign", make_rows(2, 2))

    def run(manifest: str = good, output: str = "new", model: str = model, *more: str) -> list[str]:
        output = output if ":" in output else str(tmp_path / output)
        return ["synthesize", "--manifest", manifest, "--output", output, "--model", model, *more]

    mistakes = [
        (run("no.jsonl"), 2, "no such file"),
        (run(lacking), 2, "no column 'audio'"),
        (run(empty), 2, "the manifest has no rows"),
        (run(model=str(tmp_path / "none")), 1, "neither a local folder nor a readable hub id"),
        (run(model=str(tmp_path / "half")), 1, "holds no vocab.json"),
        (run(good, "new", model, "--temperature", "-1"), 2, TEMPERATURE),
        (run(good, "new", model, "--temprature", "1"), 2, "unrecognized arguments: --temprature 1"),
        (run(good, "new", model, "--config", config), 2, "no setting 'results.sampling.temprature'"),
        (run(output="good.jsonl"), 1, "good.jsonl is a file: name a folder"),
        (run(output="other"), 1, "num_candidates: 7 there, 16 here"),
        (run(output="foreign"), 1, "holds Parquet files but no run.json"),
        (run(model="none"), 1, "an id on the hub is USER/NAME"),
        (run(good, "new", model, "--measure", "none:Such"), 1, "No module named 'none'"),
        (run(output="s4://bucket/run"), 1, "s4:// cannot be used here"),
        (["plan", "--manifest", lacking, "--model", model], 2, "no column 'audio'"),
        (["rank", "--run", str(tmp_path), "--output", new, "--model", model], 1, "holds no run"),
        (["decode", "--run", str(tmp_path), "--output", new], 1, "holds no run"),
        (["replay", "--output", str(tmp_path), "--id", "a"], 1, "holds no run"),
        (["convert", "--autoregressive", "a.pth", "--clvp", "b.pth", "--output", "x"], 1, "no file a.pth"),
        (["train", "prepare", "--data", "x"], 2, "prepare needs --manifest"),
        (["train", "decoder", "--data", "x"], 2, "decoder needs --output"),
        (["train", "export", "--data", "x", "--output", "y"], 2, "export needs --runs"),
    ]
    for (_, code, words), (found, said) in zip(mistakes, told([c for c, _, _ in mistakes]), strict=True):
        assert found == code, said
        assert words in said
    assert not (tmp_path / "new").exists()
