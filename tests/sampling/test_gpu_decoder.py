"""The decoder for GPUs, without one: its logic on the CPU, its kernel compiled.

`test_cuda` and `test_invariance` run the whole of it where there is a GPU; `tests.gpu` rehearses the first.
"""

from weakref import ref

import pytest
import torch

from clvp.sampling import CandidateSampler, EngineConfig, MemoryBudgetError, SamplingParams
from clvp.sampling.decode_weights import arrange_weights
from clvp.sampling.gpu_decoder import plan
from clvp.sampling.lanes import Admission, LaneOwner
from clvp.sampling.noise import candidate_keys
from tests.sampling.rehearsal import static_decoder
from tests.sampling.small_models import plain, prompt, small_decoder

PARAMS = SamplingParams(max_new_tokens=50, temperature=1.0, top_p=0.95, seed=3, penalized_tokens=(1,))
LANE_BYTES, SLOT_BYTES = 3 * 2 * 64 * 4 * 50, 3 * 2 * 64 * 4 * 96


@pytest.mark.parametrize(
    ("budget", "lanes", "slots"),
    [(10**9, 24, 24), (24 * LANE_BYTES + 6 * SLOT_BYTES, 24, 6), (3 * LANE_BYTES + SLOT_BYTES, 3, 1)],
)
def test_the_tokens_are_those_of_the_cohorts(
    monkeypatch: pytest.MonkeyPatch, budget: int, lanes: int, slots: int
) -> None:
    sampler = CandidateSampler(small_decoder(), EngineConfig(lanes=24, kv_budget_bytes=budget))
    rows = [prompt(number) for number in range(6)]
    expected = sampler.sample(rows, PARAMS)
    decoder = static_decoder(sampler, PARAMS)
    assert (decoder.lanes, decoder.slots) == (lanes, slots)
    monkeypatch.setattr(sampler, "new_decoder", lambda params: decoder)
    results = sampler.sample(rows, PARAMS)
    assert [plain(row) for row in results] == [plain(row) for row in expected]


def test_logits_that_are_no_numbers_draw_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.lm_head.bias[7] = torch.nan
    sampler = CandidateSampler(model)
    decoder = static_decoder(sampler, PARAMS)
    monkeypatch.setattr(sampler, "new_decoder", lambda params: decoder)
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        sampler.sample([prompt(1)], PARAMS)


def test_a_prefix_is_held_once_where_no_candidate_of_its_row_waits() -> None:
    """In the budget; the copy that came from the prefill is gone."""
    sampler = CandidateSampler(small_decoder())
    decoder = static_decoder(sampler, PARAMS)
    (prefix,) = decoder.prefill([prompt(1).prefix_PD])
    alive = ref(prefix)
    for candidate in range(2):  # the second shares the slot
        assert decoder.reserve(prefix.length, 1) == 1
        keys_N = candidate_keys(0, "row", [candidate])
        decoder.admit([Admission(prefix, [LaneOwner(0, candidate)], keys_N)])
    assert decoder.slot_W[:2].tolist() == [0, 0]
    del prefix
    assert alive() is None
    decoder.step()


def test_a_budget_too_small_for_one_lane_is_a_clear_error() -> None:
    weights = arrange_weights(small_decoder())
    with pytest.raises(MemoryBudgetError, match="one candidate needs"):
        plan(weights, 24, LANE_BYTES, 96, 50)
    assert plan(weights, 24, LANE_BYTES + SLOT_BYTES, 96, 50) == (1, 1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_triton_kernel_compiles_for_hopper(dtype: str) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from clvp.sampling.gpu_attention import BLOCK, _attend_kernel

    tensors = ["qkv", "prefix_keys", "prefix_values", "suffix_keys", "suffix_values"]
    signature = dict.fromkeys(tensors, f"*{dtype}")
    signature |= {"slots": "*i64", "prefix_lengths": "*i64", "steps": "*i64", "active": "*i1"}
    signature["out"] = f"*{dtype}"
    constants = {"H": 16, "P": 416, "S": 500, "N": 64, "BLOCK": BLOCK}
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(fn=_attend_kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
