"""What a token costs as candidates grow long: it should grow no faster than the live keys and values."""

from itertools import pairwise
from statistics import median

from .decoding import live_kv_bytes, reader, start_decoder, steps_per_call
from .harness import Table, interleaved, short, tell, timed
from .report import main
from .workload import Workload, fixed_length, prompts

CANDIDATES = 16
TOKENS = 500  # Tortoise's limit
WINDOW = 64


def run(workload: Workload) -> list[Table]:
    """One table: windows of steps."""
    options, sampler = workload.options, workload.sampler
    rows = prompts([options.prefix], CANDIDATES, options)
    tell(f"growth: {CANDIDATES} candidates of {TOKENS} tokens")
    per_call = steps_per_call(options)
    step_seconds = _step_seconds(workload)
    bandwidth = interleaved({"read": reader(options.device)}, 5, options.device)["read"].median
    edges = [*range(0, TOKENS, WINDOW), TOKENS]
    lines = []
    first_step = first_bytes = 0.0
    for start, stop in pairwise(edges):
        step = median(step_seconds[start // per_call : stop // per_call])
        live = live_kv_bytes(sampler.weights, rows, (start + stop) / 2)
        first_step, first_bytes = first_step or step, first_bytes or live
        lines.append(
            [
                f"{start + 1}–{stop}",
                short(CANDIDATES / step),
                short(1000 * step),
                f"{step / first_step:.2f}×",
                f"{live / first_bytes:.2f}×",
                short(live / 2**20),
                short(1000 * (step - first_step)),
                short(1000 * (live - first_bytes) / bandwidth),
            ]
        )
    return [
        Table(
            title="Cost of a token as candidates grow long",
            columns=[
                "tokens",
                "tokens/s",
                "step, ms",
                "step, relative",
                "live KV, relative",
                "live KV, MiB",
                "step, ms above the first",
                "reading the added KV, ms",
            ],
            rows=lines,
            notes=f"One row × {CANDIDATES} candidates, a prompt of {options.prefix} positions; medians over "
            f"the steps of a window. The last column is the added keys and values over the bandwidth of a "
            f"plain read, {bandwidth / 1e9:.1f} GB/s.",
        )
    ]


def _step_seconds(workload: Workload) -> list[float]:
    """Seconds per step of each call of `step`, from the first token to the last."""
    options, sampler = workload.options, workload.sampler
    rows = prompts([options.prefix], CANDIDATES, options)
    per_call = steps_per_call(options)
    decoder = start_decoder(sampler, rows, fixed_length(TOKENS))
    start_decoder(sampler, rows, fixed_length(TOKENS)).step()  # to warm up
    seconds = [timed(lambda: len(decoder.step()), options.device)[0] for _ in range(TOKENS // per_call)]
    return [second / per_call for second in seconds]


if __name__ == "__main__":
    main(run, __doc__)
