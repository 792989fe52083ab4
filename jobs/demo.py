"""Run the main job on the clips that come with the project, print what it wrote, and say where to listen.

The model comes with the project too, unless --model names another one. It is a small one, for short
sentences about everyday things. The results stay in demo-output/ until the next demo.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clvp.checkpoint import DEMO
from clvp.quality import find_measure
from jobs.cli import job_parser
from pipeline.errors import safe

MANIFEST = Path(__file__).parents[1] / "examples" / "demo" / "manifest.jsonl"
OUTPUT = Path("demo-output")
NUM_CANDIDATES = 16

BEST = """
    select id, speaker, printf('%.3f', candidates[1].score) as score,
        printf('%.2f', candidates[1].duration_s) as seconds, text{heard}
    from read_parquet('{output}/data/*.parquet') order by id"""
ERRORS = "select id, stage, type, message from '{}/errors/*.parquet' order by id"
NUMBERS = ("score", "seconds")

ABOUT = """\
The model of this demo comes with the project: a small one, trained on synthesized speech, that knows some 400
words in a few voices (clvp/assets/demo/README.md). For other texts and voices:
    make demo MODEL=susnato/clvp_dev      the published checkpoint, 2.7 GB to download; tokens, no sound
    make demo MODEL=FOLDER                a folder that jobs.convert made from Tortoise's own files
"""
NEXT = """
Go on:
    python -m jobs.replay --output {output} --id harbour-01     the candidates of a row again: the same tokens
    python -m jobs.report --output {output}                     the report again
    python -m jobs.synthesize --manifest FILE --output FOLDER --model demo --audio-files
        your own texts and clips: FILE is CSV, JSONL or Parquet with the columns id, text and audio"""


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("demo", __doc__)
    parser.add_argument("--model", metavar="CHECKPOINT", default=DEMO, help="checkpoint folder or hub id")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the main job's exit code."""
    model = make_parser().parse_args(argv).model
    if model == DEMO:
        print(ABOUT, flush=True)
    shutil.rmtree(OUTPUT, ignore_errors=True)  # an output belongs to one model; this one's may differ
    arguments = ["--manifest", str(MANIFEST), "--output", str(OUTPUT), "--model", model]
    arguments += ["--num-candidates", str(NUM_CANDIDATES), "--audio-files"]
    if model == DEMO:
        with suppress(ImportError, FileNotFoundError):  # without a recognizer nothing is measured
            find_measure("transcribe").files(None)
            arguments += ["--measure", "transcribe"]
    print("python -m jobs.synthesize", safe(shlex.join(arguments)), flush=True)
    # A process of its own, as on the command line: whatever Ray has to say comes before the tables.
    code = subprocess.run([sys.executable, "-m", "jobs.synthesize", *arguments]).returncode
    if code == 0:
        from pipeline.report import write_report  # with matplotlib

        print_results(OUTPUT, model)
        print(f"\nListen to them in {write_report(str(OUTPUT)).html}")
        print(NEXT.format(output=OUTPUT))
    return code


def print_results(output: Path, model: str) -> None:
    """Print the best candidate of every row, and the rows that failed."""
    import duckdb

    print(f"\nThe best candidate of each row, from {output}/data ({safe(model)})")
    columns = duckdb.execute(f"describe select * from '{output}/data/*.parquet'").fetchall()
    heard = ", measures[1].heard as heard" if "measures" in {column[0] for column in columns} else ""
    _print_found(duckdb.execute(BEST.format(output=output, heard=heard)))
    print(f"\nRows that failed, from {output}/errors (two of the demo's rows are bad on purpose)")
    _print_found(duckdb.execute(ERRORS.format(output)))
    if sounds := sorted((output / "audio").glob("*.flac")):
        print(f"\nSound of the best of each row, {len(sounds)} files of 24 kHz: {sounds[0]}, …")


def _print_found(found: Any) -> None:
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
