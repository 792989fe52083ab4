"""Runs the benchmarks and writes their tables into a report in Markdown.

python -m tests.benchmarks                                  full size: half an hour on two cores
python -m tests.benchmarks --size small --tokens 16         a minute
python -m tests.benchmarks --only versus_transformers limit
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from . import blocks_at_once, growth, lengths, limit, mel, memory, rows, versus_transformers, waveform
from .harness import add_arguments, options_from, tell
from .report import Benchmark, command, header
from .workload import Workload

BENCHMARKS: Mapping[str, Benchmark] = {
    "versus_transformers": versus_transformers.run,
    "limit": limit.run,
    "rows": rows.run,
    "growth": growth.run,
    "lengths": lengths.run,
    "blocks_at_once": blocks_at_once.run,
    "memory": memory.run,
    "mel": mel.run,
    "waveform": waveform.run,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Run the benchmarks and write a report in Markdown."
    )
    add_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=Path("bench-output/report.md"), help="the report")
    arguments = parser.parse_args()
    options = options_from(arguments)
    workload = Workload(options)
    parts = [f"# Benchmarks on a {'GPU' if options.on_gpu else 'CPU'}", header(options, command())]
    print("\n\n".join(parts), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        for table in BENCHMARKS[name](workload):
            parts.append(table.markdown())
            print(f"\n{parts[-1]}", flush=True)
        arguments.output.write_text(
            "\n\n".join(parts) + "\n"
        )  # after each: a run that is cut short leaves its part
    tell(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
