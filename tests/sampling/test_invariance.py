"""A row's tokens are the same, bit for bit, alone and among any neighbours, in any order and memory."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from clvp.sampling import CandidateSampler, EngineConfig, SamplingParams
from clvp.sampling.cohort import Cohort
from clvp.sampling.cohort_decoder import CohortDecoder
from clvp.sampling.invariance import find_quantum
from clvp.sampling.prefill import prefill
from clvp.sampling.static_decoder import StaticDecoder
from clvp.sampling.weights import arrange_weights
from tests.sampling.small_models import DEVICES, Tokens, plain, prompt, small_decoder

# Long enough for the keys' and values' memory to grow once.
PARAMS = SamplingParams(max_new_tokens=80, temperature=1.0, top_p=0.95, seed=3)
WATCHED = range(8)


@dataclass(frozen=True)
class Outcome:
    """A row's tokens, and (not from a CUDA graph) a checksum over the bits of each candidate's logits."""

    tokens: Tokens
    checksums: dict[int, int]


class Logits:
    """Sums the bits of the logits of every lane, row by row: one flipped bit anywhere changes a sum."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums: dict[int, dict[int, int]] = {}
        for decoder, owners in ((CohortDecoder, "table.owners"), (StaticDecoder, "owners")):
            monkeypatch.setattr(decoder, "_logits", self._summing(decoder._logits, attrgetter(owners)))

    def _summing(self, logits_of: Callable[[Any], Tensor], owners_of: Callable[[Any], Any]) -> Any:
        def summed(decoder: Any) -> Tensor:
            logits_BV = logits_of(decoder)
            sums = logits_BV.float().view(torch.int32).long().sum(dim=1).tolist()
            for owner, bits in zip(owners_of(decoder), sums, strict=True):
                if owner is not None:
                    row = self.sums.setdefault(owner.row, {})
                    row[owner.candidate] = row.get(owner.candidate, 0) * 31 + bits
            return logits_BV

        return summed


def outcomes(device: str, numbers: Sequence[int], config: EngineConfig) -> list[Outcome]:
    """Samples the prompts of these numbers together."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        logits = Logits(monkeypatch) if device == "cpu" else None
        sampler = CandidateSampler(small_decoder().to(device), config)
        results = sampler.sample([prompt(number) for number in numbers], PARAMS)
    return [Outcome(plain(row), logits.sums[place] if logits else {}) for place, row in enumerate(results)]


@pytest.fixture(scope="module", params=DEVICES)
def alone(request: pytest.FixtureRequest) -> tuple[str, dict[int, Outcome]]:
    """The watched rows, each sampled alone."""
    config = EngineConfig(lanes=64)
    return request.param, {number: outcomes(request.param, [number], config)[0] for number in WATCHED}


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def changed_rows(device: str, alone: dict[int, Outcome], trial: int, config: EngineConfig) -> list[int]:
    """Samples the watched rows among random neighbours in random order; which of them came out other?"""
    chance = random.Random(trial)
    numbers = [*WATCHED, *(chance.randrange(100, 1000) for _ in range(chance.randrange(8)))]
    chance.shuffle(numbers)
    together = zip(numbers, outcomes(device, numbers, config), strict=True)
    return [number for number, outcome in together if number in alone and outcome != alone[number]]


FIVE_CANDIDATES = 3 * 2 * 64 * 4 * (5 * 80 + 2 * 96) + 5 * 4 * (
    16 * 202 + 64 * 64
)  # bytes of their keys and values


@pytest.mark.parametrize(
    ("lanes", "budget", "threads"),
    [
        (64, 10**9, 1),
        (64, 10**9, 2),
        (24, 10**9, 1),
        (100, 10**9, 1),
        (9, 10**9, 1),
        (64, FIVE_CANDIDATES, 1),
    ],
)
@pytest.mark.usefixtures("restored_threads")
def test_neighbours_order_lanes_memory_and_threads_change_nothing(
    alone: tuple[str, dict[int, Outcome]], lanes: int, budget: int, threads: int
) -> None:
    if alone[0] == "cuda" and lanes != 64:
        pytest.skip("a GPU's lanes are part of the promise")
    torch.set_num_threads(threads)
    config = EngineConfig(lanes=lanes, kv_budget_bytes=budget)
    assert changed_rows(*alone, trial=lanes + threads, config=config) == []


def test_a_leak_of_one_bit_would_be_noticed(
    alone: tuple[str, dict[int, Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: let the last bit of every number depend on how many lanes there are."""
    if alone[0] != "cpu":
        pytest.skip("cohorts decode on the CPU")
    attend = Cohort.attend

    def leaking(self: Cohort, layer: int, q_BD: Tensor, k_BD: Tensor, v_BD: Tensor) -> Tensor:
        attended_BD = attend(self, layer, q_BD, k_BD, v_BD)
        return attended_BD if self.size == 1 else torch.nextafter(attended_BD, attended_BD + 1)

    monkeypatch.setattr(Cohort, "attend", leaking)
    assert changed_rows(*alone, trial=1, config=EngineConfig(lanes=64))


def test_logits_are_equal_to_the_last_bit_not_only_the_tokens() -> None:
    """Stricter than tokens: the attention output of a lane alone and in a cohort of many."""
    weights = arrange_weights(small_decoder())
    prefixes = [prefill(weights, prompt(number).prefix_PD[:20]) for number in range(3, 9)]
    lanes = [5, 1, 8, 3, 2, 4]
    together = Cohort(weights, prefixes, lanes, 130, 8)
    first_of_row_2 = 6
    single = Cohort(weights, [prefixes[2]], [1], 130, 8)
    generator = torch.Generator().manual_seed(0)
    for step in range(130):
        together.begin_step()
        single.begin_step()
        for layer in range(3):
            q, k, v = torch.randn(3, sum(lanes), 64, generator=generator)
            lane = slice(first_of_row_2, first_of_row_2 + 1)
            many = together.attend(layer, q, k, v)[lane]
            assert torch.equal(many, single.attend(layer, q[lane], k[lane], v[lane])), step


def test_the_quantum_grows_where_small_widths_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = arrange_weights(small_decoder())
    assert find_quantum(weights, 64) == 8  # true of every processor seen so far

    def other_kernel_below_32(x_MI: Tensor) -> Tensor:
        y_MO = head(x_MI)
        return y_MO if len(x_MI) >= 32 else torch.nextafter(y_MO, y_MO + 1)

    head = weights.head
    changed = arrange_weights(small_decoder())
    object.__setattr__(changed, "head", other_kernel_below_32)
    assert find_quantum(changed, 64) == 32

    def kernel_by_width(x_MI: Tensor) -> Tensor:
        return head(x_MI) + len(x_MI)

    object.__setattr__(changed, "head", kernel_by_width)
    assert find_quantum(changed, 64) == 64
