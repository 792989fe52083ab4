"""All that needs a GPU in one command: its tests, then its benchmarks, part by part, into one report.

    python -m tests.gpu                 at most 8 minutes; again: the parts that are missing or failed
    python -m tests.gpu --rehearse      every part in small on a CPU, so that nothing of it is stale

Runs from a bare copy of the repository. See tests/benchmarks/README.md for what must be installed.
"""

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from tests.sampling.rehearsal import VARIABLE

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "tests" / "benchmarks" / "results" / "gpu.md"
PACKAGES = ("torch", "triton", "transformers", "numpy", "pydantic")
REHEARSAL = {VARIABLE: "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
TINY = "--size tiny --lanes 16 --repetitions 1 --tokens 4 --threads 1"


@dataclass(frozen=True)
class Part:
    """A command of its own process. A `benchmark` prints tables, tests what pytest does."""

    name: str
    seconds: int  # at most
    arguments: str  # of `python -m`
    benchmark: bool = True

    def command(self, rehearse: bool) -> list[str]:
        """For `python -m`."""
        if not self.benchmark:
            return ["pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *self.arguments.split()]
        small = TINY.split() if rehearse else []
        return ["tests.benchmarks", "--output", os.devnull, "--only", *self.arguments.split(), *small]


PARTS = (
    Part(
        "sampler_tests",
        150,
        "tests/sampling/test_cuda.py tests/sampling/test_invariance.py tests/clvp/test_reference_faults.py "
        "tests/clvp/test_cuda.py",
        False,
    ),
    Part("sampler", 120, "limit rows"),
    Part(
        "waveform_tests",
        240,
        "tests/waveform/test_cuda.py tests/waveform/test_denoiser.py tests/waveform/test_decoder.py",
        False,
    ),
    Part("waveform", 240, "waveform --repetitions 2"),
    Part("versus_transformers", 180, "versus_transformers --tokens 128 --repetitions 1"),
    Part("memory", 90, "memory"),
)


def main() -> int:
    """Command line; 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "bench-output" / "gpu", help="results of parts")
    parser.add_argument(
        "--report", type=Path, help=f"default: {REPORT.relative_to(ROOT)}; of a rehearsal in --output"
    )
    parser.add_argument("--seconds", type=int, default=460, help="a part that might take longer waits")
    parser.add_argument("--rehearse", action="store_true", help="in small, on a CPU")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gpu = "a CPU that plays one" if arguments.rehearse else _gpu()
    folder, deadline = arguments.output, time.monotonic() + arguments.seconds
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if _done(folder, part).exists():
            continue
        if not arguments.rehearse and time.monotonic() + part.seconds > deadline:
            print(f"{part.name}: not now, it may take {part.seconds} s", flush=True)
            continue
        _run(part, folder, arguments.rehearse)
        report = arguments.report or (folder / "gpu.md" if arguments.rehearse else REPORT)
        report.write_text(_report(folder, gpu, arguments.rehearse))
    return int(any(_failed(folder, part).exists() for part in PARTS))


def _done(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.md"


def _failed(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.failed.md"


def _gpu() -> str:
    """Name, driver and memory; SystemExit where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no GPU to be found ({error}); --rehearse runs everything on a CPU") from error
    name, driver, memory = answer.stdout.splitlines()[0].split(", ")
    return f"{name}, {memory}, driver {driver}"


def _run(part: Part, folder: Path, rehearse: bool) -> None:
    """Leaves what the part printed in one of its two files, also where it is killed for its time (−9)."""
    command, started = part.command(rehearse), time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **(REHEARSAL if rehearse else {})}
    done, failed = _done(folder, part), _failed(folder, part)
    with failed.open("w") as out, TemporaryFile("w+") as errors:
        print(
            f"`python -m {shlex.join(command)}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n",
            file=out,
            flush=True,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=errors,
            start_new_session=True,  # its own children end with it
        )
        try:
            process.wait(None if rehearse else part.seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where this command is interrupted
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        outcome = f"exit code {process.wait()} after {time.monotonic() - started:.0f} s"
        if process.returncode:
            errors.seek(0)
            print(f"\n```\n{errors.read()[-6000:]}\n{outcome}\n```", file=out)
    if not process.returncode:
        failed.rename(done)
    print(f"{part.name}: {outcome}", flush=True)


def _report(folder: Path, gpu: str, rehearse: bool) -> str:
    """The tables of all parts behind what they were measured on."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    lines = ["| part | | `python -m` |", "|---|---|---|"]
    sections = []
    for part in PARTS:
        done, failed = _done(folder, part), _failed(folder, part)
        outcome = "done" if done.exists() else "failed" if failed.exists() else "not yet run"
        lines.append(f"| {part.name} | {outcome} | `{shlex.join(part.command(rehearse))}` |")
        for path in (done, failed):
            if path.exists():
                text = path.read_text().replace("# Benchmarks on a GPU\n\n", "")
                sections.append(f"## {part.name}\n\n{text if part.benchmark else _fenced(text)}")
    return "\n".join(
        [
            "# A GPU: tests and benchmarks\n",
            f"- GPU: {gpu}",
            f"- Versions: Python {platform.python_version()}, {', '.join(versions)}",
            "- Command: `python -m tests.gpu`, once or more often\n",
            *lines,
            "",
            *sections,
        ]
    )


def _fenced(text: str) -> str:
    return "```\n" + "\n".join(text.splitlines()[-60:]) + "\n```\n"


if __name__ == "__main__":
    raise SystemExit(main())
