"""Command lines of the main job, `rank` and `convert`; whole runs are in tests/pipeline/test_run.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from clvp import ClvpModelForConditionalGeneration
from clvp.random_checkpoint import write_random_checkpoint
from jobs import convert, rank, synthesize
from jobs.cli import describe, run_job
from jobs.options import read_run
from pipeline.errors import ManifestError, RunError, Terminated
from pipeline.progress import Summary, Totals
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run

REQUIRED = ["--manifest", "m.csv", "--output", "out", "--model", "model"]
GOLDEN = Path(__file__).parents[1] / "data" / "golden_tortoise"


def read(*arguments: str) -> Run:
    parser = synthesize.make_parser()
    return read_run(parser, parser.parse_args([*REQUIRED, *arguments]), synthesize.TEMPLATE)


def settings(*arguments: str) -> ResultSettings:
    results = read(*arguments).results
    assert isinstance(results, ResultSettings)
    return results


def execution(*arguments: str) -> ExecutionSettings:
    return read(*arguments).execution


def test_defaults_are_those_of_the_settings() -> None:
    assert settings() == ResultSettings()
    assert execution() == ExecutionSettings()


def test_options_reach_the_settings() -> None:
    given = settings(
        *("--preset", "fast", "--seed", "5", "--temperature", "0.7", "--top-k", "0", "--top-p", "0.9"),
        *("--typical-p", "0.5", "--repetition-penalty", "1", "--max-new-tokens", "300", "--no-do-sample"),
        *("--mel-positions", "skip_one", "--audio-seconds", "4", "--keep", "3", "--scoring-length", "400"),
        *("--no-unfinished-last", "--dtype", "bfloat16", "--normalizer", "english"),
    )
    assert given.num_candidates == 96
    sampling = given.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.top_p) == (5, 0.7, 0, 0.9)
    assert (sampling.typical_p, sampling.repetition_penalty, sampling.max_new_tokens) == (0.5, 1.0, 300)
    assert (sampling.do_sample, sampling.mel_positions, sampling.penalized_tokens) == (
        False,
        "skip_one",
        (1,),
    )
    assert (given.audio_seconds, given.scoring.keep, given.scoring.scoring_length) == (4.0, 3, 400)
    assert (given.scoring.unfinished_last, given.model.dtype, given.model.normalizer) == (
        False,
        "bfloat16",
        "english",
    )
    assert settings("--preset", "fast", "--num-candidates", "7").num_candidates == 7


def test_options_reach_the_execution() -> None:
    given = execution(
        *("--rows-per-block", "4", "--samplers", "2:8", "--gpus-per-sampler", "1", "--rankers", "3"),
        *("--gpus-per-ranker", "0.5", "--torch-threads", "2", "--lanes", "32", "--audio-root", "/voices"),
        *("--report-seconds", "60", "--worker-logs", "--gpus", "12"),
    )
    assert given.samplers == Pool(2, 8, num_gpus=1)
    assert given.rankers == Pool(3, 3, num_gpus=0.5)
    assert (given.rows_per_block, given.torch_threads, given.engine.lanes) == (4, 2, 32)
    assert given.gpus == 12
    assert (given.audio_root, given.report_seconds, given.worker_logs) == ("/voices", 60, True)


@pytest.mark.parametrize("module", [synthesize, rank])
def test_help_names_every_option_with_its_default(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])  # type: ignore[attr-defined]
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("--manifest", "never changes results", "(default: 500)", "(default: tortoise)"):
        assert expected in text
    assert "(default: None)" not in text
    assert "None)" not in text
    assert "(default: False)" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["--max-new-tokens", "600"], "exceeds scoring_length"),
        (["--samplers", "4:2"], "max_size=2 is out of range"),
        (["--samplers", "many"], "invalid"),
        (["--preset", "slow"], "invalid choice"),
    ],
)
def test_bad_options(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        synthesize.main([*REQUIRED, *arguments])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_bad_manifest_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    """In a process of its own, to see all that is printed; Ray would print more, and take longer."""
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint")
    arguments = ["--manifest", "/no/such.csv", "--output", str(tmp_path / "out"), "--model", str(checkpoint)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.synthesize", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        "python -m jobs.synthesize: bad manifest: manifest /no/such.csv: no such file"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ManifestError("no column"), 2, "bad manifest: no column"),
        (RunError("broken"), 1, "error: broken"),
        (PermissionError(13, "Permission denied"), 1, "Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues"),
        (Terminated(), 143, "terminated; the same command continues"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Summary:
        raise error

    assert run_job(synthesize.make_parser(), fail) == code
    assert message in capsys.readouterr().err


def test_the_summary_tells_what_a_user_asks(capsys: pytest.CaptureFixture[str]) -> None:
    totals = Totals(rows=1200, failed=3, candidates=19_200, tokens=3_000_000, unfinished=17, best_s=7200.0)
    summary = Summary("/out", totals, rejected=2, done_before=10, failed_before=1, seconds=100.0)
    lines = dict(line.split("  ", 1) for line in map(str.strip, describe(summary).splitlines()))
    assert lines == {
        "rows": "1,200, and 10 before this run",
        "failed rows": "5, and 1 before this run",
        "candidates": "19,200, 17 of them without a stop token",
        "speech tokens": "3,000,000, 30,000 per second",
        "speech": "2.00 h in the best, 38.7 h in all of them",
        "time": "1:40 min",
        "output": "/out/data",
        "errors": "/out/errors",
    }
    assert run_job(synthesize.make_parser(), lambda: summary) == 0
    assert "1,200" in capsys.readouterr().out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--autoregressive", str(GOLDEN / "autoregressive.pth"), "--clvp", str(GOLDEN / "clvp2.pth")]
    assert convert.main([*arguments, "--output", str(tmp_path / "checkpoint")]) == 0
    assert "wrote" in capsys.readouterr().out
    ClvpModelForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    swapped = ["--autoregressive", arguments[3], "--clvp", arguments[1], "--output", str(tmp_path / "no")]
    assert convert.main(swapped) == 1
    assert "error:" in capsys.readouterr().err
