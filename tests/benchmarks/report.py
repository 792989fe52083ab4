"""The report: where, when and with what the figures were taken, then the tables."""

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from .harness import Options, Table, add_arguments, options_from
from .workload import Workload

ROOT = Path(__file__).parents[2]

Benchmark = Callable[[Workload], Iterable[Table]]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "clvp", "tests/benchmarks")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """How Python was started: `python -m` and the arguments."""
    program = Path(sys.argv[0]).resolve()
    module = str(program.with_suffix("").relative_to(ROOT)) if program.is_relative_to(ROOT) else program.name
    module = module.replace("/", ".").removesuffix(".__main__")
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def header(options: Options, command: str) -> str:
    """A list of facts in Markdown."""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    capability = torch.backends.cpu.get_cpu_capability()
    facts = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads, {capability}; "
        f"load when it began: {load:.1f}",
        "Versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "Commit": _commit(),
        "Command": f"`{command}`",
        "Model": f"{options.size} size, random weights, {str(options.dtype).removeprefix('torch.')}",
    }
    if options.device.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(options.device)
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def main(benchmark: Benchmark, description: str | None) -> None:
    """The command line of one benchmark: prints its tables."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    options = options_from(parser.parse_args())
    print(header(options, command()))
    for table in benchmark(Workload(options)):
        print(f"\n{table.markdown()}", flush=True)
