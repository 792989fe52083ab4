"""The key-value budget: planned, kept, and measured."""

import json
import subprocess
import sys

import pytest

from clvp.sampling import CandidateSampler, EngineConfig, MemoryBudgetError, SamplingParams
from clvp.sampling.cpu_decoder import CohortDecoder
from tests.sampling.small_models import prompt, small_decoder

PARAMS = SamplingParams(max_new_tokens=140, min_new_tokens=100, temperature=1.0)
SHORT = SamplingParams(max_new_tokens=48, min_new_tokens=40, temperature=1.0)
TWO_TOKENS = SamplingParams(max_new_tokens=2, temperature=1.0)
WORKSPACE = 4 * (16 * 202 + 64 * 64)  # bytes per lane
PER_POSITION = 3 * 2 * 64 * 4  # bytes: layers, keys and values, width, float32


def test_a_budget_too_small_for_one_candidate_is_a_clear_error() -> None:
    sampler = CandidateSampler(small_decoder(), EngineConfig(kv_budget_bytes=PER_POSITION * 140))
    with pytest.raises(MemoryBudgetError, match=r"one candidate needs 0\.3 MiB.*budget is 0\.2 MiB.*raise"):
        sampler.sample([prompt(1)], PARAMS)


def test_the_smallest_budget_decodes_one_candidate_after_the_other() -> None:
    budget = PER_POSITION * (140 + 2 * 64) + WORKSPACE
    sampler = CandidateSampler(small_decoder(), EngineConfig(kv_budget_bytes=budget))
    row = prompt(5, range(3))
    assert 32 < row.prefix_PD.shape[0] <= 64
    (results,) = sampler.sample([row], PARAMS)
    assert len(results) == 3
    assert sampler.stats.steps == sum(len(c.tokens) + c.finished for c in results)


def test_what_is_reserved_never_exceeds_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is held never exceeds what is reserved, at any step."""
    budget = PER_POSITION * 4000
    step = CohortDecoder.step
    held_peak = 0

    def watched(decoder: CohortDecoder) -> object:
        nonlocal held_peak
        finished = step(decoder)
        reserved = sum(cohort.reserved_bytes for cohort in decoder.cohorts)
        held = sum(
            tensor.nbytes
            for cohort in decoder.cohorts
            for tensor in (*cohort.keys, *cohort.values, *cohort.prefix.keys, *cohort.prefix.values)
        )
        assert held <= reserved <= budget
        held_peak = max(held_peak, held)
        return finished

    monkeypatch.setattr(CohortDecoder, "step", watched)
    sampler = CandidateSampler(small_decoder(), EngineConfig(kv_budget_bytes=budget))
    varied = SamplingParams(max_new_tokens=140, temperature=1.0, top_p=0.95)
    sampler.sample([prompt(number) for number in range(20)], varied)
    assert held_peak > budget / 2  # the budget was used, not left idle


MEASURED = """
import json, sys, torch
from pathlib import Path
from clvp.sampling import CandidateSampler, EngineConfig
from tests.sampling.small_models import prompt, small_decoder
from tests.sampling.test_memory import SHORT, TWO_TOKENS

def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
rows, candidates, budget = (int(argument) for argument in sys.argv[1:])
sampler = CandidateSampler(small_decoder(), EngineConfig(lanes=64, kv_budget_bytes=budget))
CandidateSampler(small_decoder()).sample([prompt(0, range(64))], TWO_TOKENS)  # what the first calls load
before, done = peak(), 0
for _, row in sampler.sample_iter((prompt(number, range(candidates)) for number in range(rows)), SHORT):
    done += len(row)
utilisation = sampler.stats.tokens / sampler.stats.steps
print(json.dumps({"candidates": done, "grown": peak() - before, "lanes": utilisation}))
"""


@pytest.mark.slow
def test_eight_rows_of_many_candidates_stay_within_a_small_budget() -> None:
    """2,000 candidates would hold 147 MB of keys and values at once; the budget is 4 MiB, and it binds.

    Besides keys and values the process may grow by two rows' results, about 2 KB a candidate as objects.
    """
    budget, candidates = 4 * 2**20, 250
    assert 8 * candidates * PER_POSITION * SHORT.max_new_tokens > 30 * budget
    command = [sys.executable, "-c", MEASURED, "8", str(candidates), str(budget)]
    outcome = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert outcome["candidates"] == 8 * candidates
    assert 16 < outcome["lanes"] < 56
    results = 2 * candidates * (SHORT.max_new_tokens * 8 + 2048)
    assert outcome["grown"] <= budget + results
