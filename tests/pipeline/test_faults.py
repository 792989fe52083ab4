"""Processes that die, errors that concern the run, and signals: real runs in processes of their own."""

import json
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.output.folder import OutputFolder
from tests.soak.output import Stored, Watch, check_finished, check_stored, differences, read_stored
from tests.soak.processes import kill, processes_of, victims, wait_until
from tests.soak.workload import Run, Workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 400.0
FAULTY = ("-m", "tests.pipeline.faulty_job")
PREFIX = "python -m jobs.synthesize: "


def ended(run: Run, code: int) -> list[str]:
    """Wait for the run's own end and that of its processes; returns the lines that it printed."""
    wait_until(lambda: run.has_ended, SECONDS, "the run to end")
    assert run.process.returncode == code, run.text()
    wait_until(lambda: not processes_of(run.pid), 60, "the run's processes to end")
    assert "Traceback" not in run.text()
    return run.text().splitlines()


def failed(run: Run) -> str:
    """The one message that a failed run ends with."""
    messages = [line for line in ended(run, 1) if line.startswith(PREFIX)]
    assert len(messages) == 1, run.text()
    return messages[0].removeprefix(f"{PREFIX}error: ")


def wait_for_rows(run: Run, output: Path, more: int = 4) -> None:
    """Until the run has stored some rows more than there were."""
    watch = Watch(OutputFolder(str(output)))
    wanted = watch.look() + more
    wait_until(lambda: run.has_ended or watch.look() >= wanted, SECONDS, "rows to be stored", pause=0.01)
    assert not run.has_ended, run.text()


def finish(workload: Workload, output: Path, undisturbed: Stored) -> None:
    """Continue to the end, which must be that of an undisturbed run."""
    with Run(workload, str(output)) as run:
        ended(run, 0)
    stored = read_stored(OutputFolder(str(output)))
    check_finished(stored, workload)
    assert differences(stored, undisturbed) == []


def interrupt(workload: Workload, output: Path, number: signal.Signals, code: int) -> None:
    """Send a signal to the driver of a run in the middle of it."""
    with Run(workload, str(output)) as run:
        wait_for_rows(run, output)
        run.process.send_signal(number)
        lines = ended(run, code)
    assert lines[-1].startswith(PREFIX)
    assert "the same command continues" in lines[-1]
    assert sum(line.startswith(PREFIX) for line in lines) == 1
    check_stored(read_stored(OutputFolder(str(output))), workload)


def lose(workload: Workload, output: Path, part: str, name: str) -> None:
    """Kill a process of Ray's own. Ray itself would end the driver up to a minute later, past every
    `finally`, and print its state.
    """
    with Run(workload, str(output)) as run:
        wait_for_rows(run, output)
        (found,) = victims(run.pid, part)
        kill([found])
        assert failed(run).startswith(f"Ray's {name} is gone")
        assert "state-dump" not in run.text()
    check_stored(read_stored(OutputFolder(str(output))), workload)


def test_signals_a_lost_folder_and_dead_processes_change_no_token(
    workload: Workload, undisturbed: Stored, tmp_path: Path
) -> None:
    """One output, begun by four runs: two are told to end, one loses Ray's own process, and in the last one
    the sampler's process is killed, and replaced. A storage that fails is the full disk's test.
    """
    (tmp_path / "file").write_text("")
    with Run(workload, str(tmp_path / "file" / "out")) as run:
        assert str(tmp_path / "file") in failed(run)
    output = tmp_path / "out"
    interrupt(workload, output, signal.SIGINT, 130)
    interrupt(workload, output, signal.SIGTERM, 143)
    lose(workload, output, "raylet", "raylet")  # the soak kills the GCS as well
    with Run(workload, str(output)) as run:
        wait_for_rows(run, output)
        samplers = victims(run.pid, "sampler")
        assert len(samplers) == 1
        kill(samplers)
        ended(run, 0)
    stored = read_stored(OutputFolder(str(output)))
    check_finished(stored, workload)
    assert differences(stored, undisturbed) == []


def test_a_row_that_ends_its_process_every_time_takes_no_other_with_it(
    workload: Workload, undisturbed: Stored, tmp_path: Path
) -> None:
    """One row each for a task and for an actor, among 24."""
    some = first_rows(workload, 24)
    expected = undisturbed.data.filter(pc.is_in(undisturbed.data["id"], value_set=_array(some.ids)))
    good = expected["id"].to_pylist()
    faults = {"audio": good[2], "rank": good[12]}
    with Run(some, str(tmp_path), environment={"FAULTS": json.dumps(faults)}, command=FAULTY) as run:
        ended(run, 0)
    stored = read_stored(OutputFolder(str(tmp_path)))
    others = expected.filter(pc.invert(pc.is_in(expected["id"], value_set=_array(set(faults.values())))))
    assert stored.data.equals(others), "all other rows, with the same tokens and scores"
    errors = {row["id"]: row for row in stored.errors.to_pylist() if row["stage"] != "manifest"}
    died = {row_id: row["stage"] for row_id, row in errors.items() if row["type"] == "ProcessDied"}
    assert died == {row_id: stage for stage, row_id in faults.items()}
    assert set(errors) == some.ids - set(good) | set(died)
    assert all("died" in errors[row_id]["message"] for row_id in died)
    assert all(errors[row_id]["source"].startswith(str(some.manifest)) for row_id in died)


def first_rows(workload: Workload, count: int) -> Workload:
    """The same with fewer rows."""
    lines = workload.manifest.read_text().splitlines()[:count]
    manifest = workload.manifest.with_name(f"first-{count}.jsonl")
    manifest.write_text("\n".join(lines))
    ids = [json.loads(line)["id"] for line in lines]
    unique = frozenset(filter(None, ids))
    return Workload(manifest, workload.model, unique, len(ids) - len(unique))


def _array(ids: Iterable[str]) -> pa.Array:
    return pa.array(sorted(ids), pa.string())


def test_a_model_whose_loading_ends_the_process_ends_the_run(workload: Workload, tmp_path: Path) -> None:
    with Run(workload, str(tmp_path), environment={"FAULTS": '{"load": true}'}, command=FAULTY) as run:
        message = failed(run)
    assert "the process that loads the model of stage sample has died" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own, which is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_more_space_continues_it(
    workload: Workload, undisturbed: Stored, small_disk: Path
) -> None:
    output = small_disk / "out"
    with Run(workload, str(output)) as run:
        assert "No space left on device" in failed(run)
    check_stored(read_stored(OutputFolder(str(output))), workload)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish(workload, output, undisturbed)
