"""Report on a run: one self-contained HTML page with plots, and the same figures as JSON.

    python -m jobs.report --output out

Works on an output that is finished, still growing, or was killed, on a local disk or an object store.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.errors import RunError
from pipeline.report.build import write_report
from pipeline.report.text import hours, integer, number, percent

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jobs.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="a run's output, a path or URI such as s3://bucket/folder",
    )
    parser.add_argument("--html", metavar="FILE", help="the page (default: report.html in the output)")
    parser.add_argument("--json", metavar="FILE", help="the figures (default: report.json in the output)")
    parser.add_argument(
        "--flags",
        action="store_true",
        help="also write the quality flags of every candidate, and its duration's robust z-score, to flags/",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report, print its main figures and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        written = write_report(options.output, options.html, options.json, options.flags)
    except (RunError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(describe(written.figures))
    for name, uri in (("report", written.html), ("figures", written.json), ("flags", written.flags)):
        if uri:
            print(f"{name:>14}  {uri}")
    return 0


def describe(figures: dict[str, Any]) -> str:
    """The main figures as lines."""
    rows, best, every = figures["rows"], figures["candidates"]["best"], figures["candidates"]["all"]
    median = best["score"]["p50"] if best["score"] else None
    lines = [
        ("rows", integer(rows["done"])),
        ("failed rows", f"{integer(rows['failed'])} ({percent(rows['failed_share'])})"),
        ("candidates", integer(every["count"])),
        (
            "speech",
            f"{hours(best['audio_hours'])} in the best candidates, {hours(every['audio_hours'])} in all",
        ),
        ("best score", f"{number(median)} (median)"),
        ("unfinished", f"{percent(best['flags']['unfinished']['share'])} of the best candidates"),
    ]
    return "\n".join(f"{name:>14}  {value}" for name, value in lines)


if __name__ == "__main__":
    raise SystemExit(main())
