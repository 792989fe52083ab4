"""Lanes in use and tokens per second through the pipeline: blocks one by one, versus several in an actor.

The embedded model samples sentences of the demo, whose candidates are as long as speech is, by
`jobs.synthesize` on Ray. The count for the same lanes and blocks, with the lengths that were sampled, stands
beside it. Makes no random weights, so it is run by itself.
"""

import argparse
import json
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import torch

from jobs.demo import MANIFEST
from jobs.options import read_run
from jobs.synthesize import TEMPLATE, make_parser
from pipeline import stages
from pipeline.metrics import read_sessions, speed_figures
from pipeline.run import synthesize

from .blocks_at_once import share_in_use
from .harness import Table, add_arguments, interleaved, options_from, percent
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
    shares: dict[int, list[float]] = {n: [] for n in AT_ONCE}
    tokens: dict[int, list[list[int]]] = {}
    parser = make_parser()
    with TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder) / "manifest.jsonl", rows)

        def sampled(n: int) -> float:
            output = Path(folder) / f"{n}-{len(shares[n])}"
            stages.BLOCKS_AT_ONCE = n
            arguments = f"--manifest {manifest} --output {output} --model demo --lanes {lanes}".split()
            arguments += ["--num-candidates", str(CANDIDATES)]
            summary = synthesize(read_run(parser, parser.parse_args(arguments), TEMPLATE))
            figures = speed_figures(read_sessions(str(output)))
            assert figures is not None
            shares[n].append(figures["lanes_in_use"])
            tokens[n] = _tokens(output)
            return summary.totals.tokens

        contestants = {str(n): partial(sampled, n) for n in AT_ONCE}
        rates = interleaved(contestants, repetitions, torch.device("cpu"))
    lengths = [len(one) for one in tokens[AT_ONCE[0]]]
    return Table(
        "Blocks at once, through the pipeline",
        ["", "tokens/s", "versus one by one", "lanes in use", "by count"],
        [
            [
                f"{n} at once",
                str(rates[str(n)]),
                f"{rates[str(n)].median / rates[str(AT_ONCE[0])].median:.2f}×",
                percent(median(shares[n])),
                percent(share_in_use(lengths, lanes, 2 * lanes, n)),
            ]
            for n in AT_ONCE
        ],
        notes=f"{rows} rows × {CANDIDATES} candidates in {lanes} lanes, blocks of {2 * lanes} candidates, "
        "the whole run: its start, Ray's and the loading of weights included. Tokens the same in both: "
        f"{'yes' if tokens[AT_ONCE[0]] == tokens[AT_ONCE[1]] else 'NO'}.",
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


def _tokens(output: Path) -> list[list[int]]:
    """Of all candidates, by row and number."""
    found = pq.read_table(output / "data", columns=["id", "candidates"]).sort_by("id").to_pylist()
    return [
        item["speech_ids"]
        for row in found
        for item in sorted(row["candidates"], key=lambda item: item["candidate"])
    ]


if __name__ == "__main__":
    main()
