"""From the command to the first finished row: one candidate of 8 tokens, on a Ray that is started for it.

python -m tests.benchmarks.start                         a tiny model and one of the published size
python -m tests.benchmarks.start --tree OTHER_CHECKOUT  beside another version, in turns
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from clvp.random_checkpoint import Size, write_random_checkpoint

from .harness import Table, add_arguments, options_from, short
from .report import ROOT, command, header

CLIP = ROOT / "examples" / "demo" / "audio"
SIZES: tuple[Size, ...] = ("tiny", "full")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--tree", type=Path, action="append", default=[], help="of another version")
    options = options_from(arguments := parser.parse_args())
    print(header(options, command()).replace(f"{options.size} size, ", ""), flush=True)
    trees = [ROOT, *(tree.resolve() for tree in arguments.tree)]
    print(f"\n{_measured(trees, options.repeat(3)).markdown()}")


def _measured(trees: Sequence[Path], repetitions: int) -> Table:
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        clip = next(iter(sorted(CLIP.iterdir())))
        row = {"id": "a", "text": "The quick brown fox.", "audio": str(clip)}
        (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        for size in SIZES:
            model = write_random_checkpoint(folder / size, size)
            found: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in trees}
            for number in range(repetitions):
                for tree in trees if number % 2 == 0 else trees[::-1]:
                    found[tree].append(_seconds(tree, folder / f"{tree.name}-{size}-{number}", model))
            for tree, times in found.items():
                first, end = (short(median(column)) for column in zip(*times, strict=True))
                rows.append([f"{tree.name}, {size}", first, end])
    notes = f"Seconds, medians of {repetitions}; the whole command ends when Ray has ended too."
    return Table("From the command to the first row", ["version, size", "first row", "end"], rows, notes)


def _seconds(tree: Path, output: Path, model: Path) -> tuple[float, float]:
    """From the start of a run to its first stored row, and to its end."""
    job = [sys.executable, "-m", "jobs.synthesize", "--manifest", str(output.with_name("manifest.jsonl"))]
    job += ["--output", str(output), "--model", str(model), "--num-candidates", "1", "--max-new-tokens", "8"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.monotonic()
    process = subprocess.Popen(job, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    first = None
    while process.poll() is None:
        time.sleep(0.02)
        if first is None and any(any(output.glob(f"{part}/*.parquet")) for part in ("_parts", "data")):
            first = time.monotonic() - began
    if process.returncode or first is None:
        raise SystemExit(f"the run in {tree} ended with {process.returncode}")
    return first, time.monotonic() - began


if __name__ == "__main__":
    main()
