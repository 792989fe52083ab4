"""What it costs to wait for a block's last candidate: blocks one by one, versus several in one engine.

First by count, for the log-normal lengths of speech; then measured with the engine.
A block has candidates for twice the lanes, as the pipeline cuts them on a CPU.
"""

import heapq
from collections import deque
from collections.abc import Sequence

from clvp.sampling import CandidateSampler, PromptRow, SamplingParams

from .harness import Table, interleaved, percent, tell
from .lengths import CANDIDATES, drawn_lengths
from .report import main
from .workload import Workload, drawn_length, prompts, real_prefixes, warm_up_length

AT_ONCE = (1, 2, 3)
CASES = ((64, 2), (64, 8), (256, 2), (256, 4), (256, 8))  # lanes, and how many times as many in a block
MULTIPLE, BLOCKS = 2, 5  # measured
CPU_LANES, GPU_LANES = 32, 256
REPETITIONS = 2


def run(workload: Workload) -> list[Table]:
    """Two tables: counted and measured."""
    return [_counted(workload.options.seed), _measured(workload)]


def share_in_use(lengths: Sequence[int], lanes: int, per_block: int, at_once: int) -> float:
    """Of the lanes, when so many blocks of so many candidates are in an engine at a time."""
    blocks = deque(lengths[begin : begin + per_block] for begin in range(0, len(lengths), per_block))
    waiting: deque[tuple[int, int]] = deque()  # (length, block)
    decoded: list[tuple[int, int]] = []  # (when it is done, block)
    left: dict[int, int] = {}  # candidates that are not done, by block
    now = number = 0
    while blocks or left:
        while blocks and len(left) < at_once:
            lengths_of_block, number = blocks.popleft(), number + 1
            left[number] = len(lengths_of_block)
            waiting.extend((length, number) for length in lengths_of_block)
        while waiting and len(decoded) < lanes:
            length, block = waiting.popleft()
            heapq.heappush(decoded, (now + length, block))
        now, block = heapq.heappop(decoded)
        left[block] -= 1
        if not left[block]:
            del left[block]
    return sum(lengths) / (now * lanes)


def _counted(seed: int) -> Table:
    lines = []
    for lanes, multiple in CASES:
        lengths = drawn_lengths(64 * lanes // CANDIDATES, CANDIDATES, seed)
        shares = [share_in_use(lengths, lanes, multiple * lanes, at_once) for at_once in AT_ONCE]
        lines.append([f"{lanes} lanes, blocks of {multiple * lanes}", *map(percent, shares)])
    return Table("Lanes in use, by count", ["", *(f"{n} at once" for n in AT_ONCE)], lines)


def _in_blocks(
    sampler: CandidateSampler, rows: list[PromptRow], params: SamplingParams, at_once: int
) -> tuple[list[list[int]], float]:
    """(the tokens of every candidate, lanes in use on average)."""
    engine, size = sampler.engine(params), MULTIPLE * sampler.lanes // CANDIDATES
    waiting = deque(rows[begin : begin + size] for begin in range(0, len(rows), size))
    results = []
    under_way = []
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            under_way.append([engine.begin(row) for row in waiting.popleft()])
            results += under_way[-1]
        engine.step()
        under_way = [block for block in under_way if not all(result.done() for result in block)]
    tokens = [candidate.tokens.tolist() for result in results for candidate in result.result()]
    return tokens, engine.stats.live_steps / engine.stats.steps


def _measured(workload: Workload) -> Table:
    options = workload.options
    lanes = GPU_LANES if options.on_gpu else CPU_LANES
    sampler, params = workload.sampler_with_lanes(lanes), drawn_length(options.tokens)
    number = BLOCKS * MULTIPLE * lanes // CANDIDATES
    rows = prompts(real_prefixes(number, options.seed), CANDIDATES, options)
    outcome: dict[str, tuple[list[list[int]], float]] = {}

    def sampled(name: str, at_once: int) -> float:
        outcome[name] = _in_blocks(sampler, rows, params, at_once)
        return sum(map(len, outcome[name][0]))

    tell(f"blocks_at_once: {number} rows × {CANDIDATES} candidates in {lanes} lanes")
    sampler.sample(rows[:1], drawn_length(warm_up_length(options, options.tokens)))
    contestants = {f"{n} at once": lambda n=n: sampled(f"{n} at once", n) for n in AT_ONCE}
    rates = interleaved(contestants, options.repeat(REPETITIONS), options.device)
    first = next(iter(rates.values()))
    same = all(tokens == outcome["1 at once"][0] for tokens, _ in outcome.values())
    return Table(
        "Blocks at once, measured",
        ["", "tokens/s", "versus one by one", "lanes in use"],
        [
            [name, str(rate), f"{rate.median / first.median:.2f}×", f"{outcome[name][1]:.1f}"]
            for name, rate in rates.items()
        ],
        notes=f"{BLOCKS} blocks of {MULTIPLE * lanes} candidates in {lanes} lanes, prefill included. "
        f"Tokens the same in all: {'yes' if same else 'NO'}.",
    )


if __name__ == "__main__":
    main(run, __doc__)
