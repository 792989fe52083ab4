"""A run as a submitted job: its log, how it stops, and how the next submission continues it."""

import asyncio
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.cluster.ray_head import ROOT, Head, ray_head, wait_for
from tests.cluster.workload import NUM_ROWS, Workload, check_output

# Everything that a job's log may hold: what Ray says of the job itself, lines of progress, and the ending.
LINES = [
    r"Running entrypoint for job \S+: python -m jobs\.synthesize .*",
    r"\d{4}-\d\d-\d\d [\d:,]+\tINFO job_manager\.py:\d+ -- Runtime env is setting up\.",
    r"\[\d+:\d\d\] [\d,]+/[\d,]+ rows, .*",
    r"\[\d+:\d\d\] ([\d,]+ rows in the manifest: |blocks of up to ).*",
    r" +(rows|failed rows|candidates|speech tokens|speech|time|output|errors)  \S.*",
    r"python -m jobs\.synthesize: terminated; the same command continues where it ended",
]
# Ray's native code warns of the first actor pool of every Ray Data stream; no setting stops this one alone.
ONCE = r"\[.* E \d+ \d+\] core_worker\.cc:\d+: Actor with class name: .* and max_restarts > 0\. .*"


def rows_done(log: str) -> int:
    """As the last line of progress says."""
    found = re.findall(r"^\[[\d:]+\] ([\d,]+)/[\d,]+ rows", log, re.MULTILINE)
    return int(found[-1].replace(",", "")) if found else 0


def unreadable_lines(log: str) -> list[str]:
    lines = [line for line in log.splitlines() if not any(re.fullmatch(form, line) for form in LINES)]
    once = [line for line in lines if re.fullmatch(ONCE, line)]
    return [line for line in lines if line not in once[:1]]


def follow(client: JobSubmissionClient, job: str, enough: Callable[[str], bool]) -> str:
    """The log as it comes, until there is enough of it or the job has ended."""

    async def read() -> str:
        log = ""
        async for lines in client.tail_job_logs(job):
            log += lines
            if enough(log):
                break
        return log

    return asyncio.run(asyncio.wait_for(read(), 280))


def submit(client: JobSubmissionClient, workload: Workload, output: Path) -> str:
    environment = yaml.safe_load((ROOT / "examples/runtime_env.yaml").read_text())
    entrypoint = shlex.join(["python", *workload.arguments(output)])
    runtime_env = {"working_dir": str(ROOT), "env_vars": environment["env_vars"]}
    return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)


def ended(client: JobSubmissionClient, job: str) -> JobStatus | None:
    status = client.get_job_status(job)
    return status if status.is_terminal() else None


def connect(head: Head) -> JobSubmissionClient:
    token = (head.folder / "home/.ray/auth_token").read_text()
    return JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_job_is_followed_stopped_half_way_and_continued(workload: Workload, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with ray_head("--num-cpus=2") as head:
        client = wait_for("the job API", lambda: connect(head), 60)
        first = submit(client, workload, output)
        log = follow(client, first, lambda log: rows_done(log) >= 20)
        assert client.get_job_status(first) == JobStatus.RUNNING, log
        stopping = time.monotonic()
        assert client.stop_job(first)
        assert wait_for("the job to stop", lambda: ended(client, first), 120) == JobStatus.STOPPED
        print(f"stopped in {time.monotonic() - stopping:.1f} s")
        log = client.get_job_logs(first)
        print(log)
        assert unreadable_lines(log) == []
        assert log.splitlines()[-1].endswith("terminated; the same command continues where it ended")
        check_what_is_left(output, rows_done(log))

        second = submit(client, workload, output)
        log = follow(client, second, lambda log: False)
        print(log)
        assert wait_for("the job to end", lambda: ended(client, second), 60) == JobStatus.SUCCEEDED, log
        assert unreadable_lines(log) == []
        before = re.search(r"rows in the manifest: (\d+) done before", log)
        assert before is not None
        assert 20 <= int(before[1]) < NUM_ROWS
    check_output(output, workload)


def check_what_is_left(output: Path, at_least: int) -> None:
    """Whole files only, published or not yet, and no row in two of them."""
    files = [path for name in ("data", "errors", "_parts") for path in (output / name).glob("*")]
    ids = [row for path in files for row in pq.read_table(path)["id"].to_pylist()]
    assert len(set(ids)) == len(ids) >= at_least
