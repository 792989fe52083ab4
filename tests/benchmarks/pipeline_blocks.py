"""Lanes in use and tokens per second through the pipeline: blocks one by one, versus several in an actor.

The embedded model samples sentences of the demo, whose candidates are as long as speech is, by
`jobs.synthesize` on Ray; in turns, every second time in reverse order. The count for the same lanes and
blocks, with the lengths that were sampled, stands beside it. Needs no `Options`: run it by itself.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from jobs.demo import MANIFEST
from jobs.options import read_run
from jobs.synthesize import TEMPLATE, make_parser
from pipeline.metrics import read_sessions, speed_figures
from pipeline.run import synthesize
from pipeline.stages import sample

from .blocks_at_once import share_in_use
from .harness import Table, add_arguments, options_from, percent, short, tell
from .report import command, header

CANDIDATES = 16
AT_ONCE = (1, 2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline_blocks", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rows", type=int, default=32, help="of the manifest (default: 32)")
    options = options_from(arguments := parser.parse_args())
    print(header(options, command()).replace(f"{options.size} size, random weights", "demo"), flush=True)
    print(f"\n{_measured(arguments.rows, arguments.lanes or 32, options.repeat(2)).markdown()}")


def _measured(rows: int, lanes: int, repetitions: int) -> Table:
    rates: dict[int, list[float]] = {n: [] for n in AT_ONCE}
    shares: dict[int, list[float]] = {n: [] for n in AT_ONCE}
    tokens: dict[int, list[list[int]]] = {}
    with TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder) / "manifest.jsonl", rows)
        for turn in range(repetitions):
            for n in AT_ONCE[:: -1 if turn % 2 else 1]:
                tell(f"pipeline_blocks: {n} at once, {turn + 1} of {repetitions}")
                output = Path(folder) / f"{n}-{turn}"
                sample.BLOCKS_AT_ONCE = n
                arguments = f"--manifest {manifest} --output {output} --model demo --lanes {lanes}".split()
                arguments += ["--num-candidates", str(CANDIDATES)]
                rates[n].append(
                    synthesize(
                        read_run(make_parser(), make_parser().parse_args(arguments), TEMPLATE)
                    ).tokens_per_second
                )
                figures = speed_figures(read_sessions(str(output)))
                assert figures is not None
                shares[n].append(figures["lanes_in_use"])
                tokens[n] = _tokens(output)
    lengths = [len(one) for one in tokens[AT_ONCE[0]]]
    first = median(rates[AT_ONCE[0]])
    return Table(
        "Blocks at once, through the pipeline",
        ["", "tokens/s", "versus one by one", "lanes in use", "by count"],
        [
            [
                f"{n} at once",
                f"{short(median(rates[n]))} ({short(min(rates[n]))}–{short(max(rates[n]))})",
                f"{median(rates[n]) / first:.2f}×",
                percent(median(shares[n])),
                percent(share_in_use(lengths, lanes, 2 * lanes, n)),
            ]
            for n in AT_ONCE
        ],
        notes=f"{rows} rows × {CANDIDATES} candidates in {lanes} lanes, blocks of {2 * lanes} candidates, "
        "the start of actors and loading of weights included. Tokens the same in both: "
        f"{'yes' if len({json.dumps(found) for found in tokens.values()}) == 1 else 'NO'}.",
    )


def _manifest(path: Path, rows: int) -> Path:
    """Sentences of the demo, again and again, with ids of their own."""
    good = [row for row in map(json.loads, MANIFEST.read_text().splitlines()) if "bad" not in row["id"]]
    with path.open("w") as file:
        for number, row in enumerate(islice(cycle(good), rows)):
            clips = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
            audio = [str((MANIFEST.parent / clip).resolve()) for clip in clips]
            file.write(json.dumps({"id": f"row-{number:03}", "text": row["text"], "audio": audio}) + "\n")
    return path


def _tokens(output: Path) -> Sequence[list[int]]:
    """Of all candidates, by row and number."""
    found = pq.read_table(output / "data", columns=["id", "candidates"]).sort_by("id").to_pylist()
    return [
        item["speech_ids"]
        for row in found
        for item in sorted(row["candidates"], key=lambda item: item["candidate"])
    ]


if __name__ == "__main__":
    main()
