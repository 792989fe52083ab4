"""Tokens per second beside `transformers`' `generate(num_return_sequences=N)`, prefill included.

Same weights (shared), dtype, device, prompts and sampling. Where lengths are fixed the stop token is
suppressed; where they are drawn only the tokens of the candidates count, not what is computed after the stop.

`transformers` 5 generates other tokens than this model was trained to: only its speed is compared.
"""

from dataclasses import dataclass, replace
from itertools import count

from clvp.sampling import SamplingParams

from .harness import Rates, Table, interleaved, percent, short, tell
from .report import main
from .workload import (
    TOKENS_PER_SECOND,
    UNFINISHED,
    Workload,
    drawn_length,
    fixed_length,
    ours,
    prompts,
    real_prefixes,
    theirs,
    warm_up_length,
)


@dataclass(frozen=True)
class Case:
    """Rows × candidates, and the ratio aimed at: on two cores in full size, or on one H200."""

    rows: int
    candidates: int
    repetitions: int
    aim: float | None = None
    drawn: bool = False  # lengths are drawn, not fixed


CPU_CASES = (
    Case(1, 1, 5, aim=1.5),
    Case(1, 16, 3, aim=1.7),
    Case(1, 64, 2, aim=3),
    Case(16, 4, 2, aim=6),
    Case(1, 16, 3, drawn=True),
)
GPU_CASES = (
    Case(1, 1, 3),
    Case(1, 16, 3, aim=20),
    Case(1, 64, 3),
    Case(1, 256, 3),
    Case(16, 16, 2, aim=80),
    Case(1, 16, 3, drawn=True),
    Case(16, 16, 2, drawn=True),
)


def run(workload: Workload) -> list[Table]:
    """One table."""
    options = workload.options
    cases = GPU_CASES if options.on_gpu else CPU_CASES
    _warm_up(workload)
    rows = []
    for case in cases:
        tell(f"versus transformers: {case.rows} rows × {case.candidates} candidates")
        rates = _compare(workload, case)
        rows.append(_line(case, rates["ours"], rates["theirs"], options.size == "full"))
    return [
        Table(
            title="Versus transformers",
            columns=[
                "rows × candidates",
                "lengths",
                "ours, tokens/s",
                "transformers, tokens/s",
                "ratio",
                "aim",
                "ours, hours of audio per hour",
            ],
            rows=rows,
            notes=f"Tokens per second, prefill included: median (lowest–highest) of the repetitions. At most "
            f"{options.tokens} new tokens per candidate; drawn lengths go from a quarter of that up, "
            f"{percent(UNFINISHED)} are unfinished. One row has a prompt of {options.prefix} positions; "
            f"several have prompts as long as real sentences, and transformers takes them one by one. "
            f"{TOKENS_PER_SECOND:.2f} tokens are one second of one candidate.",
        )
    ]


def _warm_up(workload: Workload) -> None:
    """A few tokens on each side."""
    options = workload.options
    params = fixed_length(warm_up_length(options, options.tokens))
    rows = prompts([options.prefix], 2, options)
    ours(workload.sampler, rows, params)
    theirs(workload.peer, rows, params)


def _params(case: Case, tokens: int, seed: int) -> SamplingParams:
    return replace(drawn_length(tokens) if case.drawn else fixed_length(tokens), seed=seed)


def _compare(workload: Workload, case: Case) -> dict[str, Rates]:
    options = workload.options
    seeds = count(options.seed)
    lengths = [options.prefix] if case.rows == 1 else real_prefixes(case.rows, options.seed)
    rows = prompts(lengths, case.candidates, options)
    sampler, peer = workload.sampler, workload.peer
    contestants = {
        "ours": lambda: ours(sampler, rows, _params(case, options.tokens, next(seeds))),
        "theirs": lambda: theirs(peer, rows, _params(case, options.tokens, 0)),
    }
    return interleaved(contestants, options.repeat(case.repetitions), options.device)


def _line(case: Case, ours: Rates, theirs: Rates, full_size: bool) -> list[str]:
    aim = f"{case.aim:g}×" if case.aim and full_size else ""
    return [
        f"{case.rows} × {case.candidates}",
        "drawn" if case.drawn else "fixed",
        str(ours),
        str(theirs),
        f"{ours.median / theirs.median:.2f}×",
        aim,
        short(ours.median / TOKENS_PER_SECOND),
    ]


if __name__ == "__main__":
    main(run, __doc__)
