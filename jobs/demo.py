"""Run the main job on the clips that come with the project, and print what it wrote.

The model is small and random unless --model names a real one. The results stay in demo-output/ until the
next demo.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.cli import job_parser
from pipeline.errors import safe

MANIFEST = Path(__file__).parents[1] / "examples" / "demo" / "manifest.jsonl"
OUTPUT = Path("demo-output")
NUM_CANDIDATES = 16
RANKS_SHOWN = 3
CODES_SHOWN = 6

RANKED = f"""
    select id, speaker, rank, candidate, printf('%.4f', score) as score, num_tokens as tokens,
        printf('%.2f', duration_s) as seconds, if(finished, 'yes', 'no') as finished,
        array_to_string(speech_ids[:{CODES_SHOWN}], ' ') || ' …' as speech_ids
    from (select id, speaker, unnest(candidates, recursive := true) from '{{}}/data/*.parquet')
    where rank <= {RANKS_SHOWN} order by id, rank"""
ERRORS = "select id, stage, type, message from '{}/errors/*.parquet' order by id"
NUMBERS = ("rank", "candidate", "score", "tokens", "seconds")

NOISE = """\
The weights of this demo's model are random: its tokens and its sound are noise, its scores mean nothing. What
you see is the machinery. With real weights:
    make demo MODEL=susnato/clvp_dev      the published checkpoint, a download of 2.7 GB
    make demo MODEL=FOLDER                a folder that jobs.convert made from Tortoise's own files"""


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("demo", __doc__)
    parser.add_argument("--model", metavar="CHECKPOINT", help="checkpoint folder or hub id")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the main job's exit code."""
    options = make_parser().parse_args(argv)
    arguments: list[str] = []
    with ExitStack() as cleanup:
        model = options.model
        if model is None:
            from clvp.random_checkpoint import write_random_checkpoint  # with torch: seconds

            model = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="clvp-random-"))
            write_random_checkpoint(model, audio=True)
            print(NOISE, end="\n\n", flush=True)
            arguments += ["--diffusion-steps", "6"]  # more of them make no better noise
        shutil.rmtree(OUTPUT, ignore_errors=True)  # an output belongs to one model; this one's may differ
        arguments += ["--manifest", str(MANIFEST), "--output", str(OUTPUT), "--model", model]
        arguments += ["--num-candidates", str(NUM_CANDIDATES), "--audio-files"]
        print("python -m jobs.synthesize", safe(shlex.join(arguments)), flush=True)
        # A process of its own, as on the command line: whatever Ray has to say comes before the tables.
        code = subprocess.run([sys.executable, "-m", "jobs.synthesize", *arguments]).returncode
    if code == 0:
        print_results(OUTPUT, "noise, the weights are random" if options.model is None else model)
    return code


def print_results(output: Path, model: str) -> None:
    """Print the best candidates of every row, and the rows that failed."""
    print(
        f"\nRanked candidates, the best {RANKS_SHOWN} of {NUM_CANDIDATES}, from {output}/data ({safe(model)})"
    )
    _print_found(RANKED.format(output))
    print(f"\nRows that failed, from {output}/errors (two of the demo's rows are bad on purpose)")
    _print_found(ERRORS.format(output))
    if sounds := sorted((output / "audio").glob("*.flac")):
        print(f"\nSound of the best of each row, {len(sounds)} files of 24 kHz: {sounds[0]}, …")


def _print_found(query: str) -> None:
    import duckdb

    found = duckdb.execute(query)
    print_table([column[0] for column in found.description or ()], found.fetchall())


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns, numbers to the right; however long, a row is a line."""
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in NUMBERS else "left")
    for row in rows:
        table.add_row(*(safe(str(cell)) for cell in row))
    Console(width=1000, markup=False, emoji=False, highlight=False).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
