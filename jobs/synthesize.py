"""The main job: sample, score, rank and store candidates for every row of a manifest.

    clvp synthesize --manifest texts.jsonl --output out --model checkpoint --preset fast

Rows that fail go to OUTPUT/errors with the reason and never stop the run. The same command continues a run
that was interrupted. Tokens depend on seed, row id and candidate index, not on batches, machines or restarts.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import job_parser, run_job
from jobs.options import add_options, read_run
from pipeline.settings import ResultSettings, Run

TEMPLATE = Run((), "", "", ResultSettings())


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("synthesize", __doc__)
    add_options(parser, TEMPLATE)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    run = read_run(parser, parser.parse_args(argv), TEMPLATE)

    from pipeline.run import synthesize  # with Ray, which --help and a wrong option need not wait for

    return run_job(parser, lambda: synthesize(run))


if __name__ == "__main__":
    raise SystemExit(main())
