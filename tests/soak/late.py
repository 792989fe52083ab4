"""Drivers that sleep longer than their lease and wake up when another one has finished their run.

Real drivers on a real S3 server, without Ray and models (`tests.pipeline.driver_only`), with a lease of a few
seconds. One is stopped at a drawn moment, by SIGSTOP, or inside an upload, which a relay holds back and lets
arrive when everything is over; a second one runs the same command to its end; the first goes on.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipeline.output.folder import OutputFolder
from tests.pipeline.clips import write_jsonl
from tests.pipeline.s3_relay import s3_relay
from tests.s3_server import S3Server

ROWS = 30
BEAT, LEASE, PAUSE = 0.3, 2.0, 0.08  # seconds; PAUSE: of each block
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
                    time.sleep(1.0 + generator.uniform(0, ROWS / 2 * PAUSE * 3))
                else:
                    relay.reached.wait(20)
                first.send_signal(signal.SIGSTOP)
                second = _start(manifest, server.uri(key))
                code = second.wait(60)
                assert code == 0, f"round {number}: the second driver: {_text(second)}"
                relay.release()
                first.send_signal(signal.SIGCONT)
                ended = first.wait(60)
            finally:
                first.kill()
        _check(OutputFolder(server.uri(key)), rows)
        third = _start(manifest, server.uri(key))
        assert third.wait(60) == 0, _text(third)
        _check(OutputFolder(server.uri(key)), rows)
        played[f"inside an upload to {upload}" if relay.reached.is_set() else "between uploads"] += 1
        say(f"round {number}: held back {upload}, ended with {ended}")
    return played


def _start(manifest: Path, output: str) -> subprocess.Popen[str]:
    command = ["-m", "tests.pipeline.driver_only", str(manifest), output, str(BEAT), str(LEASE), str(PAUSE)]
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def _text(process: subprocess.Popen[str]) -> str:
    return process.stdout.read() if process.stdout else ""


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
