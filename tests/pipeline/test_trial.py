"""A trial on a real Ray instance, against the run that it foretells."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from clvp.sampling import SamplingParams
from pipeline.errors import ManifestError, RunError
from pipeline.output.folder import OutputFolder
from pipeline.run import synthesize
from pipeline.settings import ExecutionSettings, ResultSettings, Run
from pipeline.stream.cluster import Cluster
from pipeline.trial import Forecast, Trial, run_trial, stored_bytes
from tests.pipeline.clips import write_clip, write_jsonl

SETTINGS = ResultSettings(num_candidates=4, sampling=SamplingParams(max_new_tokens=24, seed=5))
EXECUTION = ExecutionSettings(rows_per_block=4, torch_threads=1)
RUN = Run((), "", "", SETTINGS, EXECUTION)
ROWS, BROKEN = 96, 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row in eight has no clip; texts of three lengths; two ids occur twice."""
    folder = tmp_path_factory.mktemp("trial")
    write_clip(folder / "a.wav", 0.4, 16_000)
    rows = [
        {
            "id": f"row-{i}",
            "text": " ".join(["So it goes on."] * (1 + 3 * (i % 3))),
            "audio": "none.wav" if i % 8 == 3 else "a.wav",
            "n": i,
        }
        for i in range(ROWS)
    ]
    return write_jsonl(folder / "manifest.jsonl", [*rows, *rows[:2]])


@pytest.mark.slow
def test_a_forecast_against_the_run(
    ray_instance: None, manifest: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run = Run((str(manifest),), str(tmp_path / "out"), str(checkpoint), SETTINGS, EXECUTION)
    forecast = run_trial(run, sample_rows=40, scratch=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert (forecast.trial.rows, forecast.num_rows) == (40, ROWS)
    assert forecast.tried_on.gpus == forecast.devices == 2
    summary = synthesize(run)
    totals = summary.totals
    assert totals.failed == BROKEN
    # 40 rows give speech within some percent; of bytes more, since every column of a file costs some itself.
    assert forecast.scaled(forecast.trial.failed) == pytest.approx(BROKEN, abs=8)
    assert forecast.scaled(forecast.trial.candidates) == pytest.approx(totals.candidates, rel=0.1)
    assert forecast.scaled(forecast.trial.all_s) / 3600 == pytest.approx(totals.audio_hours, rel=0.2)
    assert 0 < forecast.trial.best_s < forecast.trial.all_s
    out = OutputFolder(run.output)
    size = sum(
        stored_bytes(out, folder, name) for folder in ("data", "errors") for name in out.parquet_files(folder)
    )
    assert size < sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert forecast.scaled(forecast.trial.num_bytes) == pytest.approx(size, rel=0.5)
    assert {"sample", "rank", "write"} < set(forecast.trial.stages)
    assert 0 < forecast.trial.pace * forecast.trial.rows <= forecast.trial.seconds <= forecast.wall_s


def trial_of(rows: int = 50) -> Trial:
    stages = {"prepare": 0.1, "sample": 0.4}
    return Trial(rows, 5, 16 * rows, 480.0, 30.0, 5000, seconds=40.0, pace=0.4, stages=stages)


def test_the_start_counts_once_and_the_pace_for_every_row() -> None:
    one = Forecast(trial_of(), 1000, Cluster(8, 1), Cluster(8, 1))
    assert one.wall_s == pytest.approx(20 + 400)
    eight = Forecast(trial_of(), 1000, Cluster(8, 1), Cluster(8, 8))
    assert eight.wall_s == pytest.approx(20 + 50)
    assert eight.device_hours == pytest.approx(8 * 70 / 3600)
    assert one.scaled(one.trial.failed) == 100
    on_cores = Forecast(trial_of(), 1000, Cluster(2, 0), Cluster(2, 0))
    assert (on_cores.devices, on_cores.wall_s) == (2, pytest.approx(420))


@pytest.mark.slow
def test_nothing_to_try(ray_instance: None, checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"id": None, "text": "a", "audio": "a.wav"}]
    run = Run((str(write_jsonl(tmp_path / "m.jsonl", rows)),), "", str(checkpoint), SETTINGS, EXECUTION)
    with pytest.raises(ManifestError, match="no row"):
        run_trial(run)
    write_jsonl(tmp_path / "m.jsonl", [{"id": "a", "text": "a", "audio": "a.wav"}])
    with pytest.raises(RunError, match="cannot be used"):
        run_trial(replace(run, model=str(tmp_path)), scratch=str(tmp_path))
    assert os.listdir(tmp_path) == ["m.jsonl"]
