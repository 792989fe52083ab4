"""Score and rank speech tokens that exist already; nothing is sampled.

    python -m jobs.rank --manifest tokens.parquet --output out --model checkpoint

`speech_ids` is one list of tokens, a list of such lists (one per candidate), or a list of structs with the
fields speech_ids, finished and candidate. Tokens come without start and stop token.
"""

import argparse
from collections.abc import Sequence

from jobs.arguments import (
    HelpFormatter,
    add_execution,
    add_job,
    add_model,
    add_scoring,
    read_job,
    read_model,
    read_ranker_pool,
    read_scoring,
    run_job,
)
from pipeline.run import rank
from pipeline.settings import ExecutionSettings


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jobs.rank", description=__doc__, formatter_class=HelpFormatter
    )
    add_job(parser, "speech_ids")
    add_scoring(parser)
    add_model(parser)
    add_execution(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        loading, scoring = read_model(options), read_scoring(options)
        execution = ExecutionSettings(
            rows_per_block=options.rows_per_block,
            rankers=read_ranker_pool(options),
            torch_threads=options.torch_threads,
            report_seconds=options.report_seconds,
            worker_logs=options.worker_logs,
        )
    except ValueError as error:
        parser.error(str(error))
    return run_job(parser, lambda: rank(read_job(options), loading, scoring, execution))


if __name__ == "__main__":
    raise SystemExit(main())
