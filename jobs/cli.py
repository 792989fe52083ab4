"""How a job of the command line begins and ends: its parser, its messages, exit codes and signals."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from pipeline.errors import ManifestError, RunError, Terminated, safe
from pipeline.readable import hours, seconds

if TYPE_CHECKING:  # a job that needs no Ray starts without it
    from pipeline.progress import Summary

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(safe(message))


def job_parser(job: str, description: str | None) -> argparse.ArgumentParser:
    return _Parser(
        f"clvp {job}" if os.path.basename(sys.argv[0]) == "clvp" else f"python -m jobs.{job}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_job(parser: argparse.ArgumentParser, action: "Callable[[], Summary]") -> int:
    """Run, print the summary or one clear message, and return the exit code."""
    return print_result(parser, lambda: describe(action()), "; the same command continues where it ended")


def print_result(parser: argparse.ArgumentParser, action: Callable[[], str], go_on: str = "") -> int:
    """Print what `action` gives or one clear message, and return the exit code.

    `go_on` is what a user who has stopped it should know.
    """
    signal.signal(signal.SIGTERM, _terminate)
    code, message = 0, ""
    try:
        _say(safe(action()), sys.stdout)
    except ManifestError as error:
        code, message = EXIT_BAD_INPUT, f"bad manifest: {error}"
    except (RunError, ValueError, OSError, MemoryError) as error:
        code, message = EXIT_FAILED, f"error: {error}"
    except KeyboardInterrupt:
        code, message = EXIT_INTERRUPTED, f"interrupted{go_on}"
    except Terminated:
        code, message = EXIT_TERMINATED, f"terminated{go_on}"
    if code:
        with suppress(OSError):
            _say(f"{parser.prog}: {safe(' '.join(message.split()))}", sys.stderr)
    return code


def _say(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except OSError:  # a closed pipe; Python would try again at its end, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the first one's end
    raise Terminated


def describe(summary: "Summary") -> str:
    """The closing lines of a run."""
    totals = summary.totals
    failed = totals.failed + summary.rejected
    rows = [
        ("rows", f"{totals.rows:,}" + _before(summary.done_before)),
        ("failed rows", f"{failed:,}" + _before(summary.failed_before)),
        ("candidates", f"{totals.candidates:,}, {totals.unfinished:,} of them without a stop token"),
        ("speech tokens", f"{totals.tokens:,}, {summary.tokens_per_second:,.0f} per second"),
        ("speech", f"{hours(totals.best_s / 3600)} in the best, {hours(totals.audio_hours)} in all of them"),
        ("time", seconds(summary.seconds)),
        ("output", f"{summary.output}/data"),
        ("errors", f"{summary.output}/errors" if failed + summary.failed_before else "none"),
    ]
    return "\n".join(f"{name:>14}  {value}" for name, value in rows)


def _before(count: int) -> str:
    return f", and {count:,} before this run" if count else ""
