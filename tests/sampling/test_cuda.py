"""The sampler on a GPU: its kernel, its graph, the same bits in any company, its memory.

Skipped without one, but for `python -m tests.gpu --rehearse`, which runs them in small on a CPU.
"""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clvp.config import ClvpDecoderConfig
from clvp.generation import ClvpForCausalLM
from clvp.sampling import CandidateSampler, EngineConfig, MemoryBudgetError, PromptRow, SamplingParams
from clvp.sampling.decode_weights import arrange_weights, decoder_logits
from clvp.sampling.gpu_decoder import Attend, StaticDecoder
from clvp.sampling.prefill import StaticPrefill, prefill
from tests.sampling.rehearsal import DEVICE, REHEARSED, attend_plainly, static_decoder, triton_attend
from tests.sampling.small_models import plain, prompt, small_decoder

ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(not (ON_GPU or REHEARSED), reason="needs a GPU")

DTYPES = [torch.float32, torch.bfloat16]
# A CPU keeps the bits of rows in float32 alone.
KEPT_DTYPES = DTYPES if ON_GPU else DTYPES[:1]
LANES = 64 if ON_GPU else 6
ROWS = range(8) if ON_GPU else range(2)
PARAMS = SamplingParams(max_new_tokens=80 if ON_GPU else 12, temperature=1.0, top_p=0.95, seed=3)


@pytest.fixture(autouse=True)
def _decoder_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(CandidateSampler, "new_decoder", static_decoder)


def wide_decoder(dtype: torch.dtype) -> ClvpForCausalLM:
    """Two layers of the published shapes; on a CPU narrow ones."""
    torch.manual_seed(0)
    sizes = {} if ON_GPU else {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 300}
    tokens = {} if ON_GPU else {"bos_token_id": 298, "eos_token_id": 299}
    model = ClvpForCausalLM(ClvpDecoderConfig(num_hidden_layers=2, **sizes, **tokens))
    return model.to(DEVICE, dtype).eval()


def wide_prompt(number: int, width: int, candidates: int) -> PromptRow:
    generator = torch.Generator().manual_seed(number)
    length = random.Random(number).randint(3, 90)
    return PromptRow(f"row{number}", torch.randn(length, width, generator=generator), range(candidates))


# ---- the kernel ----


class Lanes:
    """Random inputs of the attention of lanes, some of them not active."""

    def __init__(self, dtype: torch.dtype) -> None:
        lanes, slots, heads, head_dim = (48, 5, 16, 64) if ON_GPU else (5, 3, 2, 16)
        prefix_room, suffix_room = (416, 500) if ON_GPU else (96, 70)
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE, dtype)

        def below(limit: int, first: list[int]) -> Tensor:
            drawn = torch.randint(limit, (lanes,), generator=generator)
            drawn[: len(first)] = torch.tensor(first)
            return drawn.to(DEVICE)

        self.qkv_WE = noise(lanes, 3 * heads * head_dim)
        self.prefixes = [noise(slots, heads, prefix_room, head_dim) for _ in range(2)]
        self.suffixes = [noise(lanes, heads, suffix_room, head_dim) for _ in range(2)]
        self.slots_W = below(slots, [])
        self.lengths_W = 1 + below(prefix_room, [prefix_room - 1, 0, 63, 64])
        self.steps_W = below(suffix_room, [suffix_room - 1, 0, 64, 63])
        self.active_W = below(4, [1, 1, 1, 1, 0]) > 0

    def attended(self, attend: Attend, order: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The attention of the lanes in an order, put back; and the suffixes after it."""
        order = torch.arange(len(self.qkv_WE), device=DEVICE) if order is None else order
        suffixes = [suffix[order] for suffix in self.suffixes]
        numbers = [x[order] for x in (self.slots_W, self.lengths_W, self.steps_W, self.active_W)]
        out_WD = attend(self.qkv_WE[order], *self.prefixes, *suffixes, *numbers)
        back = order.argsort()
        return out_WD[back], [suffix[back] for suffix in suffixes]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-5), (torch.bfloat16, 1e-2)])
def test_the_kernel_computes_attention(dtype: torch.dtype, error: float) -> None:
    lanes = Lanes(dtype)
    ours_WD, stored = lanes.attended(triton_attend())
    exact = Lanes(dtype)
    for name in ("qkv_WE", "prefixes", "suffixes"):
        value = getattr(exact, name)
        setattr(exact, name, [x.double() for x in value] if isinstance(value, list) else value.double())
    expected_WD, expected_stored = exact.attended(attend_plainly)
    assert float((ours_WD - expected_WD).abs().max()) < error * float(expected_WD.abs().max())
    assert not ours_WD[~lanes.active_W].any()
    for ours, expected in zip(stored, expected_stored, strict=True):
        assert torch.equal(ours.double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lane_attends_alike_in_every_place_and_company(dtype: torch.dtype) -> None:
    lanes, attend = Lanes(dtype), triton_attend()
    expected_WD, _ = lanes.attended(attend)
    turned_WD, _ = lanes.attended(attend, torch.arange(len(expected_WD), device=DEVICE).flip(0))
    assert torch.equal(turned_WD, expected_WD)
    lanes.active_W[1:] = False
    alone_WD, _ = lanes.attended(attend)
    assert torch.equal(alone_WD[0], expected_WD[0])
    assert not alone_WD[1:].any()


# ---- the graph ----


def decoded(model: ClvpForCausalLM, params: SamplingParams, eager: bool) -> list[object]:
    """Tokens of rows, then the bits of the keys and values that are left behind."""
    kept: list[StaticDecoder] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        if eager:
            monkeypatch.setattr(StaticDecoder, "_replay", StaticDecoder._next_step)
        sampler = CandidateSampler(model, EngineConfig(lanes=LANES, kv_budget_bytes=2**31))
        new_decoder = sampler.new_decoder
        monkeypatch.setattr(sampler, "new_decoder", lambda p: kept.append(new_decoder(p)) or kept[-1])
        rows = [wide_prompt(number, sampler.weights.width, 9 if ON_GPU else 4) for number in ROWS]
        results = sampler.sample(rows, params)
    (decoder,) = kept
    assert (decoder.graph is None) == (eager or not ON_GPU)
    bits = [x.view(torch.uint8).cpu() for x in (decoder.suffix_keys, decoder.suffix_values)]
    return [[plain(row) for row in results], *bits]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 0, "top_p": 1.0, "typical_p": 0.9},  # sorts and sums the whole vocabulary
        {"do_sample": False, "repetition_penalty": 1.0, "min_new_tokens": 9, "mel_positions": "skip_one"},
    ],
    ids=["usual", "typical", "greedy"],
)
def test_the_graph_does_what_its_steps_do(dtype: torch.dtype, changes: dict[str, object]) -> None:
    """To the last bit, keys and values included, with lanes refilled in between."""
    model, params = wide_decoder(dtype), replace(PARAMS, **changes)
    expected, ours = decoded(model, params, eager=True), decoded(model, params, eager=False)
    assert ours[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], expected[1:], strict=True))


def test_the_graph_notices_logits_that_are_no_numbers() -> None:
    model = small_decoder().to(DEVICE)
    with torch.no_grad():
        model.lm_head.bias[7] = torch.nan
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        CandidateSampler(model, EngineConfig(lanes=LANES)).sample([prompt(1)], PARAMS)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@torch.inference_mode()
def test_logits_are_those_of_the_model(dtype: torch.dtype, error: float) -> None:
    """Of every step, by one pass of the model itself over all tokens, on the CPU in float32."""
    model = wide_decoder(dtype)
    sampler = CandidateSampler(model, EngineConfig(lanes=LANES, kv_budget_bytes=2**31))
    rows = [wide_prompt(number, sampler.weights.width, 1) for number in ROWS]
    seen: list[Tensor] = []

    def step(decoder: StaticDecoder) -> None:
        logits_WV = decoder._logits()
        seen.append(logits_WV.to("cpu", copy=True))
        decoder._draw(logits_WV)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StaticDecoder, "_replay", step)
        results = sampler.sample(rows, PARAMS)
    exact, start = model.cpu().float(), sampler.weights.start_token
    for lane, (row, (candidate,)) in enumerate(zip(rows, results, strict=True)):
        states_1TD = exact.speech_latents(row.prefix_PD[None], candidate.tokens[None])
        expected_TV = exact.lm_head(states_1TD)[0]
        ours_TV = torch.stack([logits_WV[lane] for logits_WV in seen[: len(expected_TV)]])
        expected_TV[:, start] = ours_TV[:, start] = 0  # never drawn
        assert float((ours_TV - expected_TV).abs().max()) < error * float(expected_TV.abs().max())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_prefix_has_the_bits_of_its_first_time(dtype: torch.dtype, error: float) -> None:
    """Recorded or not, after shorter and longer ones: the model's keys and values but for rounding."""
    model = wide_decoder(dtype)
    static = StaticPrefill(arrange_weights(model))
    rows = [wide_prompt(number, static.weights.width, 1).prefix_PD for number in ROWS]
    first, *again = (static([x_PD.to(DEVICE, dtype) for x_PD in rows]) for _ in range(3))
    assert all(graph is not None for graph in static.graphs.values()) == ON_GPU
    assert len(static.graphs) > 1
    exact = prefill(arrange_weights(model.cpu().float()), rows)
    for prefixes in again:
        for ours, before, expected in zip(prefixes, first, exact, strict=True):
            assert ours.length == before.length
            for name in ("keys", "values"):
                blocks = zip(getattr(ours, name), getattr(before, name), getattr(expected, name), strict=True)
                for block, block_before, block_exact in blocks:
                    assert torch.equal(block, block_before)
                    ours_HPN = block[:, : ours.length].float().cpu()
                    exact_HPN = block_exact[:, : ours.length]
                    assert float((ours_HPN - exact_HPN).abs().max()) < error * float(exact_HPN.abs().max())


# ---- the same bits in any company ----


@pytest.mark.parametrize("dtype", KEPT_DTYPES)
@pytest.mark.parametrize("lanes", [16, 64, 256] if ON_GPU else [6])
def test_products_treat_all_rows_alike(dtype: torch.dtype, lanes: int) -> None:
    """Whatever the library splits, in the published shapes: all that a lane's bits depend on is its row."""
    weights = arrange_weights(wide_decoder(dtype))
    generator = torch.Generator().manual_seed(0)
    x_WD = torch.randn(lanes, weights.width, generator=generator).to(DEVICE, dtype)

    @torch.inference_mode()
    def logits(x_WD: Tensor) -> Tensor:
        return decoder_logits(weights, x_WD, lambda _, qkv_WE: qkv_WE.chunk(3, dim=-1)[2].contiguous())

    expected_WV = logits(x_WD)
    for order in (torch.arange(lanes).flip(0), torch.randperm(lanes, generator=generator)):
        turned_WV = logits(x_WD[order.to(DEVICE)])[order.argsort().to(DEVICE)]
        assert (turned_WV != expected_WV).any(dim=1).sum() == 0
    alone_WD = torch.zeros_like(x_WD)
    alone_WD[-1] = x_WD[0]
    assert torch.equal(logits(alone_WD)[-1], expected_WV[0])


@pytest.mark.parametrize("dtype", KEPT_DTYPES)
def test_neighbours_order_and_memory_change_no_token(dtype: torch.dtype) -> None:
    model = small_decoder().to(DEVICE, dtype)
    sampler = CandidateSampler(model, EngineConfig(lanes=LANES, kv_budget_bytes=10**9))
    alone = {number: plain(sampler.sample([prompt(number)], PARAMS)[0]) for number in ROWS}
    per_position = sampler.weights.kv_bytes_per_token
    tight = EngineConfig(lanes=LANES, kv_budget_bytes=per_position * (5 * PARAMS.max_new_tokens + 2 * 96))
    chance = random.Random(0)
    for config in (sampler.config, tight):
        numbers = [*ROWS, *(chance.randrange(100, 1000) for _ in range(len(ROWS)))]
        chance.shuffle(numbers)
        together = CandidateSampler(model, config).sample([prompt(number) for number in numbers], PARAMS)
        for number, row in zip(numbers, together, strict=True):
            assert number not in alone or plain(row) == alone[number]


# ---- memory ----


@pytest.fixture
def budgeted() -> CandidateSampler:
    """Within 64 MiB, where all lanes would take more than three times as much."""
    lanes, budget = (1024, 64 * 2**20) if ON_GPU else (12, 2**20)
    return CandidateSampler(small_decoder().to(DEVICE), EngineConfig(lanes=lanes, kv_budget_bytes=budget))


def test_memory_stays_within_the_budget(budgeted: CandidateSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was allocated at the peak: the budget, and what steps of so many lanes compute on the way."""
    budget, held = budgeted.config.kv_budget_bytes, []
    new_decoder = budgeted.new_decoder

    def watched(params: SamplingParams) -> StaticDecoder:
        decoder = new_decoder(params)
        assert isinstance(decoder, StaticDecoder)
        held.append(2 * decoder.prefix_keys.nbytes + 2 * decoder.suffix_keys.nbytes)
        return decoder

    monkeypatch.setattr(budgeted, "new_decoder", watched)
    params = SamplingParams(max_new_tokens=140, min_new_tokens=8, temperature=1.0)
    rows, candidates = (8, 500) if ON_GPU else (2, 6)
    budgeted.sample([prompt(0, range(4))], params)  # what the first calls load and keep
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    done = budgeted.sample([prompt(number, range(candidates)) for number in range(rows)], params)
    assert sum(map(len, done)) == rows * candidates
    assert budget / 2 < max(held) <= budget
    if ON_GPU:
        workspace = budgeted.lanes * budgeted.weights.workspace_bytes_per_lane
        assert torch.cuda.max_memory_allocated() - before <= budget + workspace


def test_a_sampler_that_ran_out_of_memory_samples_on() -> None:
    """With the tokens of one that did not."""
    model = small_decoder().to(DEVICE)
    expected = plain(CandidateSampler(model, EngineConfig(lanes=LANES)).sample([prompt(1)], PARAMS)[0])
    sampler = CandidateSampler(model, EngineConfig(lanes=LANES, kv_budget_bytes=1))
    with pytest.raises(MemoryBudgetError):
        sampler.sample([prompt(1)], PARAMS)
    if ON_GPU:
        sampler.config, sampler.lanes = EngineConfig(kv_budget_bytes=2**60), 2**22  # no card has that much
        with pytest.raises(torch.OutOfMemoryError):
            sampler.sample([prompt(1)], PARAMS)
    sampler.config, sampler.lanes = EngineConfig(), LANES
    assert plain(sampler.sample([prompt(1)], PARAMS)[0]) == expected
