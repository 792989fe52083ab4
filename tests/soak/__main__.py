"""Command line of the soak."""

import argparse
import dataclasses
import os
import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from pipeline import storage
from pipeline.output.folder import OutputFolder
from tests.s3_server import CREDENTIALS, S3Server, s3_server
from tests.soak.late import late_drivers
from tests.soak.moments import draw_kills
from tests.soak.output import Stored
from tests.soak.soak import run_undisturbed, soak
from tests.soak.workload import Workload, make_workload

LATE_DRIVERS = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.soak",
        description="Kill runs at drawn moments until they are done, and compare with undisturbed ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=300, help="of the manifest, some of them bad")
    parser.add_argument("--kills", type=int, default=14, help="of every kind of process in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--s3", action="store_true", help="write to an S3 server instead of a folder")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        server = None
        if options.s3:
            os.environ.update(CREDENTIALS)
            server = stack.enter_context(s3_server())
        table = _Soaks(folder, server, options.kills, options.seed).all(options.rows)
    print("\n".join(table))


class _Soaks:
    """A run, one that extends it, one that ranks it, one that tries failures again: all of them killed."""

    def __init__(self, folder: Path, server: S3Server | None, kills: int, seed: int) -> None:
        self.folder, self.server, self.kills, self.seed = folder, server, kills, seed
        head = "| what | rows | killed | starts | seconds | every row once, as undisturbed |"
        self.table = [head, "|---|---|---|---|---|---|"]

    def all(self, rows: int) -> list[str]:
        workload = make_workload(self.folder, rows, sound=True)
        finished = str(self.folder / "synthesize")
        first = self._soak("synthesize", workload)
        self._soak("--extend", workload.extending(finished))
        self._soak("jobs.rank --run", workload.ranking(finished, first.done))
        self._soak("--retry-failed", workload.retrying(), begin=finished)
        if self.server is not None:
            started = time.monotonic()
            played = late_drivers(self.server, self.folder, LATE_DRIVERS, self.seed, _say)
            self._add("a driver asleep", "30", played, 3 * LATE_DRIVERS, started)
        return self.table

    def _soak(self, name: str, workload: Workload, begin: str | None = None) -> Stored:
        """`begin`: a finished output that the run goes on with. Returns what one undisturbed has stored."""
        started = time.monotonic()
        undisturbed, killed = str(self.folder / name.strip("-")), str(self.folder / f"killed-{name}")
        if self.server is not None:
            killed = self.server.uri(f"killed-{name.replace(' ', '')}")
        if begin is not None:
            shutil.copytree(begin, undisturbed)
            _copy(begin, killed)
        stored = run_undisturbed(workload, undisturbed)
        print(f"{name} undisturbed: {len(stored.done)} rows done, {len(stored.failed)} failed", flush=True)
        kills = draw_kills(self.kills if begin is None else self.kills // 2, self.seed)
        if begin is not None:  # every row is there from the start
            kills = [dataclasses.replace(kill, phase="startup", delay=4 + 6 * kill.share) for kill in kills]
        result = soak(workload, killed, kills, stored, self.seed, _say)
        victims = Counter[str](kill.victim for kill in result.killed)
        self._add(name, str(len(workload.ids)), victims, result.sessions, started)
        return stored

    def _add(self, name: str, rows: str, killed: Counter[str], starts: int, started: float) -> None:
        counts = ", ".join(f"{part} {count}" for part, count in sorted(killed.items()))
        self.table.append(
            f"| {name} | {rows} | {counts} | {starts} | {time.monotonic() - started:.0f} | yes |"
        )


def _copy(source: str, target: str) -> None:
    here, there = OutputFolder(source), OutputFolder(target)
    for folder in ("data", "errors"):
        for name in here.parquet_files(folder):
            there.write(folder, name, storage.read_bytes(here.file(folder, name)))
    there.write("", "run.json", storage.read_bytes(here.file("", "run.json")))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
