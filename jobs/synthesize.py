"""The main job: sample, score, rank and store candidates for every row of a manifest.

    python -m jobs.synthesize --manifest texts.jsonl --output out --model checkpoint --preset fast

Rows that fail go to OUTPUT/errors with the reason and never stop the run. The same command continues a run
that was interrupted. Tokens depend on seed, row id and candidate index, not on batches, machines or restarts.
"""

import argparse
from collections.abc import Sequence

from clvp.sampling import EngineConfig
from jobs.arguments import (
    HelpFormatter,
    add_execution,
    add_model,
    add_run,
    add_scoring,
    make_pool,
    pool_size,
    read_model,
    read_ranker_pool,
    read_run,
    read_scoring,
    run_job,
)
from pipeline.run import synthesize
from pipeline.settings import PRESETS, ExecutionSettings, ResultSettings, SamplingParams

DEFAULTS = ResultSettings()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jobs.synthesize", description=__doc__, formatter_class=HelpFormatter
    )
    group = add_run(parser, "audio")
    group.add_argument(
        "--extend",
        metavar="OUTPUT",
        help="take over the candidates of a finished run that had fewer, with the same manifest and settings",
    )
    add_sampling(parser)
    add_scoring(parser)
    add_model(parser)
    add_synthesis_execution(parser)
    return parser


def add_synthesis_execution(parser: argparse.ArgumentParser) -> None:
    group = add_execution(parser)
    group.add_argument(
        "--samplers",
        type=pool_size,
        metavar="MIN[:MAX]",
        help="actors that sample (default: from 1 to one per GPU)",
    )
    group.add_argument(
        "--gpus-per-sampler",
        type=float,
        metavar="F",
        help="share of a GPU (default: 0.75 where there are GPUs)",
    )
    group.add_argument(
        "--lanes",
        type=int,
        metavar="N",
        help="candidates decoded at once (default: by device); on a GPU the shape of its products: keep "
        "it for identical tokens",
    )
    group.add_argument("--audio-root", metavar="FOLDER", help="refuse rows whose audio lies anywhere else")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    sampling = DEFAULTS.sampling
    group = parser.add_argument_group("sampling (changes results; defaults are Tortoise's)")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        default="ultra_fast",
        help="candidates per row: " + ", ".join(f"{name} {count}" for name, count in PRESETS.items()),
    )
    group.add_argument(
        "--num-candidates", type=int, metavar="N", help="candidates per row, instead of the preset's"
    )
    group.add_argument("--seed", type=int, default=sampling.seed, metavar="N", help="of the random numbers")
    group.add_argument(
        "--temperature", type=float, default=sampling.temperature, metavar="T", help="1: as predicted"
    )
    group.add_argument(
        "--sample-top-k", metavar="K", type=int, default=sampling.top_k, help="tokens to draw from; 0: all"
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=sampling.top_p,
        help="probability mass to draw from; 1: all",
    )
    group.add_argument(
        "--typical-p", metavar="P", type=float, default=sampling.typical_p, help="typical sampling; 1: off"
    )
    group.add_argument(
        "--repetition-penalty", metavar="P", type=float, default=sampling.repetition_penalty, help="1: off"
    )
    group.add_argument(
        "--max-speech-tokens",
        type=int,
        default=sampling.max_new_tokens,
        metavar="N",
        help="21.5 are a second",
    )
    group.add_argument("--greedy", action="store_true", help="the most probable token instead of sampling")
    group.add_argument(
        "--mel-positions",
        choices=("trained", "skip_one"),
        default=sampling.mel_positions,
        help="positions of speech tokens: 0,1,2 as trained, or 0,2,3 as the reference generates",
    )
    group.add_argument(
        "--audio-seconds",
        type=float,
        default=DEFAULTS.audio_seconds,
        metavar="S",
        help="of each reference clip",
    )


def read_settings(options: argparse.Namespace) -> ResultSettings:
    sampling = SamplingParams(
        max_new_tokens=options.max_speech_tokens,
        do_sample=not options.greedy,
        temperature=options.temperature,
        top_k=options.sample_top_k,
        top_p=options.top_p,
        typical_p=options.typical_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        mel_positions=options.mel_positions,
        penalized_tokens=DEFAULTS.sampling.penalized_tokens,
    )
    return ResultSettings(
        model=read_model(options),
        num_candidates=options.num_candidates or PRESETS[options.preset],
        sampling=sampling,
        scoring=read_scoring(options),
        audio_seconds=options.audio_seconds,
    )


def read_execution(options: argparse.Namespace) -> ExecutionSettings:
    return ExecutionSettings(
        rows_per_block=options.rows_per_block,
        samplers=make_pool(options.samplers, options.gpus_per_sampler),
        gpus=options.gpus,
        rankers=read_ranker_pool(options),
        engine=EngineConfig(lanes=options.lanes),
        torch_threads=options.torch_threads,
        audio_root=options.audio_root,
        report_seconds=options.report_seconds,
        worker_logs=options.worker_logs,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        run = read_run(options, read_settings(options), read_execution(options))
    except ValueError as error:
        parser.error(str(error))
    return run_job(parser, lambda: synthesize(run))


if __name__ == "__main__":
    raise SystemExit(main())
