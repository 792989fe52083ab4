"""Command-line options that several jobs share, and how a job ends."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, get_args

from pipeline.errors import ManifestError, RunError, Terminated
from pipeline.run import Summary
from pipeline.settings import (
    Dtype,
    ExecutionSettings,
    ModelSettings,
    Normalizer,
    Pool,
    RankingSettings,
    ResultSettings,
    Run,
    ScoringSettings,
)

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and every default shown."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def add_run(
    parser: argparse.ArgumentParser, payload_help: str, required: bool = True
) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("input and output (paths or URIs such as s3://bucket/folder)")
    group.add_argument(
        "--manifest",
        required=required,
        nargs="+",
        metavar="FILE",
        help=f"Parquet, JSONL or CSV files, folders or quoted globs; columns id, text, {payload_help}",
    )
    group.add_argument(
        "--output", required=True, metavar="FOLDER", help="where data/ and errors/ are written"
    )
    group.add_argument(
        "--model", required=True, metavar="CHECKPOINT", help="checkpoint folder, hub id or URI"
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="also try the rows again that are in the error table"
    )
    return group


def read_run(
    options: argparse.Namespace, results: ResultSettings | RankingSettings, execution: ExecutionSettings
) -> Run:
    return Run(
        tuple(options.manifest or ()),
        options.output,
        options.model,
        results,
        execution,
        options.retry_failed,
        getattr(options, "extend", None),
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model (changes results)")
    group.add_argument(
        "--dtype", choices=get_args(Dtype), default="float32", help="of weights and activations"
    )
    group.add_argument(
        "--normalizer",
        choices=get_args(Normalizer),
        default="tortoise",
        help="how numbers and abbreviations are spelled out: as in training, or as in transformers",
    )


def read_model(options: argparse.Namespace) -> ModelSettings:
    return ModelSettings(normalizer=options.normalizer, dtype=options.dtype)


def add_scoring(parser: argparse.ArgumentParser) -> None:
    defaults = ScoringSettings()
    group = parser.add_argument_group("scoring and ranking (changes results)")
    group.add_argument(
        "--keep",
        "--top-k",
        type=kept,
        metavar="K",
        dest="keep",
        help="store the K best candidates, or all (default: all)",
    )
    group.add_argument(
        "--scoring-length",
        type=int,
        default=defaults.scoring_length,
        metavar="N",
        help="speech tokens that every candidate is padded to before it is scored",
    )
    group.add_argument(
        "--rank-unfinished",
        action="store_true",
        help="rank candidates without a stop token by their score; by default they come after all others",
    )


def read_scoring(options: argparse.Namespace) -> ScoringSettings:
    return ScoringSettings(options.scoring_length, not options.rank_unfinished, options.keep)


def add_execution(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("execution (never changes results)")
    group.add_argument(
        "--rows-per-block",
        type=int,
        metavar="N",
        help="rows that travel together (default: enough to fill the lanes)",
    )
    group.add_argument(
        "--rankers",
        type=pool_size,
        metavar="MIN[:MAX]",
        help="actors that score (default: from 1 to one per GPU)",
    )
    group.add_argument(
        "--gpus-per-ranker",
        type=float,
        metavar="F",
        help="share of a GPU (default: 0.25 where there are GPUs)",
    )
    group.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs that a growing cluster may come to (default: by the launcher's file, or those there)",
    )
    group.add_argument(
        "--torch-threads", type=int, metavar="N", help="of an actor without GPU (default: half of the cores)"
    )
    group.add_argument(
        "--report-seconds", type=float, default=10.0, metavar="S", help="between lines of progress"
    )
    group.add_argument(
        "--worker-logs", action="store_true", help="print what the workers log, with tracebacks"
    )
    return group


def kept(text: str) -> int | None:
    """Number of candidates to keep; None for all."""
    return None if text == "all" else int(text)


def pool_size(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def make_pool(size: tuple[int, int] | None, num_gpus: float | None) -> Pool:
    low, high = size or (1, None)
    return Pool(low, high, num_gpus)


def read_ranker_pool(options: argparse.Namespace) -> Pool:
    return make_pool(options.rankers, options.gpus_per_ranker)


def run_job(parser: argparse.ArgumentParser, action: Callable[[], Summary]) -> int:
    """Run, print the summary or one clear message, and return the exit code."""
    return print_result(parser, lambda: describe(action()), "; the same command continues where it ended")


def print_result(parser: argparse.ArgumentParser, action: Callable[[], str], go_on: str = "") -> int:
    """Print what `action` gives or one clear message, and return the exit code.

    `go_on` is what a user who has stopped it should know.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = action()
    except ManifestError as error:
        print(f"{parser.prog}: bad manifest: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (RunError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (KeyboardInterrupt, Terminated) as error:
        terminated = isinstance(error, Terminated)
        how = "terminated" if terminated else "interrupted"
        print(f"{parser.prog}: {how}{go_on}", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    print(result)
    return 0


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the first one's end
    raise Terminated


def describe(summary: Summary) -> str:
    """The closing lines of a run."""
    totals = summary.totals
    failed = totals.failed + summary.rejected
    rows = [
        ("rows", f"{totals.rows:,}" + _before(summary.done_before)),
        ("failed rows", f"{failed:,}" + _before(summary.failed_before)),
        ("candidates", f"{totals.candidates:,}, {totals.unfinished:,} of them without a stop token"),
        ("speech tokens", f"{totals.tokens:,}, {summary.tokens_per_second:,.0f} per second"),
        ("audio", f"{totals.audio_hours:.3f} hours, in {summary.seconds:,.1f} seconds"),
        ("output", f"{summary.output}/data"),
        ("errors", f"{summary.output}/errors" if failed + summary.failed_before else "none"),
    ]
    return "\n".join(f"{name:>14}  {value}" for name, value in rows)


def _before(count: int) -> str:
    return f", and {count:,} before this run" if count else ""
