"""`clvp JOB [options]`: the jobs under one name. `python -m jobs.JOB` is the same, also uninstalled."""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

JOBS = {
    "synthesize": "sample, rank and store candidates, and their sound, for every row of a manifest",
    "plan": "what a run will take, from a trial of some of its rows",
    "report": "one HTML page about an output, at any time",
    "replay": "sample a stored row again, and compare",
    "decode": "make the best candidates of a finished run audible",
    "rank": "rank tokens that you bring, or a finished run again",
    "convert": "make a checkpoint folder of Tortoise's own files",
    "train": "train a small family on speech of one's own, part by part",
    "demo": "synthesize the clips that come with the project",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that is named first and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in JOBS:
        return int(importlib.import_module(f"jobs.{words[0]}").main(words[1:]))
    parser = argparse.ArgumentParser(
        "clvp",
        usage="%(prog)s JOB [options]",
        description="Speech for whole datasets: texts and clips in, ranked Parquet with sound out.",
        epilog="\n".join(["jobs (clvp JOB --help tells more):", *(f"  {n:12}{t}" for n, t in JOBS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("clvp"))
    parser.add_argument("job", choices=JOBS, metavar="JOB", help="see below")
    parser.parse_args(words)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
