"""The simulation's figures as Markdown."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
import ray

from tests.benchmarks.report import _commit, _processor
from tests.simulation.gauge import MIB, Look
from tests.simulation.steps import Step
from tests.simulation.stream import Result

POINTS = 10  # rows of the table over time


def header(command: str) -> str:
    """Where, when and with what the figures were taken."""
    facts = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_processor()}, {os.cpu_count()} cores; load when it began: {os.getloadavg()[0]:.1f}",
        "Versions": f"Python {platform.python_version()}, Ray {ray.__version__}, pyarrow {pa.__version__}",
        "Commit": _commit(),
        "Command": f"`{command}`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps_table(steps: Sequence[Step]) -> str:
    """The driver's own steps."""
    rows = [
        [
            step.name,
            f"{step.rows:,}",
            f"{step.files:,}" if step.files else "",
            f"{step.megabytes:,.0f}" if step.megabytes else "",
            f"{step.seconds:.2f}",
            f"{step.cpu_seconds:.2f}",
            f"{step.peak / MIB:,.0f}",
        ]
        for step in steps
    ]
    head = ["step", "rows", "files", "MB", "seconds", "core-seconds", "memory, MiB more at most"]
    return f"### Steps of the driver\n\n{table(head, rows)}"


def stream_tables(result: Result) -> str:
    """The stream's figures, and the driver over time."""
    return f"### The stream\n\n{_summary(result)}\n\n### The driver while rows come\n\n{_over_time(result)}"


def _summary(result: Result) -> str:
    size, looks = result.size, result.looks
    first = next(look for look in looks if look.count)
    last = next(look for look in looks if look.count == looks[-1].count)
    seconds = last.seconds - first.seconds
    blocks = result.blocks * (last.count - first.count) / max(last.count, 1)
    cpu = last.cpu_seconds - first.cpu_seconds
    files = sorted(result.files)
    facts = {
        "rows, blocks": f"{size.rows:,}, {result.blocks:,} of {size.rows_per_block}",
        "actors of each model stage": f"{size.actors}; a block takes {size.sample_seconds} s and "
        f"{size.rank_seconds} s there",
        "from the command to the stream": f"{result.stream_began:.1f} s",
        "from the stream's begin to the first block": f"{result.first_block:.1f} s",
        "through the graph": f"{blocks / seconds:.1f} blocks/s, "
        f"{(last.count - first.count) / seconds:,.0f} rows/s",
        "driver, a block": f"{1e3 * cpu / blocks:.1f} core-ms: {blocks / cpu:.0f} blocks/s per core",
        "driver's memory of its own": f"{looks[0].private / MIB:,.0f} MiB before, "
        f"{first.private / MIB:,.0f} at the first block, {max(k.private for k in looks) / MIB:,.0f} at most, "
        f"{looks[-1].private / MIB:,.0f} in the end",
        "object store": f"{max(look.store for look in looks) / MIB:,.0f} MiB at most, "
        f"{looks[-1].spilled / MIB:,.0f} MiB spilled",
        "output files": f"{len(files)}: {files[0] / 1e6:,.0f} to {files[-1] / 1e6:,.0f} MB, "
        f"{sum(files) / 1e9:.2f} GB in all",
    }
    return table(["figure", "value"], [[name, value] for name, value in facts.items()])


def _over_time(result: Result) -> str:
    looks: list[Look] = [look for look in result.looks if look.count]
    chosen = [looks[round(i * (len(looks) - 1) / POINTS)] for i in range(POINTS + 1)]
    rows = [
        [
            f"{look.count:,}",
            f"{look.seconds:,.0f}",
            f"{look.cpu_seconds:,.1f}",
            f"{look.private / MIB:,.0f}",
            f"{look.store / MIB:,.0f}",
        ]
        for look in chosen
    ]
    head = ["rows", "seconds", "core-seconds of the driver", "driver's private memory, MiB", "store, MiB"]
    return table(head, rows)
