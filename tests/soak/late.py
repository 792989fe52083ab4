"""Drivers that sleep longer than their lease and wake up when another one has finished their run.

Real drivers on a real S3 server, without Ray and models (`tests.pipeline.driver_only`), with a lease of a few
seconds. One, a process of its own, is stopped at a drawn moment, by SIGSTOP, or inside an upload, which a
relay holds back and lets arrive when everything is over; a second one does the run to its end, and the first
goes on.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline import storage
from pipeline.output.folder import OutputFolder
from tests.pipeline.clips import write_jsonl
from tests.pipeline.driver_only import run_leased
from tests.pipeline.s3_relay import s3_relay
from tests.s3_server import S3Server
from tests.soak.processes import wait_until

ROWS = 30
PAUSE = 0.08  # seconds that a block takes
SECONDS = (0.3, 2.0, PAUSE)  # the first two: between the beats of a lease, and until it has ended
UPLOADS = ("_parts/", "data/", "errors/", "_lock", "run.json")  # that are held back in turn


def late_drivers(
    server: S3Server, folder: Path, rounds: int, seed: int, say: Callable[[str], None]
) -> Counter[str]:
    """Play it `rounds` times, every other time inside an upload; AssertionError for a row doubled or lost.

    Returns how often the first driver was stopped how.
    """
    generator = random.Random(seed)
    rows = [
        {"id": f"r{i:02}", "text": f"text {i:02}", "audio": None if i % 7 == 3 else "a.wav"}
        for i in range(ROWS)
    ]
    manifest = write_jsonl(folder / "late.jsonl", rows)
    played: Counter[str] = Counter()
    for number in range(rounds):
        key = f"late-{seed}-{number}"
        upload = UPLOADS[number // 2 % len(UPLOADS)] if number % 2 else None
        with s3_relay(server) as relay:
            relay.hold(upload, skip=generator.randrange(2))
            first = _start(manifest, relay.uri(key))
            try:
                if upload is None:
                    wait_until(partial(storage.list_names, server.uri(key), "_lock"), 200, "its lease")
                    time.sleep(generator.uniform(0, ROWS / 2 * PAUSE * 2))
                else:
                    relay.reached.wait(200)
                first.send_signal(signal.SIGSTOP)
                run_leased(str(manifest), server.uri(key), *SECONDS)
                relay.release()
                first.send_signal(signal.SIGCONT)
                ended = first.wait(200)
            finally:
                first.kill()
        _check(OutputFolder(server.uri(key)), rows)
        run_leased(str(manifest), server.uri(key), *SECONDS)
        _check(OutputFolder(server.uri(key)), rows)
        played[f"inside an upload to {upload}" if relay.reached.is_set() else "between uploads"] += 1
        say(f"round {number}: held back {upload}, ended with {ended}")
    return played


def _start(manifest: Path, output: str) -> subprocess.Popen[bytes]:
    command = ["-m", "tests.pipeline.driver_only", str(manifest), output, *map(str, SECONDS)]
    return subprocess.Popen([sys.executable, *command], cwd=Path(__file__).parents[2])


def _check(output: OutputFolder, rows: list[dict[str, str | None]]) -> None:
    found = {
        name: [
            row
            for file in output.parquet_files(name)
            for row in output.read_table(name, file)["id"].to_pylist()
        ]
        for name in ("data", "errors")
    }
    wanted = {
        "data": [r["id"] for r in rows if r["audio"]],
        "errors": [r["id"] for r in rows if not r["audio"]],
    }
    assert {name: sorted(ids) for name, ids in found.items()} == wanted, found
