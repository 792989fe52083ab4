"""A row's tokens are the same, bit for bit, alone and among any neighbours, in any order and memory."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clvp.config import ClvpDecoderConfig
from clvp.generation import ClvpForCausalLM
from clvp.sampling import CandidateSampler, EngineConfig, SamplingParams, decode_weights, invariance
from clvp.sampling.cohort import Cohort
from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import Products, arrange_weights
from clvp.sampling.gpu_decoder import StaticDecoder
from clvp.sampling.invariance import FIXED, Arithmetic, find_arithmetic
from clvp.sampling.prefill import Prefix, prefill
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
        (64, 10**9, 3),
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


@pytest.mark.parametrize("kind", ["packed", "plain"])
@pytest.mark.usefixtures("restored_threads")
def test_a_prefix_has_its_bits_in_any_company_and_with_any_threads(kind: Literal["packed", "plain"]) -> None:
    """Also one that is longer than the widest product; in a model so wide that all threads have a share."""
    config = ClvpDecoderConfig(
        vocab_size=64, bos_token_id=62, eos_token_id=63, hidden_size=256, num_hidden_layers=2
    )
    torch.manual_seed(0)
    model = ClvpForCausalLM(config).eval()
    if kind == "packed" and not decode_weights.can_pack(model.lm_head.weight):
        pytest.skip("oneDNN has no such product here")
    prefixes = [torch.randn(length, 256) for length in (3, 57, 200, 30, 191, 64, 1, 85, 260, 30)]
    alone: dict[Arithmetic, list[Prefix]] = {}
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        arithmetic = find_arithmetic(model, kind)
        if arithmetic.digest is None:
            continue  # products are not invariant with so many threads on this processor, and facts() says so
        weights = arrange_weights(model, arithmetic.products)
        if arithmetic not in alone:
            alone[arithmetic] = [prefill(weights, [prefix])[0] for prefix in prefixes]
        for order in (range(10), range(9, -1, -1)):
            together = prefill(weights, [prefixes[place] for place in order])
            for place, prefix in zip(order, together, strict=True):
                expected = alone[arithmetic][place]
                assert prefix.length == len(prefixes[place])
                assert all(map(torch.equal, prefix.keys, expected.keys)), (threads, place)
                assert all(map(torch.equal, prefix.values, expected.values)), (threads, place)


def test_logits_are_equal_to_the_last_bit_not_only_the_tokens() -> None:
    """Stricter than tokens: the attention output of a lane alone and in a cohort of many."""
    model = small_decoder()
    weights = arrange_weights(model, find_arithmetic(model).products)
    prefixes = prefill(weights, [prompt(number).prefix_PD[:20] for number in range(3, 9)])
    lanes = [5, 1, 8, 3, 2, 4]
    together = Cohort(weights, prefixes, lanes, 130)
    first_of_row_2 = 6
    single = Cohort(weights, [prefixes[2]], [1], 130)
    generator = torch.Generator().manual_seed(0)
    for step in range(130):
        together.begin_step()
        single.begin_step()
        for layer in range(3):
            q, k, v = torch.randn(3, sum(lanes), 64, generator=generator)
            lane = slice(first_of_row_2, first_of_row_2 + 1)
            many = together.attend(layer, q, k, v)[lane]
            assert torch.equal(many, single.attend(layer, q[lane], k[lane], v[lane])), step


@pytest.mark.parametrize("products", ["packed", "plain"])
@pytest.mark.usefixtures("restored_threads")
def test_each_kind_of_product_keeps_the_promise(products: Literal["packed", "plain"]) -> None:
    """Also the kind that is not chosen here: what a run asks for, it gets."""
    config = EngineConfig(lanes=64, products=products)
    if CandidateSampler(small_decoder(), config).facts().get("threads"):
        pytest.skip(f"{products} products are not invariant on this processor, and facts() says so")
    alone = {number: outcomes("cpu", [number], config)[0] for number in WATCHED}
    torch.set_num_threads(2)
    assert changed_rows("cpu", alone, trial=1, config=replace(config, lanes=50)) == []


@pytest.mark.usefixtures("restored_threads")
def test_the_facts_depend_on_nothing_that_a_run_may_choose() -> None:
    configs = [EngineConfig(), EngineConfig(lanes=3), EngineConfig(lanes=1000, kv_budget_bytes=10**6)]
    facts = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        invariance._find.cache_clear()
        facts += [CandidateSampler(small_decoder(), config).facts() for config in configs]
    assert all(other == facts[0] for other in facts)


def perturbed(wrong: Callable[[Tensor], Tensor]) -> Callable[..., Callable[[Tensor], Tensor]]:
    """`linear_product`, with another last bit in the rows that `wrong` marks in a product's input."""
    linear_product = decode_weights.linear_product

    def made(*weights: Any) -> Callable[[Tensor], Tensor]:
        product = linear_product(*weights)

        def changed(x_WI: Tensor) -> Tensor:
            y_WO = product(x_WI)
            return torch.where(wrong(x_WI)[:, None], torch.nextafter(y_WO, y_WO + 1), y_WO)

        return changed

    return made


def tail_of_six(x_WI: Tensor) -> Tensor:
    """A micro-kernel of six rows, and another one for what is left."""
    return torch.arange(len(x_WI)) >= len(x_WI) // 6 * 6


def narrow(x_WI: Tensor) -> Tensor:
    return torch.full([len(x_WI)], len(x_WI) < 30)


def any_two_threads(x_WI: Tensor) -> Tensor:
    return torch.full([len(x_WI)], torch.get_num_threads() > 1)


def second_row(x_WI: Tensor) -> Tensor:
    return torch.arange(len(x_WI)) == 1


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    invariance._find.cache_clear()
    yield
    invariance._find.cache_clear()


@pytest.mark.parametrize(
    ("wrong", "quantum"), [(tail_of_six, 6), (narrow, 32), (any_two_threads, None), (second_row, None)]
)
@pytest.mark.usefixtures("fresh_probe")
def test_the_probe_sees_what_a_kernel_does_otherwise(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor], quantum: int | None
) -> None:
    """Kernels that are right but for what is injected: the probe takes the next multiple, or none."""
    natural = find_arithmetic(small_decoder())
    if natural.products.quantum > 6:
        pytest.skip("this processor's own kernels need a larger quantum")
    monkeypatch.setattr(decode_weights, "linear_product", perturbed(wrong))
    invariance._find.cache_clear()
    found = find_arithmetic(small_decoder())
    if quantum is None:
        assert (found.products, found.digest) == (FIXED, None)
        assert found.facts()["threads"] == torch.get_num_threads()
    else:
        assert found.products.quantum == quantum
        assert found.digest


def test_the_facts_of_another_state_of_libraries_are_another_question() -> None:
    """Of processes that computed before they imported clvp, and of those that compute with less precision."""
    asked = set()
    for before in (
        "pass",
        "torch.rand(9, 9) @ torch.rand(9, 9)",
        "torch.set_float32_matmul_precision('medium')",
    ):
        script = (
            f"import torch; {before}; import clvp; from tests.sampling.small_models import small_decoder;"
            "from clvp.sampling.invariance import deciding, find_arithmetic as find; model = small_decoder();"
            "print(hash(repr(deciding(model))), find(model, 'plain'))"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        asked.add(tuple(done.stdout.split(maxsplit=1)))
    assert len({question for question, _ in asked}) == len(asked), "one question, two answers"


def test_more_threads_than_are_tried_by_default_are_tried_where_they_are_set(restored_threads: None) -> None:
    torch.set_num_threads(3)
    assert 3 in invariance._question(small_decoder(), None)[-1]


@pytest.mark.usefixtures("fresh_probe")
def test_the_probe_sees_prefills_that_know_their_company(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = functional.scaled_dot_product_attention

    def leaking(q: Tensor, *others: Tensor, **options: Any) -> Tensor:
        attended = attention(q, *others, **options)
        return attended if q.storage_offset() == 0 else torch.nextafter(attended, attended + 1)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", leaking)
    assert find_arithmetic(small_decoder()).digest is None


@pytest.mark.parametrize("products", [Products(False, 4), Products(True, 12), FIXED])
def test_products_are_padded_to_widths_and_split_at_the_widest(products: Products) -> None:
    seen = set()

    def doubled(x_WI: Tensor, y_WI: Tensor) -> Tensor:
        seen.add(len(x_WI))
        return x_WI + y_WI

    for rows in (1, 5, 64, 100, 192, 193, 500):
        x_WI = torch.randn(rows, 3)
        assert torch.equal(products.in_widths(doubled)(x_WI, x_WI), 2 * x_WI)
        assert products.padded(rows) >= rows
        assert products.padded(products.padded(rows)) == products.padded(rows)
    assert seen <= set(products.widths)
    assert all(width % products.quantum == 0 for width in products.widths)
    assert products.padded(33) <= 48 or products is FIXED
