"""What candidates of unequal length cost: lanes refilled at once, versus waves that wait for the longest.

First by count alone, for the log-normal lengths of speech; then measured with the sampler, whose tokens are
the same both ways.
"""

import heapq
import math
import random
from collections.abc import Sequence

from clvp.sampling import Candidate, CandidateSampler, PromptRow, SamplingParams

from .harness import Rates, Table, interleaved, percent, short, tell
from .report import main
from .workload import UNFINISHED, Workload, drawn_length, prompts, real_prefixes, warm_up_length

LIMIT = 500  # tokens, in the simulation
MEDIAN = 180  # tokens: eight seconds of speech, a sentence
CASES = ((64, 4, 16), (64, 64, 16), (64, 16, 256), (256, 64, 16))  # lanes, rows, candidates
CANDIDATES = 16
CPU_LANES, CPU_ROWS = 32, 6
GPU_LANES, GPU_ROWS = 256, 64
REPETITIONS = 2


def run(workload: Workload) -> list[Table]:
    """Two tables: simulated and measured."""
    return [_simulated(workload.options.seed), _measured(workload)]


def drawn_lengths(rows: int, candidates: int, seed: int) -> list[int]:
    """Lengths, row by row. A row's own median varies by its text, its candidates' around that; 5% of all are
    unfinished and as long as the limit."""
    draw = random.Random(seed)
    lengths = []
    for _ in range(rows):
        row_median = draw.lognormvariate(math.log(MEDIAN), 0.4)
        for _ in range(candidates):
            length = min(max(round(draw.lognormvariate(math.log(row_median), 0.2)), 1), LIMIT)
            lengths.append(LIMIT if draw.random() < UNFINISHED else length)
    return lengths


def steps_in_waves(lengths: Sequence[int], lanes: int) -> int:
    """Steps when all lanes start together and the next wave waits for the longest."""
    return sum(max(lengths[start : start + lanes]) for start in range(0, len(lengths), lanes))


def steps_with_refill(lengths: Sequence[int], lanes: int) -> int:
    """Steps when each candidate takes the lane that is free first."""
    free_at = [0] * min(lanes, len(lengths))
    for length in lengths:
        heapq.heappush(free_at, heapq.heappop(free_at) + length)
    return max(free_at)


def _simulated(seed: int) -> Table:
    lines = []
    for lanes, rows, candidates in CASES:
        lengths = drawn_lengths(rows, candidates, seed)
        waves, refill = steps_in_waves(lengths, lanes), steps_with_refill(lengths, lanes)
        total = sum(lengths)
        lines.append(
            [
                str(lanes),
                f"{rows} × {candidates}",
                f"{short(total / len(lengths))} / {max(lengths)}",
                percent(total / (waves * lanes)),
                percent(total / (refill * lanes)),
                f"{waves / refill:.2f}×",
            ]
        )
    return Table(
        title="Lanes in use, by count",
        columns=[
            "lanes",
            "rows × candidates",
            "mean / longest",
            "useful in waves",
            "useful with refill",
            "steps saved",
        ],
        rows=lines,
        notes=f"Simulated: log-normal lengths (median {MEDIAN}, σ 0.4 between rows and 0.2 within one), "
        f"{percent(UNFINISHED)} unfinished at the limit of {LIMIT}. The more waves, the "
        "more of them wait for an unfinished candidate.",
    )


def _in_waves(sampler: CandidateSampler, rows: list[PromptRow], params: SamplingParams) -> list[Candidate]:
    """All candidates, as many at a time as there are lanes; whole rows, where the lanes hold several."""
    together = max(1, sampler.lanes // CANDIDATES)
    result = []
    for start in range(0, len(rows), together):
        for row in sampler.sample(rows[start : start + together], params):
            result += row
    return result


def _measured(workload: Workload) -> Table:
    options = workload.options
    lanes, number = (GPU_LANES, GPU_ROWS) if options.on_gpu else (CPU_LANES, CPU_ROWS)
    sampler = workload.sampler_with_lanes(lanes)
    params = drawn_length(options.tokens)
    rows = prompts(real_prefixes(number, options.seed), CANDIDATES, options)
    outcome: dict[str, list[Candidate]] = {}

    def with_refill() -> float:
        outcome["refill"] = [candidate for row in sampler.sample(rows, params) for candidate in row]
        return sum(len(candidate.tokens) for candidate in outcome["refill"])

    def in_waves() -> float:
        outcome["waves"] = _in_waves(sampler, rows, params)
        return sum(len(candidate.tokens) for candidate in outcome["waves"])

    tell(f"lengths: {number} rows × {CANDIDATES} candidates in {lanes} lanes")
    sampler.sample(rows[:1], drawn_length(warm_up_length(options, options.tokens)))
    contestants = {"refill": with_refill, "waves": in_waves}
    rates = interleaved(contestants, options.repeat(REPETITIONS), options.device)
    setting = f"The sampler with {lanes} lanes on {number} rows × {CANDIDATES} candidates, prefill included"
    return _measured_table(setting, rates, outcome, lanes)


def _measured_table(
    setting: str, rates: dict[str, Rates], outcome: dict[str, list[Candidate]], lanes: int
) -> Table:
    refill, waves = outcome["refill"], outcome["waves"]
    same = all(
        a.tokens.tolist() == b.tokens.tolist() and a.finished == b.finished
        for a, b in zip(refill, waves, strict=True)
    )
    lengths = [len(candidate.tokens) + candidate.finished for candidate in refill]
    unfinished = sum(not candidate.finished for candidate in refill) / len(refill)
    mean = sum(lengths) / len(lengths)
    by_count = steps_in_waves(lengths, lanes) / steps_with_refill(lengths, lanes)
    return Table(
        title="Refill, measured",
        columns=["", "tokens/s", "versus waves"],
        rows=[
            ["waves; lanes that are done leave", str(rates["waves"]), "1.00×"],
            ["refill", str(rates["refill"]), f"{rates['refill'].median / rates['waves'].median:.2f}×"],
            ["refill, by the count of steps", "", f"{by_count:.2f}×"],
        ],
        notes=f"{setting}: lengths {min(lengths)} to {max(lengths)}, mean {short(mean)}, "
        f"{percent(unfinished)} unfinished. Tokens the same both ways: {'yes' if same else 'NO'}. In its "
        "waves the sampler drops the lanes that are done, so a wave costs it less than its count of steps.",
    )


if __name__ == "__main__":
    main(run, __doc__)
