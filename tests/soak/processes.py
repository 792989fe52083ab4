"""The processes of a run. Each run is started in a session of its own, which all that it starts belong to."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# What the title of a process holds, by the part that it has in a run.
TITLES = {
    "sampler": "MapWorker(MapBatches(sample))",
    "ranker": "MapWorker(MapBatches(rank))",
    "decoder": "MapWorker(MapBatches(waveform))",
    "audio": "ray::MapBatches(prepare)",
    "raylet": "/raylet/raylet ",
    "gcs": "/gcs_server ",
}


@dataclass(frozen=True)
class Process:
    """A process that is alive; `title` is its command line, which Ray's workers replace by what they do."""

    pid: int
    title: str


def processes_of(session: int) -> list[Process]:
    """All living processes of a session; zombies do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # After the name in parentheses: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(Process(int(entry.name), title.strip()))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def victims(session: int, part: str) -> list[Process]:
    """The processes of a session that have this part in it."""
    return [process for process in processes_of(session) if TITLES[part] in process.title]


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL; those that are gone already are no error."""
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_session(session: int, spare: int | None = None) -> None:
    """SIGKILL to all processes of a session but `spare`, again and again until there are none."""

    def none_left() -> bool:
        left = [process for process in processes_of(session) if process.pid != spare]
        kill(left)
        return not left

    wait_until(none_left, 60, f"the processes of session {session} to be gone")


def wait_until(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.05) -> None:
    """Raises TimeoutError when the condition does not hold within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)
