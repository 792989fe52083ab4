"""Sample rows of a finished output again and compare their tokens with those that are stored.

    clvp replay --output outputs/run-1 --id utterance-17 --candidate 3

Settings come from the output's run.json, text and clips from the manifest, the model from where the run had
it. Ends with 0 when all tokens are identical, with 1 after saying where they part and what differs.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import EXIT_FAILED, job_parser, print_result
from pipeline.replay import Replay, ReplayedCandidate, Replayer


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("replay", __doc__)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a run's output, a path or URI")
    parser.add_argument("--id", required=True, nargs="+", metavar="ID", help="of the rows")
    parser.add_argument("--candidate", type=int, nargs="+", default=[], metavar="K", help="(default: all)")
    now = "where it lies now (default: as in run.json)"
    parser.add_argument("--manifest", nargs="+", default=[], metavar="FILE", help=now)
    parser.add_argument("--voices", metavar="FOLDER", help=now)
    parser.add_argument("--model", metavar="CHECKPOINT", help=now)
    hosts = "hosts and buckets of audio, as in the run"
    parser.add_argument("--audio-hosts", nargs="+", default=[], metavar="URI", help=hosts)
    parser.add_argument("--recognizer", metavar="FOLDER", help="as in the run (default: the installed one)")
    trusted = "measures of your own that the run was told"
    parser.add_argument("--measure", nargs="+", default=[], metavar="MODULE:CLASS", help=trusted)
    parser.add_argument(
        "--torch-threads", type=int, metavar="N", help="without a GPU (default: half the cores)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print the comparison and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    found: list[Replay] = []

    def replay() -> str:
        where = (options.output, options.manifest, options.model)
        told = (options.torch_threads, options.audio_hosts, options.recognizer, options.measure)
        replayer = Replayer(*where, *told, options.voices)
        found.extend(replayer.replay(row_id, options.candidate) for row_id in options.id)
        return "\n".join(map(describe, found))

    code = print_result(parser, replay)
    return code or (0 if all(replay.identical for replay in found) else EXIT_FAILED)


def describe(found: Replay) -> str:
    """A line for every candidate, and the facts that differ."""
    lines = [_line(candidate) for candidate in found.candidates]
    if found.differing:
        lines += ["not as it was when the row was sampled:", *(f"  {text}" for text in found.differing)]
    elif not found.identical:
        lines.append("every fact in run.json is as it was: the difference is a fault; please report it")
    same = sum(candidate.parts_at is None for candidate in found.candidates)
    return "\n".join([*lines, f"row {found.row_id}: {same} of {len(found.candidates)} candidates identical"])


def _line(candidate: ReplayedCandidate) -> str:
    name, place = f"candidate {candidate.candidate:>3}", candidate.parts_at
    if place is None:
        return f"{name}: {len(candidate.stored)} tokens, identical"
    stored, sampled = (
        str(tokens[place]) if place < len(tokens) else "the end"
        for tokens in (candidate.stored, candidate.sampled)
    )
    return f"{name}: parts at token {place}: {stored} stored, {sampled} sampled"


if __name__ == "__main__":
    raise SystemExit(main())
