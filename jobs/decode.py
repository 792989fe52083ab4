"""Make the best candidates of a run that ended at tokens audible, in an output of their own.

    clvp decode --run outputs/run-1 --output outputs/run-1-audio --preset fast

The tokens stay as they are. The voices are read from the run's manifest again, wherever it lies now.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import job_parser, run_job
from jobs.options import add_options, read_run, settings_of
from pipeline.settings import ResultSettings, Run

TEMPLATE = Run((), "", "", ResultSettings())
WITHOUT = [setting.path for setting in settings_of(TEMPLATE) if setting.path.startswith("results.")]
WITHOUT = [path for path in WITHOUT if not path.startswith(("results.audio.", "results.waveform."))]


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("decode", __doc__)
    parser.add_argument("--run", metavar="OUTPUT", required=True, help="a finished run with its tokens")
    add_options(parser, TEMPLATE, without=(*WITHOUT, "extend"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code: 0, 1 for a failed run, 2 for a bad manifest or option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    run = read_run(parser, options, TEMPLATE, required=("output",))

    from pipeline.run import decode  # with Ray, which --help need not wait for

    return run_job(parser, lambda: decode(run, options.run))


if __name__ == "__main__":
    raise SystemExit(main())
