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
# Seconds from the start of a command to its first stored row and to its end, and those for the row itself.
Times = tuple[float, float, float]


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
        bare = [_bare_ray() for _ in range(1 + repetitions)]
        rows.append(["Ray and torch alone", *_figures(bare)])
        for size in SIZES:
            model = write_random_checkpoint(folder / size, size)
            found: dict[Path, list[Times]] = {tree: [] for tree in trees}
            for number in range(1 + repetitions):
                for tree in trees if number % 2 == 0 else trees[::-1]:
                    output = folder / f"{tree.name}-{size}-{number}"
                    found[tree].append(_seconds(tree, output, model, folder / "cache" / tree.name))
            rows += [[f"{tree.name}, {size}", *_figures(times)] for tree, times in found.items()]
    notes = (
        f"Seconds; of later runs, which need not find out what the first one has (`CLVP_CACHE`), medians of "
        f"{repetitions}. The end is that of Ray."
    )
    columns = ["version, size", "first row of the first run", "of later ones", "end", "sampling, ranking"]
    return Table("From the command to the first row", columns, rows, notes)


def _figures(times: Sequence[Times]) -> list[str]:
    (first, *_), *later = times
    return [short(first), *(short(median(column)) for column in zip(*later, strict=True))]


def _bare_ray() -> Times:
    command = [sys.executable, "-m", "tests.benchmarks.bare_ray"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    first, end = map(float, output.split())
    return first, end, 0.0


def _seconds(tree: Path, output: Path, model: Path, cache: Path) -> Times:
    """Of a run."""
    job = [sys.executable, "-m", "jobs.synthesize", "--manifest", str(output.with_name("manifest.jsonl"))]
    job += ["--output", str(output), "--model", str(model), "--num-candidates", "1", "--max-new-tokens", "8"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "CLVP_CACHE": str(cache)}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    began = time.monotonic()
    process = subprocess.Popen(job, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    first = None
    while process.poll() is None:
        time.sleep(0.02)
        if first is None and any(any(output.glob(f"{part}/*.parquet")) for part in ("_parts", "data")):
            first = time.monotonic() - began
    if process.returncode or first is None:
        raise SystemExit(f"the run in {tree} ended with {process.returncode}")
    end = time.monotonic() - began
    (metrics,) = (output / "metrics").iterdir()
    busy = json.loads(metrics.read_text().splitlines()[-1])["busy_s"]
    return first, end, busy["sample"] + busy["rank"]


if __name__ == "__main__":
    main()
