"""Report on a run: one self-contained HTML page with plots, and the same figures as JSON.

    clvp report --output out

Works on an output that is finished, still growing, or was killed, on a local disk or an object store.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from jobs.cli import job_parser, print_result
from pipeline.readable import hours, integer, number, percent


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("report", __doc__)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a run's output, a path or URI")
    parser.add_argument("--html", metavar="FILE", help="the page (default: report.html in the output)")
    parser.add_argument("--json", metavar="FILE", help="the figures (default: report.json in the output)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report, print its main figures and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)

    def report() -> str:
        from pipeline.report import write_report  # with what draws the plots: a second

        written = write_report(options.output, options.html, options.json)
        return f"{describe(written.figures)}\n{'report':>14}  {written.html}\n{'figures':>14}  {written.json}"

    return print_result(parser, report)


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
