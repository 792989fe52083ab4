"""Runs the simulation and writes a report in Markdown.

python -m tests.simulation --rows 20000              some minutes on two cores
python -m tests.simulation --rows 1000000            a quarter of an hour or more; 15 GB of disk
"""

import argparse
import tempfile
from pathlib import Path

from pipeline.output.folder import OutputFolder
from tests.benchmarks.report import command
from tests.simulation.report import header, steps_table, stream_tables
from tests.simulation.slow_s3 import slow_s3
from tests.simulation.steps import Step, publishing, resume, scan_and_plan
from tests.simulation.stream import Size, run_stream

DELAY = 0.03  # seconds, of an object store's answer
FILE_MB = 128


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Run the pipeline at scale with stand-ins for models."
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rows-per-block", type=int, default=256)
    parser.add_argument("--actors", type=int, default=2, help="of each model stage; a logical GPU each")
    parser.add_argument("--voices", type=int, default=16, help="different clips a block")
    parser.add_argument("--sample-seconds", type=float, default=0, help="a sampler waits with a block")
    parser.add_argument("--rank-seconds", type=float, default=0)
    parser.add_argument("--publish-mb", type=int, default=FILE_MB)
    parser.add_argument("--cpus", type=int, default=4, help="that Ray is told of")
    parser.add_argument("--only", choices=("steps", "stream"), help="default: both")
    parser.add_argument("--output", type=Path, default=Path("bench-output/simulation.md"), help="the report")
    arguments = parser.parse_args()
    parts = ["# The pipeline at scale, simulated", header(command())]
    with tempfile.TemporaryDirectory(prefix="simulation-") as name:
        folder = Path(name)
        if arguments.only != "stream":
            parts.append(steps_table(all_steps(folder, arguments.rows, arguments.rows_per_block)))
            print(parts[-1], flush=True)
        if arguments.only != "steps":
            size = Size(
                arguments.rows,
                arguments.rows_per_block,
                arguments.actors,
                arguments.voices,
                arguments.sample_seconds,
                arguments.rank_seconds,
                arguments.publish_mb << 20,
                arguments.cpus,
            )
            parts.append(stream_tables(run_stream(size, folder)))
            print(parts[-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n\n".join(parts) + "\n")


def all_steps(folder: Path, rows: int, rows_per_block: int) -> list[Step]:
    """The driver's steps for a hundredth, a tenth and all of the rows, and on a slow object store."""
    steps: list[Step] = []
    for count in sorted({max(rows // 100, 1000), max(rows // 10, 1000), max(rows, 1000)}):
        found, index = scan_and_plan(folder, count, rows_per_block)
        steps += found
        files, unpublished = _files(count)
        steps += resume(
            OutputFolder(str(folder / f"output-{count}")), "local disk", index, files, unpublished
        )
    with slow_s3(DELAY) as uri:
        place = f"S3, {DELAY * 1e3:.0f} ms a request"
        steps += resume(OutputFolder(uri.replace("simulation", "resume")), place, index, files, unpublished)
        steps.append(publishing(OutputFolder(uri), place, FILE_MB))
    steps.append(publishing(OutputFolder(str(folder / "published")), "local disk", FILE_MB))
    return steps


def _files(rows: int) -> tuple[int, int]:
    """Files of 128 MB that so many rows make, and parts that wait to be published."""
    return max(rows * 56 // 1_000_000, 1), min(150, rows // 512)


if __name__ == "__main__":
    main()
