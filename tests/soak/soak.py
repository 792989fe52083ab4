"""Runs that are killed at drawn moments and started again until the output is complete."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jobs import synthesize
from pipeline import storage
from pipeline.output.folder import OutputFolder
from tests.pipeline.driver_only import without_ray
from tests.soak.moments import Kill
from tests.soak.output import Stored, Watch, check_finished, check_stored, differences, read_stored
from tests.soak.processes import TITLES, kill, kill_session, processes_of, victims, wait_until
from tests.soak.workload import Run, Workload

RUN_SECONDS = 900.0  # no phase of a run takes as long
WORKERS = ("sampler", "ranker", "decoder", "audio")  # which a run replaces
POLL_SECONDS = {True: 0.01, False: 0.2}  # of a local output, of an object store


@dataclass
class Result:
    """What a soak has done."""

    sessions: int = 0
    killed: list[Kill] = field(default_factory=list)
    too_late: list[Kill] = field(default_factory=list)  # the run had ended before the moment came


def run_undisturbed(workload: Workload, output: str) -> Stored:
    """The output of a run that nothing happens to."""
    with Run(workload, output) as run:
        wait_until(lambda: run.has_ended, RUN_SECONDS, "the undisturbed run")
        assert run.process.returncode == 0, run.text()
    stored = read_stored(OutputFolder(output))
    check_finished(stored, workload)
    return stored


def run_without_ray(workload: Workload, output: str) -> Stored:
    """The output of a run in this process alone."""
    with without_ray():
        assert synthesize.main(workload.arguments(output)) == 0
    stored = read_stored(OutputFolder(output))
    check_finished(stored, workload)
    return stored


def soak(
    workload: Workload,
    output: str,
    kills: Sequence[Kill],
    undisturbed: Stored,
    seed: int,
    say: Callable[[str], None] = print,
) -> Result:
    """Start the same command again after every kill; raises AssertionError where a promise is broken."""
    soak_ = _Soak(workload, OutputFolder(output), random.Random(seed), say)
    pending = list(kills)
    while not soak_.session(pending):
        pass
    stored = read_stored(soak_.output)
    check_finished(stored, workload)
    differing = differences(stored, undisturbed)
    if "--retry-failed" in workload.options:  # every start is an attempt
        differing = [name for name in differing if name != "errors.attempt"]
    assert not differing, f"differs from the undisturbed run: {', '.join(differing)}"
    return soak_.result


class _Soak:
    def __init__(
        self, workload: Workload, output: OutputFolder, generator: random.Random, say: Callable[[str], None]
    ) -> None:
        self.workload = workload
        self.output = output
        self.generator = generator
        self.say = say
        self.started = time.monotonic()
        self.watch = Watch(output)
        self.result = Result()

    def session(self, pending: list[Kill]) -> bool:
        """One start of the command, with the kills of `pending` that it meets; True when it ended well."""
        self.result.sessions += 1
        with Run(self.workload, self.output.uri) as run:
            before = self.watch.look()
            while pending:
                next_kill = pending[0]
                if not self._wait_for(next_kill, run, before):
                    break
                pending.pop(0)
                hit = self._kill(next_kill, run)
                (self.result.killed if hit else self.result.too_late).append(next_kill)
                self._read_back(next_kill, run)
                if hit and next_kill.victim not in WORKERS:
                    return False
                before = self.watch.look()
            wait_until(lambda: run.has_ended, RUN_SECONDS, "the run to end")
            assert run.process.returncode == 0, f"exit code {run.process.returncode}:\n{run.text()}"
            self.result.too_late += pending
            pending.clear()
            self._say(f"session {self.result.sessions} ended by itself")
            left = processes_of(run.pid)
            wait_until(lambda: not processes_of(run.pid), 60, f"what the run has left to end: {left}")
        return True

    def _wait_for(self, moment: Kill, run: Run, before: int) -> bool:
        """Wait for the moment to come; False if the run ends before."""
        reached = self._reached(moment, run, before)
        end = time.monotonic() + RUN_SECONDS
        while not run.has_ended:
            if reached():
                time.sleep(moment.delay)
                return not run.has_ended
            assert time.monotonic() < end, f"{moment}: not reached\n{run.text()}"
            time.sleep(POLL_SECONDS[storage.is_local(self.output.uri)])
        return False

    def _reached(self, moment: Kill, run: Run, before: int) -> Callable[[], bool]:
        if moment.phase == "startup":
            return lambda: moment.victim not in TITLES or bool(victims(run.pid, moment.victim))
        rows = len(self.workload.ids)
        wanted = rows if moment.phase == "end" else max(before + 1, round(moment.share * rows))
        files = self.watch.published()

        def reached() -> bool:
            nonlocal files
            if self.watch.look() < min(wanted, rows):
                files = self.watch.published()
                return False
            if moment.victim in TITLES and not victims(run.pid, moment.victim):
                return False
            return moment.phase != "publishing" or self.watch.published() > files

        return reached

    def _kill(self, moment: Kill, run: Run) -> bool:
        """Whether there was something to kill."""
        if moment.victim in TITLES:
            found = sorted(victims(run.pid, moment.victim), key=lambda process: process.pid)
            chosen = self.generator.sample(found, min(len(found), 1))
            kill(chosen)
            hit = bool(chosen)
            if hit and moment.victim not in WORKERS:  # the run ends by itself, and says so
                wait_until(lambda: run.has_ended, RUN_SECONDS, f"the run to end without its {moment.victim}")
                assert run.process.returncode in (0, 1), run.text()
                assert "Traceback" not in run.text(), run.text()
        else:
            if moment.victim == "ray":
                kill_session(run.pid, spare=run.pid)  # and then the driver that it belongs to
            run.process.kill()
            hit = run.process.wait() != 0
        self._say(f"session {self.result.sessions}, {moment}: {'killed' if hit else 'too late'}")
        return hit

    def _read_back(self, moment: Kill, run: Run) -> None:
        if moment.victim not in WORKERS:
            kill_session(run.pid)
        stored = read_stored(self.output)
        check_stored(stored, self.workload)
        total = len(self.workload.ids)
        self._say(f"    {len(stored.done)} rows and {len(stored.failed)} errors published of {total}")

    def _say(self, message: str) -> None:
        self.say(f"[{time.monotonic() - self.started:6.1f} s] {message}")
