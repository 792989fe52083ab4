"""What a run will take before it is paid for: time, GPUs, output and cost, from a trial of some of its rows.

    python -m jobs.plan --manifest texts.jsonl --model checkpoint --gpus 16 --price-per-gpu-hour 2.10

Takes the options of jobs.synthesize. A few blocks of rows run through the real stages on the hardware at
hand, into a folder that is deleted afterwards; a forecast for GPUs needs at least one of them. Every figure
comes with the range in which it lies nine times out of ten, as far as the rows of the trial can tell. Time
that nodes take to come, and work that is lost with them, is not in it.
"""

import argparse
import math
from collections.abc import Callable, Sequence

from jobs.cli import job_parser, print_result
from jobs.options import add_options, read_run
from jobs.synthesize import TEMPLATE
from pipeline.forecast import Forecast, Range, StageLoad, forecast
from pipeline.report.text import hours, integer, number, percent
from pipeline.settings import ResultSettings
from pipeline.trial import Trialled, run_trial


def make_parser() -> argparse.ArgumentParser:
    parser = job_parser("plan", __doc__)
    group = parser.add_argument_group("the trial")
    group.add_argument(
        "--price-per-gpu-hour", type=float, metavar="P", help="in any currency; of a machine with one GPU"
    )
    group.add_argument(
        "--sample-rows", type=int, metavar="R", help="rows to run (default: eight blocks for every sampler)"
    )
    group.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="where the trial writes, below a name of its own; on a cluster a place that all nodes reach "
        "(default: this machine's folder for temporary files)",
    )
    add_options(parser, TEMPLATE, without=("output", "retry_failed", "extend"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial, print the forecast and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    run = read_run(parser, options, TEMPLATE, required=("manifest", "model"))
    if options.sample_rows is not None and options.sample_rows < 1:
        parser.error(f"sample_rows={options.sample_rows} is out of range")

    def plan() -> str:
        assert isinstance(run.results, ResultSettings)
        trial = run_trial(
            run.manifest,
            run.model,
            run.results,
            run.execution,
            run.execution.gpus,
            options.sample_rows,
            options.scratch,
        )
        return describe(trial, forecast(trial.trial, trial.fleet), options.price_per_gpu_hour)

    return print_result(parser, plan)


def describe(trial: Trialled, run: Forecast, price: float | None) -> str:
    """The forecast as lines. `price` is that of a GPU for an hour."""
    fleet, cluster = trial.fleet, trial.cluster
    device = "GPU" if fleet.is_gpu else "CPU core"
    table: list[tuple[str, Range, Callable[[float], str]]] = [
        (f"{device} hours", run.device_s.scaled(1 / 3600), number),
        (f"wall time, {fleet.devices:g} {device}{'s' if fleet.devices != 1 else ''}", run.wall_s, _duration),
        ("failed rows", run.failed, integer),
        ("candidates stored", run.candidates, integer),
        ("speech, best candidates", run.best_hours, hours),
        ("speech, all stored ones", run.all_hours, hours),
        ("output", run.num_bytes, _size),
    ]
    if price is not None and fleet.is_gpu:
        table.append(("cost", run.device_s.scaled(price / 3600), _money))
    rows = sum(block.rows for block in trial.trial.blocks)
    return "\n".join(
        [
            f"{rows:,} of {run.num_rows:,} rows tried in {_duration(trial.seconds)}, "
            f"on {cluster.cpus:g} CPU cores and {cluster.gpus:g} GPUs",
            "",
            f"{'':26}{'expected':>14}   9 times out of 10",
            *(_line(name, value, text) for name, value, text in table),
            "",
            f"{'stage':26}{'s per row':>14}{'workers':>12}{'busy':>10}",
            *(_stage(load, load.name == run.limit) for load in run.loads),
            f"{'CPU cores that feed it':26}{number(run.feeding_cores, 2):>14}",
        ]
    )


def _line(name: str, value: Range, text: Callable[[float], str]) -> str:
    high = text(value.high) if math.isfinite(value.high) else "?"
    return f"{name:26}{text(value.expected):>14}   {text(value.low)} to {high}"


def _stage(load: StageLoad, is_limit: bool) -> str:
    cells = f"{number(load.seconds.expected, 3):>14}{load.workers:>12g}{percent(load.busy):>10}"
    return f"{load.name:26}{cells}{'   all others wait for it' if is_limit else ''}"


def _duration(seconds: float) -> str:
    return hours(seconds / 3600)


def _size(num_bytes: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = min(int(math.log10(max(num_bytes, 1)) // 3), len(units) - 1)
    return f"{number(num_bytes / 1000**power, 3)} {units[power]}"


def _money(value: float) -> str:
    return f"{value:,.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
