"""A trial on a real Ray instance, against the run that it foretells."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from clvp.sampling import SamplingParams
from pipeline.errors import ManifestError, RunError
from pipeline.forecast import forecast
from pipeline.run import synthesize
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run
from pipeline.stream.cluster import Cluster
from pipeline.trial import Trialled, planned_fleet, run_trial
from tests.pipeline.clips import write_clip, write_jsonl
from tests.pipeline.ray_instance import ray_instance

__all__ = ["ray_instance"]

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
        }
        for i in range(ROWS)
    ]
    return write_jsonl(folder / "manifest.jsonl", [*rows, *rows[:2]])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def trialled(ray_instance: None, manifest: Path, checkpoint: Path, scratch: Path) -> Trialled:
    return run_trial(
        (str(manifest),), str(checkpoint), SETTINGS, EXECUTION, sample_rows=40, scratch=str(scratch)
    )


@pytest.mark.slow
def test_a_forecast_against_the_run(
    trialled: Trialled, manifest: Path, checkpoint: Path, scratch: Path, tmp_path: Path
) -> None:
    assert list(scratch.iterdir()) == []
    blocks = trialled.trial.blocks
    assert trialled.trial.num_rows == ROWS
    assert trialled.rejected == 2
    assert [block.rows for block in blocks] == [4] * 10
    assert trialled.cluster.gpus == 2
    expected = forecast(trialled.trial, trialled.fleet)
    summary = synthesize(Run((str(manifest),), str(tmp_path / "out"), str(checkpoint), SETTINGS, EXECUTION))
    totals = summary.totals
    assert expected.failed.low <= totals.failed == BROKEN <= expected.failed.high
    assert expected.candidates.low <= totals.candidates <= expected.candidates.high
    # Ten blocks of this manifest give speech and bytes within some percent; its files have a kilobyte each
    # that does not grow with the rows.
    assert expected.all_hours.expected == pytest.approx(totals.audio_hours, rel=0.2)
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert expected.num_bytes.expected == pytest.approx(size, rel=0.4)
    assert expected.wall_s.expected > 0
    assert {load.name for load in expected.loads} == {"prepare", "sample", "rank", "write"}


@pytest.mark.slow
def test_a_fleet_of_eight_gpus(trialled: Trialled) -> None:
    one = forecast(trialled.trial, planned_fleet(trialled.cluster, RUN, 1))
    eight = forecast(trialled.trial, planned_fleet(trialled.cluster, RUN, 8))
    start = one.wall_s.expected - 8 * (one.wall_s.expected - eight.wall_s.expected) / 7
    assert eight.wall_s.expected == pytest.approx(start + (one.wall_s.expected - start) / 8)
    assert eight.feeding_cores == pytest.approx(8 * one.feeding_cores)


def test_workers_of_a_fleet() -> None:
    fleet = planned_fleet(Cluster(16, 1), replace(RUN, execution=ExecutionSettings(samplers=Pool(1, 6))), 8)
    assert (fleet.workers, fleet.devices, fleet.is_gpu) == ({"sample": 6, "rank": 8}, 8, True)
    fleet = planned_fleet(Cluster(4, 0), replace(RUN, execution=ExecutionSettings()), None)
    assert fleet.workers == {"sample": 1, "rank": 1, "prepare": 3.5, "write": 14}
    assert (fleet.devices, fleet.is_gpu) == (4, False)


@pytest.mark.slow
def test_nothing_to_try(ray_instance: None, checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"id": None, "text": "a", "audio": "a.wav"}]
    with pytest.raises(ManifestError, match="no row"):
        run_trial((str(write_jsonl(tmp_path / "m.jsonl", rows)),), str(checkpoint), SETTINGS, EXECUTION)
    with pytest.raises(RunError, match="cannot be used"):
        run_trial((str(tmp_path / "m.jsonl"),), str(tmp_path), SETTINGS, EXECUTION)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("clvp-trial")]
