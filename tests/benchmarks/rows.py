"""Throughput over rows: 1, 4 and 16 rows × 16 candidates, with equal and with real lengths."""

from clvp.sampling import SamplingParams

from .harness import Table, interleaved, percent, short, tell
from .report import main
from .workload import Workload, drawn_length, fixed_length, ours, prompts, real_prefixes, warm_up_length

ROWS = (1, 4, 16)
CANDIDATES = 16
CPU_TOKENS = 16  # at most: 16 rows of it take a minute on two cores
REPETITIONS = 2


def run(workload: Workload) -> list[Table]:
    """One table."""
    options, sampler = workload.options, workload.sampler
    tokens = options.tokens if options.on_gpu else min(options.tokens, CPU_TOKENS)
    ours(sampler, prompts([options.prefix], 2, options), fixed_length(warm_up_length(options, tokens)))
    lines = []
    for drawn in (False, True):
        params = drawn_length(tokens) if drawn else fixed_length(tokens)
        lines += _lines(workload, params, "drawn" if drawn else "fixed")
    return [
        Table(
            title="Over rows",
            columns=[
                "rows × candidates",
                "lengths",
                "tokens/s",
                "versus 1 row",
                "mean length",
                "lanes doing useful work",
            ],
            rows=lines,
            notes=f"Prefill included; prompts as long as real sentences; at most {tokens} tokens each; "
            f"{sampler.lanes} lanes. The last column: tokens over lanes × steps, padding lanes counted.",
        )
    ]


def _lines(workload: Workload, params: SamplingParams, lengths: str) -> list[list[str]]:
    options, sampler = workload.options, workload.sampler
    used: dict[int, float] = {}
    means: dict[int, float] = {}

    def work(number: int) -> float:
        rows = prompts(real_prefixes(number, options.seed), CANDIDATES, options)
        tokens = ours(sampler, rows, params)
        used[number] = tokens / sampler.stats.lane_steps
        means[number] = tokens / (number * CANDIDATES)
        return tokens

    tell(f"rows: {', '.join(map(str, ROWS))} × {CANDIDATES} candidates, {lengths} lengths")
    contestants = {str(number): (lambda number=number: work(number)) for number in ROWS}
    rates = interleaved(contestants, options.repeat(REPETITIONS), options.device)
    one = rates[str(ROWS[0])].median
    return [
        [
            f"{number} × {CANDIDATES}",
            lengths,
            str(rates[str(number)]),
            f"{rates[str(number)].median / one:.2f}×",
            short(means[number]),
            percent(used[number]),
        ]
        for number in ROWS
    ]


if __name__ == "__main__":
    main(run, __doc__)
