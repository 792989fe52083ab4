"""The sampler against decoding written out plainly, and its behaviour as a component."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clvp.generation import ClvpForCausalLM
from clvp.sampling import CandidateSampler, EngineConfig, PromptRow, SamplingParams
from clvp.sampling.filters import choose_tokens, penalize
from clvp.sampling.noise import candidate_keys, uniform
from tests.sampling.small_models import START, STOP, WIDTH, plain, prompt, small_decoder

PLAIN = SamplingParams(max_new_tokens=40, temperature=1.0, top_p=0.95, seed=5)


@torch.no_grad()
def decoded_plainly(
    model: ClvpForCausalLM, row: PromptRow, candidate: int, params: SamplingParams
) -> list[int]:
    """One candidate by whole forward passes without any cache: what the sampler computes, by definition."""
    decoder = model.model.decoder
    key = candidate_keys(params.seed, row.row_id, [candidate])
    tokens = [START]
    for step in range(params.max_new_tokens):
        positions = torch.arange(len(tokens))
        if params.mel_positions == "skip_one":
            positions[1:] += 1
        embeds = decoder.input_embeds_layer(torch.tensor(tokens)) + decoder.position_embeds_layer(positions)
        hidden = decoder.hidden_of(torch.cat([row.prefix_PD, embeds])[None]).last_hidden_state
        assert hidden is not None
        logits: Tensor = model.lm_head(model.final_norm(hidden[:, -1]))
        logits[:, START] = -torch.inf
        history = torch.tensor([[*tokens, *params.penalized_tokens]])
        logits = penalize(logits, history, params.repetition_penalty)
        if step < params.min_new_tokens:
            logits[:, STOP] = -torch.inf
        tokens.append(int(choose_tokens(logits, uniform(key, torch.tensor(step)), params)))
        if tokens[-1] == STOP:
            break
    return tokens[1:]


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        SamplingParams(max_new_tokens=40, do_sample=False, repetition_penalty=1.0),
        SamplingParams(max_new_tokens=40, do_sample=False, mel_positions="skip_one", penalized_tokens=(1, 9)),
        SamplingParams(max_new_tokens=30, min_new_tokens=12, top_k=0, typical_p=0.9, seed=2),
        SamplingParams(max_new_tokens=1),
    ],
    ids=["sampled", "greedy", "skip one, penalized prompt", "typical, minimum length", "one token"],
)
def test_the_tokens_are_those_of_plain_decoding(params: SamplingParams) -> None:
    model = small_decoder()
    rows = [prompt(number, range(3)) for number in (1, 2, 3)]
    for row, candidates in zip(rows, CandidateSampler(model).sample(rows, params), strict=True):
        for result in candidates:
            expected = decoded_plainly(model, row, result.candidate, params)
            assert result.finished == (expected[-1] == STOP)
            assert result.tokens.tolist() == (expected[:-1] if result.finished else expected)


def test_lengths_vary_so_the_other_tests_mean_something() -> None:
    results = CandidateSampler(small_decoder()).sample([prompt(2, range(20))], PLAIN)
    lengths = {len(candidate.tokens) for candidate in results[0]}
    assert len(lengths) > 5
    assert {candidate.finished for candidate in results[0]} == {True, False}


def test_results_keep_the_order_of_rows_and_candidates() -> None:
    rows = [prompt(number, [5, 0, 3]) for number in range(7)]
    results = CandidateSampler(small_decoder(), EngineConfig(lanes=8)).sample(rows, PLAIN)
    assert [r[0].row_id for r in results] == [row.row_id for row in rows]
    assert all([c.candidate for c in row] == [5, 0, 3] for row in results)


def test_more_candidates_extend_a_row() -> None:
    sampler = CandidateSampler(small_decoder())
    (all_at_once,) = sampler.sample([prompt(1, range(24))], PLAIN)
    (first,) = sampler.sample([prompt(1, range(7))], PLAIN)
    (rest,) = sampler.sample([prompt(1, range(7, 24))], PLAIN)
    assert plain(all_at_once) == plain([*first, *rest])


def test_rows_are_read_only_as_lanes_come_free() -> None:
    read: list[int] = []

    def rows() -> Iterator[PromptRow]:
        for number in range(20):
            read.append(number)
            yield prompt(number, range(8))

    results = CandidateSampler(small_decoder(), EngineConfig(lanes=16)).sample_iter(rows(), PLAIN)
    next(results)
    assert len(read) < 10
    assert len(list(results)) == 19


def test_a_row_without_candidates_and_no_rows_at_all() -> None:
    sampler = CandidateSampler(small_decoder())
    assert sampler.sample([], PLAIN) == []
    results = sampler.sample([prompt(1, []), prompt(2, [0]), prompt(3, [])], PLAIN)
    assert [len(row) for row in results] == [0, 1, 0]


def test_another_seed_gives_other_tokens() -> None:
    sampler = CandidateSampler(small_decoder())
    one = sampler.sample([prompt(2)], SamplingParams(max_new_tokens=20, seed=1))
    two = sampler.sample([prompt(2)], SamplingParams(max_new_tokens=20, seed=2))
    assert plain(one[0]) != plain(two[0])


def test_the_start_token_is_never_drawn() -> None:
    model = small_decoder()
    with torch.no_grad():
        assert model.lm_head.bias is not None
        model.lm_head.bias[START] += 1e4
    results = CandidateSampler(model).sample([prompt(2)], PLAIN)
    assert all(START not in candidate.tokens for candidate in results[0])


def test_stats_count_what_was_done() -> None:
    sampler = CandidateSampler(small_decoder(), EngineConfig(lanes=16))
    results = sampler.sample([prompt(number) for number in range(6)], PLAIN)
    stats = sampler.stats
    assert stats.tokens == sum(len(c.tokens) for row in results for c in row)
    assert stats.prefills == 6
    assert stats.tokens <= stats.lane_steps <= 16 * stats.steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    sampler = CandidateSampler(small_decoder().to(dtype))
    row = prompt(2, range(4))
    row = PromptRow(row.row_id, row.prefix_PD.to(dtype), row.candidates)
    alone = [plain(sampler.sample([PromptRow(row.row_id, row.prefix_PD, [c])], PLAIN)[0]) for c in range(4)]
    (together,) = sampler.sample([row], PLAIN)
    assert [c for one in alone for c in one] == plain(together)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PromptRow("bad", torch.zeros(3, WIDTH + 1), [0]), "row 'bad': prefix of shape"),
        (PromptRow("bad", torch.zeros(0, WIDTH), [0]), "row 'bad': prefix of shape"),
        (PromptRow("bad", torch.zeros(82, WIDTH), [0]), "row 'bad': prefix of shape"),
        (PromptRow("bad", torch.full((3, WIDTH), torch.nan), [0]), "row 'bad'.*not finite"),
        (PromptRow("bad", torch.zeros(3, WIDTH), [0, 0]), "row 'bad'.*distinct"),
        (PromptRow("bad", torch.zeros(3, WIDTH), [-1]), "row 'bad'.*negative"),
    ],
)
def test_a_malformed_prompt_is_named(row: PromptRow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateSampler(small_decoder()).sample([row], PLAIN)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [PLAIN, replace(PLAIN, do_sample=False)], ids=["sampled", "greedy"])
def test_logits_that_are_no_numbers_draw_no_token(bad: float, params: SamplingParams) -> None:
    """NaN weights, or float16 that overflows: any token would be arbitrary."""
    model = small_decoder()
    with torch.no_grad():
        model.lm_head.bias[7] = bad
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        CandidateSampler(model).sample([prompt(1)], params)


@pytest.mark.parametrize("temperature", [1e-30, 1e-20])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = CandidateSampler(small_decoder())
    greedy = sampler.sample([prompt(1)], SamplingParams(max_new_tokens=20, do_sample=False))
    cold = sampler.sample([prompt(1)], SamplingParams(max_new_tokens=20, temperature=temperature))
    assert plain(cold[0]) == plain(greedy[0])


def test_more_tokens_than_positions_are_refused() -> None:
    sampler = CandidateSampler(small_decoder())
    with pytest.raises(ValueError, match="max_new_tokens=161 exceeds the model's 160"):
        sampler.sample([prompt(1)], SamplingParams(max_new_tokens=161))
    with pytest.raises(ValueError, match="max_new_tokens=160 exceeds the model's 159"):
        sampler.sample([prompt(1)], SamplingParams(max_new_tokens=160, mel_positions="skip_one"))
    longest = SamplingParams(max_new_tokens=160, min_new_tokens=160)
    (results,) = sampler.sample([prompt(1, [0])], longest)
    assert len(results[0].tokens) == 160


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 501),
        ("temperature", 0.0),
        ("temperature", 1e-38),
        ("temperature", 1e-44),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("repetition_penalty", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("typical_p", 1.5),
        ("repetition_penalty", 0.0),
        ("mel_positions", "other"),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_facts_name_what_the_promise_depends_on() -> None:
    facts = CandidateSampler(small_decoder()).facts()
    assert set(facts) >= {"device", "dtype", "torch", "machine", "products", "quantum", "arithmetic"}
