"""From the head alone to several nodes of both kinds and back, and a node lost on the way."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import fake_nodes
from tests.cluster.fake_nodes import count_types, kill_node, nodes_with, running_nodes, write_bootstrap_config
from tests.cluster.ray_head import ROOT, Head, ray_head, wait_for
from tests.cluster.workload import Workload, check_output

BOTH_TWICE = {"cpu_worker": 2, "gpu_worker": 2}


@dataclass(frozen=True)
class Driver:
    """A run that is a process of this test's own, on the cluster of a head."""

    process: subprocess.Popen[bytes]
    log: Path

    def rows_done(self) -> int:
        """As the last line of progress says; the run must not have ended."""
        text = self.log.read_text()
        assert self.process.poll() is None, f"the run ended too early:\n{text}"
        found = re.findall(r"\] ([\d,]+)/[\d,]+ rows", text)
        return int(found[-1].replace(",", "")) if found else 0


@contextmanager
def driver(head: Head, arguments: list[str], log: Path) -> Iterator[Driver]:
    environment = head.client_environment() | {"RAY_ADDRESS": head.gcs}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
        )
    try:
        yield Driver(process, log)
    finally:
        process.kill()
        process.wait()
        print(log.read_text(), head.log("monitor.err"), sep="\n")  # shown when the test fails


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_the_cluster_grows_survives_a_lost_node_and_shrinks(
    workload: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()

    def note(event: str) -> None:
        with capsys.disabled():
            print(f"\n{time.monotonic() - started:6.1f} s  {event}", end="", flush=True)

    arguments = workload.arguments(tmp_path / "out", "--gpus", str(fake_nodes.MAX_WORKERS))
    options = ("--num-cpus=0", "--include-dashboard=false")
    with ray_head(*options, environment=fake_nodes.ENVIRONMENT, prepare=write_bootstrap_config) as head:
        assert set(running_nodes(head.folder)) == {fake_nodes.HEAD_ID}
        note("the head is up, alone")
        with driver(head, arguments, tmp_path / "log") as run:

            def grown() -> bool:
                run.rows_done()
                return count_types(running_nodes(head.folder)) == BOTH_TWICE

            wait_for("two nodes of both kinds", grown, 240)
            note("two CPU and two GPU nodes")
            assert "on 0 CPUs and 2 GPUs" in run.log.read_text()  # those that can come

            def samplers_at_work() -> list[str]:
                return sorted(nodes_with(head.folder, "sample")) if run.rows_done() >= 8 else []

            samplers = wait_for("the middle of the run", samplers_at_work, 120)
            kinds = running_nodes(head.folder)
            assert {kinds[node] for node in samplers} == {"gpu_worker"}
            done = run.rows_done()
            assert kill_node(head.folder, samplers[0]) > 1
            note(f"{done} rows are done; a GPU node with a sampler is killed")
            # A killed raylet may be seen for a moment still; then there would be two GPU nodes at once.
            wait_for("the node's end", lambda: samplers[0] not in running_nodes(head.folder), 60)
            wait_for("another GPU node", grown, 120)
            assert samplers[0] not in running_nodes(head.folder)
            note(f"it is replaced; {run.rows_done()} rows are done")
            assert run.process.wait(300) == 0, run.log.read_text()
            note("the run is finished")
        wait_for("the head alone", lambda: set(running_nodes(head.folder)) == {fake_nodes.HEAD_ID}, 120)
        note("the head is alone\n")
    check_output(tmp_path / "out", workload)
