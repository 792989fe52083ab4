"""A real Ray head of a test's own: process group, home, session folder and ports that nobody else has."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TypeVar

import ray.util

from tests.cluster.slow_store import CREDENTIALS

ROOT = Path(__file__).parents[2]
Value = TypeVar("Value")

MARKER = "CLVP_TEST_CLUSTER"  # every process below the head inherits it

# Fewer processes and threads than a machine of two cores would be given.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
} | CREDENTIALS


def wait_for(what: str, poll: Callable[[], Value], seconds: float, every: float = 0.2) -> Value:
    """The first true value of `poll`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := poll():
            return value
        time.sleep(every)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def free_ports(count: int) -> list[int]:
    """Ports below the range that the system hands out by itself, lest a connection takes them meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = 11_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def processes(environment: Mapping[str, str], descendants: bool = True) -> set[int]:
    """Ids of the processes that were started with these variables, and of their descendants.

    Ray's Python processes change their titles, which writes over a part of what they were started with.
    """
    wanted = {f"{name}={value}".encode() for name, value in environment.items()}
    children: dict[int, list[int]] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    known: set[int] = set()
    while found:
        known.add(pid := found.pop())
        found += [child for child in children.get(pid, ()) if descendants and child not in known]
    return known


def kill(environment: Mapping[str, str]) -> int:
    """End the processes with these variables at once, and say how many there were."""
    killed = 0
    for pid in processes(environment):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


@dataclass(frozen=True)
class Head:
    """A running head. `environment` is that of its processes, and of clients."""

    folder: Path
    gcs: str
    dashboard: str
    environment: Mapping[str, str]

    def client_environment(self) -> dict[str, str]:
        """For a driver that is not part of a node."""
        own = ("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME", MARKER)
        return {name: value for name, value in self.environment.items() if name not in own}

    def log(self, pattern: str) -> str:
        """What Ray's own log files of that name hold, for a test that fails."""
        files = sorted(self.folder.glob(f"ray/session_latest/logs/{pattern}"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-9000:]}" for file in files)


@contextlib.contextmanager
def ray_head(
    *options: str,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[Path, str], Sequence[str]] = lambda folder, gcs: (),
) -> Iterator[Head]:
    """Start `ray start --head` with more options. `prepare(home, gcs)` may write files and add options."""
    folder = Path(tempfile.mkdtemp(prefix="clvp-", dir="/tmp"))  # short: Ray puts sockets below it
    port, dashboard, client, listen, metrics = free_ports(5)
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (folder / "ray").mkdir()
    (home / ".ray/auth_token").write_text(secrets.token_hex(32))
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = inherited | ENVIRONMENT | {"AUTOSCALER_METRIC_PORT": str(metrics)} | dict(environment or {})
    env |= {"HOME": str(home), "RAY_TMPDIR": str(folder), MARKER: str(folder)}
    programs = Path(sys.executable).parent
    env["PATH"] = f"{programs}:{env['PATH']}"  # `python` is what a job's command begins with
    command = [str(programs / "ray"), "start", "--head", "--block"]
    command += [f"--port={port}", f"--ray-client-server-port={client}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={listen}", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--object-store-memory=200000000", *options, *prepare(home, gcs)]
    output = folder / "head.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder
        )
    try:

        def started() -> bool:
            assert process.poll() is None, output.read_text()
            return "Ray runtime started" in output.read_text()

        wait_for("the head to start", started, 120)
        yield Head(folder, gcs, f"http://127.0.0.1:{dashboard}", env)
    finally:
        process.terminate()  # Ray ends its processes itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        while kill({MARKER: str(folder)}):  # and what it left, such as the nodes that an autoscaler started
            process.poll()
            time.sleep(0.1)
        rmtree(folder, ignore_errors=True)
