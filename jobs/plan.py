"""What a run will take before it is paid for: time, GPUs, output and cost, from a trial of some of its rows.

    clvp plan --manifest texts.jsonl --model checkpoint --gpus 16 --price-per-gpu-hour 2.10

Takes the options of jobs.synthesize. Rows drawn at random run through the real stages on the hardware at
hand, into a folder that is deleted afterwards; what they took and gave is scaled up. A forecast for GPUs
needs at least one of them. Time that nodes take to come, and work that is lost with them, is not in it.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import job_parser, print_result
from jobs.options import add_options, read_run
from jobs.synthesize import TEMPLATE
from pipeline.readable import hours, integer, number
from pipeline.trial import Forecast, run_trial


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("plan", __doc__)
    group = parser.add_argument_group("the trial")
    group.add_argument("--price-per-gpu-hour", type=float, metavar="P", help="of a machine with one GPU")
    rows = "rows to run (default: eight blocks for every GPU)"
    group.add_argument("--sample-rows", type=int, metavar="R", help=rows)
    place = "where the trial writes; on a cluster a place that all nodes reach (default: for temporary files)"
    group.add_argument("--scratch", metavar="FOLDER", help=place)
    add_options(parser, TEMPLATE, without=("output", "retry_failed", "redo_changed", "extend"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial, print the forecast and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    run = read_run(parser, options, TEMPLATE, required=("manifest", "model"))
    if options.sample_rows is not None and options.sample_rows < 1:
        parser.error(f"argument --sample-rows: sample_rows={options.sample_rows} is out of range")

    def plan() -> str:
        forecast = run_trial(run, options.sample_rows, options.scratch)
        return describe(forecast, options.price_per_gpu_hour)

    return print_result(parser, plan)


def describe(run: Forecast, price: float | None) -> str:
    """The forecast as lines. `price` is that of a GPU for an hour."""
    trial, cluster = run.trial, run.tried_on
    device = "GPU" if run.planned.gpus else "CPU core"
    lines = [
        (f"{device} hours", number(run.device_hours)),
        (f"wall time, {run.devices:g} {device}{'s' if run.devices != 1 else ''}", hours(run.wall_s / 3600)),
        ("failed rows", integer(run.scaled(trial.failed))),
        ("candidates stored", integer(run.scaled(trial.candidates))),
        ("speech, best candidates", hours(run.scaled(trial.best_s) / 3600)),
        ("speech, all stored ones", hours(run.scaled(trial.all_s) / 3600)),
        ("output", f"{number(run.scaled(trial.num_bytes) / 1e6, 3)} MB"),
    ]
    if price is not None and run.planned.gpus:
        lines.append(("cost", f"{run.device_hours * price:,.2f}"))
    lines += [(f"{name}, s per row", number(seconds, 3)) for name, seconds in trial.stages.items()]
    tried = f"{trial.rows:,} of {run.num_rows:,} rows tried in {hours(trial.seconds / 3600)}"
    where = f"on {cluster.cpus:g} CPU cores and {cluster.gpus:g} GPUs"
    return "\n".join([f"{tried}, {where}", *(f"{name:26}{text:>14}" for name, text in lines)])


if __name__ == "__main__":
    raise SystemExit(main())
