"""Train the parts of a small CLVP family on speech of one's own, one after the other.

    python -m jobs.train prepare --manifest corpus/manifest.jsonl --data data
    python -m jobs.train codec --data data --output runs/codec --steps 1600 --dtype bfloat16
    python -m jobs.train codes --data data --output runs/codec
    python -m jobs.train sound --data data --output runs/sound --start runs/codec --steps 10000 --batch 32
    python -m jobs.train decoder --data data --output runs/decoder --steps 12000 --dtype bfloat16
    python -m jobs.train pair --data data --output runs/pair --steps 2000 --dtype bfloat16
    python -m jobs.train export --data data --output model --runs runs

The same command goes on where it was stopped. Several GPUs or processes: torchrun --nproc-per-node N -m
jobs.train ... The losses are in losses.jsonl and losses.png of each output.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from clvp.training.settings import PARTS, TrainingSettings
from jobs.cli import job_parser, print_result


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("train", __doc__)
    parser.add_argument("action", choices=("prepare", "codes", "export", *PARTS))
    parser.add_argument("--manifest", type=Path, help="prepare: JSON lines with id, text, audio, speaker")
    parser.add_argument("--processes", type=int, default=1, help="prepare: that read at a time")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared corpus")
    parser.add_argument("--output", type=Path, help="folder of the run, or of the checkpoint to export")
    parser.add_argument("--runs", type=Path, help="export: folder with the runs sound, decoder and pair")
    parser.add_argument("--start", type=Path, help="run whose weights a new run begins with")
    parser.add_argument("--samples", type=Path, help="pair: output of a run with --measure transcribe")
    parser.add_argument("--config", help="sizes: a checkpoint folder or hub id (default: the small family's)")
    settings = parser.add_argument_group("how a part is trained")
    for field in fields(TrainingSettings):
        kind = type(field.default)
        choices = ("float32", "bfloat16") if field.name == "dtype" else None
        flag = "--" + field.name.replace("_", "-")
        settings.add_argument(flag, type=kind, default=field.default, choices=choices, help="(%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do one step of the recipe and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    needed = {"prepare": ["manifest"], "export": ["output", "runs"]}.get(options.action, ["output"])
    for name in needed:
        if getattr(options, name) is None:
            parser.error(f"{options.action} needs --{name}")
    return print_result(parser, lambda: run(options), "; the same command continues where it ended")


def run(options: argparse.Namespace) -> str:
    """What was done, in a line."""
    # With torch, which --help need not wait for.
    from clvp.training.codec import encode_corpus, trained_encoder
    from clvp.training.corpus import Corpus, prepare
    from clvp.training.export import export
    from clvp.training.loop import plot, processes, train
    from clvp.training.parts import Sizes, make_part

    if options.action == "prepare":
        prepare(options.manifest, options.data, options.processes)
        return f"wrote {options.data}"
    corpus = Corpus(options.data)
    sizes = Sizes.read(options.config, corpus)
    if options.action == "codes":
        encode_corpus(trained_encoder(sizes.codec, options.output), corpus)
        return f"wrote the codes into {options.data}"
    if options.action == "export":
        return f"wrote {export(options.output, sizes, options.runs)}"
    settings = TrainingSettings(**{f.name: getattr(options, f.name) for f in fields(TrainingSettings)})
    with processes() as place:
        part = make_part(options.action, sizes, corpus, settings.seed, options.samples)
        train(part, options.output, settings, place, start=options.start)
        return f"trained; see {plot(options.output)}" if place.rank == 0 else ""


if __name__ == "__main__":
    raise SystemExit(main())
