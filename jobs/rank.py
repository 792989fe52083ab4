"""Score and rank speech tokens that exist already; nothing is sampled.

    python -m jobs.rank --manifest tokens.parquet --output out --model checkpoint
    python -m jobs.rank --run outputs/run-1 --output outputs/run-1-again --model another-checkpoint

`speech_ids` is one list of tokens, a list of such lists (one per candidate), or a list of structs with the
fields speech_ids, finished and candidate. Tokens come without start and stop token.
"""

import argparse
from collections.abc import Sequence

from jobs.arguments import (
    HelpFormatter,
    add_execution,
    add_model,
    add_run,
    add_scoring,
    read_model,
    read_ranker_pool,
    read_run,
    read_scoring,
    run_job,
)
from pipeline.run import rank, rank_again
from pipeline.settings import ExecutionSettings, RankingSettings


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jobs.rank", description=__doc__, formatter_class=HelpFormatter
    )
    group = add_run(parser, "speech_ids", required=False)
    group.add_argument(
        "--run",
        metavar="OUTPUT",
        help="rank the candidates of this finished run again, instead of a manifest",
    )
    add_scoring(parser)
    add_model(parser)
    add_execution(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if (options.manifest is None) == (options.run is None):
        parser.error("give either --manifest or --run")
    try:
        results = RankingSettings(read_model(options), read_scoring(options))
        execution = ExecutionSettings(
            rows_per_block=options.rows_per_block,
            rankers=read_ranker_pool(options),
            gpus=options.gpus,
            torch_threads=options.torch_threads,
            report_seconds=options.report_seconds,
            worker_logs=options.worker_logs,
        )
        run = read_run(options, results, execution)
    except ValueError as error:
        parser.error(str(error))
    if options.run is not None:
        return run_job(parser, lambda: rank_again(run, options.run))
    return run_job(parser, lambda: rank(run))


if __name__ == "__main__":
    raise SystemExit(main())
