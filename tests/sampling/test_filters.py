"""The filters against `transformers`' logits processors, as distributions, and the draw against them."""

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as reference

from clvp.sampling import SamplingParams
from clvp.sampling.filters import choose_tokens, filtered_distribution, forbid_early_stop, penalize

VOCABULARY, ROWS, STOP = 300, 16, 299


def random_logits(seed: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, VOCABULARY, generator=generator) * spread


def by_token(probabilities_BK: Tensor, tokens_BK: Tensor) -> Tensor:
    return torch.zeros(len(tokens_BK), VOCABULARY).scatter_(1, tokens_BK, probabilities_BK)


def reference_distribution(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    steps = LogitsProcessorList([reference.TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        steps.append(reference.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(reference.TopPLogitsWarper(params.top_p))
    if params.typical_p < 1:
        steps.append(reference.TypicalLogitsWarper(params.typical_p))
    scores: Tensor = steps(torch.zeros(ROWS, 1, dtype=torch.int64), logits_BV.clone())
    return scores.softmax(-1)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_top_k_and_top_p_are_those_of_transformers(top_k: int, top_p: float) -> None:
    for seed, temperature in product(range(3), (0.2, 0.8, 1.7)):
        logits_BV = random_logits(seed)
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        ours = by_token(*filtered_distribution(logits_BV, params))
        theirs = reference_distribution(logits_BV, params)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.9), (40, 0.9)])
def test_typical_sampling_is_that_of_transformers(typical_p: float, top_k: int, top_p: float) -> None:
    for seed in range(5):
        logits_BV = random_logits(seed, spread=1.5)
        params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, typical_p=typical_p)
        ours = by_token(*filtered_distribution(logits_BV, params))
        theirs = reference_distribution(logits_BV, params)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits_BV = random_logits(0)
    history_BT = torch.randint(0, VOCABULARY, (ROWS, 60), generator=torch.Generator().manual_seed(1))
    history_BT[:, 30:] = history_BT[:, :30]  # a token counts once, however often it occurs
    expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(history_BT, logits_BV.clone())
    assert torch.equal(penalize(logits_BV, history_BT, penalty), expected)


def test_impossible_tokens_stay_impossible() -> None:
    logits_BV = random_logits(0)
    logits_BV[:, 7] = -torch.inf
    logits_BV = penalize(logits_BV, torch.full((ROWS, 3), 7), 2.0)
    probabilities = by_token(*filtered_distribution(logits_BV, SamplingParams(top_k=0, top_p=1.0)))
    assert (probabilities[:, 7] == 0).all()
    assert torch.isfinite(probabilities).all()


def test_the_stop_token_waits_for_the_minimum_length() -> None:
    logits_BV = random_logits(0)
    steps_B = torch.arange(ROWS)
    out_BV = forbid_early_stop(logits_BV.clone(), steps_B, STOP, 5)
    processor = reference.MinNewTokensLengthLogitsProcessor(2, 5, STOP)
    for row in range(ROWS):
        ids = torch.zeros(1, 2 + int(steps_B[row]), dtype=torch.int64)
        assert torch.equal(out_BV[row : row + 1], processor(ids, logits_BV[row : row + 1].clone()))


def test_greedy_takes_the_most_probable_token() -> None:
    logits_BV = random_logits(3)
    params = SamplingParams(do_sample=False)
    assert torch.equal(choose_tokens(logits_BV, torch.full((ROWS,), 0.99), params), logits_BV.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    """Evenly spread numbers must draw each token in proportion to its probability, to within one draw."""
    draws = 20_000
    params = SamplingParams(top_k=30, top_p=0.9)
    logits_V = random_logits(0)[0]
    expected_V = by_token(*filtered_distribution(logits_V[None], params))[0]
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = choose_tokens(logits_V.expand(draws, -1), uniform, params)
    counts_V = torch.bincount(tokens, minlength=VOCABULARY)
    assert ((counts_V - expected_V * draws).abs() <= 1.01).all()


@pytest.mark.parametrize("number", [2.0**-53, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(number: float) -> None:
    logits_BV = random_logits(0, spread=30)  # most probabilities underflow to zero
    params = SamplingParams(top_k=0, top_p=1.0)
    tokens_B = choose_tokens(logits_BV, torch.full((ROWS,), number, dtype=torch.float64), params)
    probabilities = by_token(*filtered_distribution(logits_BV, params))
    assert (probabilities.gather(1, tokens_B[:, None]) > 0).all()
