"""Score and rank speech tokens that exist already; nothing is sampled.

    clvp rank --manifest tokens.parquet --output out --model checkpoint
    clvp rank --run outputs/run-1 --output outputs/run-1-again --model another-checkpoint

`speech_ids` is one list of tokens, a list of such lists (one per candidate), or a list of structs with the
fields speech_ids, finished and candidate. Tokens come without start and stop token.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import job_parser, run_job
from jobs.options import add_options, read_run
from pipeline.settings import RankingSettings, Run

TEMPLATE = Run((), "", "", RankingSettings())


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("rank", __doc__)
    parser.add_argument("--run", metavar="OUTPUT", help="a finished run to rank again, instead of a manifest")
    of_texts = ("reading.voices", "reading.voice", "reading.split_text")
    add_options(parser, TEMPLATE, without=("extend", *of_texts))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    run = read_run(parser, options, TEMPLATE, required=("output", "model"))
    if bool(run.manifest) == bool(options.run):
        parser.error("give either --manifest or --run")

    from pipeline.run import rank, rank_again  # with Ray, which --help need not wait for

    return run_job(parser, lambda: rank_again(run, options.run) if options.run else rank(run))


if __name__ == "__main__":
    raise SystemExit(main())
