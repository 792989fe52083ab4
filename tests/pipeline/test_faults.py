"""Processes that die, errors that concern the run, and signals, in real runs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs import synthesize
from pipeline import stages
from pipeline.output.folder import OutputFolder
from pipeline.stages import OnBlock, Work
from tests.remade import Make, remade
from tests.soak.moments import VICTIMS, Kill, draw_kills
from tests.soak.output import Stored, Watch, check_finished, check_stored, differences, read_stored
from tests.soak.processes import kill, processes_of, victims, wait_until
from tests.soak.soak import run_without_ray, soak
from tests.soak.workload import Run, Workload, make_workload

pytestmark = pytest.mark.timeout(900)

SECONDS = 400.0
PREFIX = "python -m jobs.synthesize: "


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, Stored]:
    """Rows whose candidates become sound and are ranked by a measure, and what an undisturbed run stores."""
    folder = tmp_path_factory.mktemp("sounding")
    workload = make_workload(folder, rows=24, sound=True)
    measured = {
        "--measure": "tests.pipeline.fake_measures:Loudness",
        "--audio": "all",
        "--rank-by": "1 - loud",
        "--rows-per-block": "2",
    }
    workload = replace(workload, options={**workload.options, **measured})
    return workload, run_without_ray(workload, str(folder / "undisturbed"))


def wait_for_rows(run: Run, output: Path) -> None:
    """Until the run has stored a row more than there were."""
    watch = Watch(OutputFolder(str(output)))
    before = watch.look()
    wait_until(lambda: run.has_ended or watch.look() > before, SECONDS, "rows to be stored", pause=0.01)
    assert not run.has_ended, run.text()


def killed(run: Run, part: str) -> None:
    """SIGKILL to the one process that has this part in a run."""
    (process,) = victims(run.pid, part)
    kill([process])


def ended(run: Run, code: int, workload: Workload, output: Path) -> str:
    """Wait for the end of a run and its processes; returns the one message that it ends with."""
    wait_until(lambda: run.has_ended, SECONDS, "the run to end")
    assert run.process.returncode == code, run.text()
    wait_until(lambda: not processes_of(run.pid), 60, "the run's processes to end")
    assert "Traceback" not in run.text()
    assert "state-dump" not in run.text()
    check_stored(read_stored(OutputFolder(str(output))), workload)
    (message,) = [line for line in run.text().splitlines() if line.startswith(PREFIX)]
    return message


def interrupt(run: Run, number: signal.Signals, code: int, workload: Workload, output: Path) -> None:
    """Send a signal to the driver, which ends with one message."""
    run.process.send_signal(number)
    message = ended(run, code, workload, output)
    assert "the same command continues" in message
    assert run.text().splitlines()[-1] == message


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_signals_and_dead_processes_change_neither_tokens_nor_sound(
    sounding: tuple[Workload, Stored], tmp_path: Path
) -> None:
    """One output, begun by five runs: two are told to end, the first of them after the loss of processes that
    are replaced, one loses Ray's own, and one is killed with all its processes.
    """
    workload, undisturbed = sounding
    assert undisturbed.data is not None
    assert undisturbed.data["audio"].null_count == 0
    assert all(len(row) == 3 for row in undisturbed.data["measures"].to_pylist())
    output = tmp_path / "out"
    with Run(workload, str(output)) as run:
        wait_for_rows(run, output)
        killed(run, "sampler")
        killed(run, "decoder")
        wait_for_rows(run, output)
        interrupt(run, signal.SIGINT, 130, workload, output)
    with Run(workload, str(output)) as run:
        wait_until(lambda: "blocks of up to" in run.text(), SECONDS, "models to be loaded")
        interrupt(run, signal.SIGTERM, 143, workload, output)
    with Run(workload, str(output)) as run:
        wait_for_rows(run, output)
        killed(run, "raylet")  # Ray itself would end the driver up to a minute later, past every `finally`
        assert "Ray's raylet is gone" in ended(run, 1, workload, output)
    kills = [Kill("ray", "end", share=1.0, delay=0.0)]
    assert soak(workload, str(output), kills, undisturbed, seed=1).killed == kills


def test_moments_are_drawn_from_the_seed() -> None:
    kills = draw_kills(16, seed=3)
    assert kills == draw_kills(16, seed=3) != draw_kills(16, seed=4)
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert {kill.phase for kill in kills} == {"startup", "streaming", "publishing", "end"}
    assert [kill.share for kill in kills] == sorted(kill.share for kill in kills)


def ended_by(row_id: str) -> Callable[[Make], Make]:
    """A stage whose process ends with a row, by SIGKILL as a crash in native code does."""

    def ending(make: Make) -> Make:
        def made(work: Work) -> OnBlock:
            stage = make(work)

            def call(table: pa.Table) -> pa.Table:
                if row_id in table["id"].to_pylist():
                    os.kill(os.getpid(), signal.SIGKILL)
                return stage(table)

            return call

        return made

    return ending


@pytest.mark.slow
def test_a_row_that_ends_its_process_every_time_takes_no_other_with_it(
    ray_instance: None,
    workload: Workload,
    undisturbed: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row each for a task and for an actor."""
    assert undisturbed.data is not None
    faults = {"audio": undisturbed.done[2], "rank": undisturbed.done[12]}
    ending = {name: ended_by(row_id) for name, row_id in faults.items()}
    monkeypatch.setattr(stages, "declared", remade(ending))
    assert synthesize.main(workload.arguments(str(tmp_path))) == 0
    stored = read_stored(OutputFolder(str(tmp_path)))
    is_fault = pc.is_in(undisturbed.data["id"], value_set=pa.array(faults.values()))
    others = undisturbed.data.filter(pc.invert(is_fault))
    assert stored.data is not None
    assert stored.errors is not None
    assert stored.data.equals(others), "all other rows, with the same tokens and scores"
    errors = {row["id"]: row for row in stored.errors.to_pylist() if row["stage"] != "manifest"}
    died = {row_id: row["stage"] for row_id, row in errors.items() if row["type"] == "ProcessDied"}
    assert died == {row_id: stage for stage, row_id in faults.items()}
    assert set(errors) == {*undisturbed.failed, *died}
    assert all("died" in errors[row_id]["message"] for row_id in died)
    assert all(errors[row_id]["source"].startswith(str(workload.manifest)) for row_id in died)


@pytest.mark.slow
def test_a_model_whose_loading_ends_the_process_ends_the_run(
    ray_instance: None,
    workload: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def end(_: Work) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(stages, "declared", remade({"sample": lambda make: end}))
    assert synthesize.main(workload.arguments(str(tmp_path))) == 1
    assert "the process that loads the model of stage sample has died" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own, which is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_more_space_continues_it(
    ray_instance: None,
    workload: Workload,
    undisturbed: Stored,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = OutputFolder(str(small_disk / "out"))
    assert synthesize.main(workload.arguments(output.uri)) == 1
    assert "No space left on device" in capsys.readouterr().err
    check_stored(read_stored(output), workload)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert synthesize.main(workload.arguments(output.uri)) == 0
    check_finished(read_stored(output), workload)
    assert differences(read_stored(output), undisturbed) == []
