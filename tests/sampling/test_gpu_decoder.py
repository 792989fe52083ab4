"""The decoder for GPUs, without one: its logic on the CPU, its kernel interpreted and compiled.

`test_invariance` runs the whole of it where there is a GPU.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from clvp.sampling import CandidateSampler, MemoryBudgetError, SamplingParams
from clvp.sampling.decode_weights import arrange_weights
from clvp.sampling.gpu_decoder import StaticDecoder, plan
from tests.sampling.small_models import plain, prompt, small_decoder

PARAMS = SamplingParams(max_new_tokens=50, temperature=1.0, top_p=0.95, seed=3, penalized_tokens=(1,))
LANE_BYTES, SLOT_BYTES = 3 * 2 * 64 * 4 * 50, 3 * 2 * 64 * 4 * 96


def attend_plainly(
    qkv_WD: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    slots_W: Tensor,
    prefix_lengths_W: Tensor,
    steps_W: Tensor,
    active_W: Tensor,
) -> Tensor:
    """What `gpu_attention.attend` computes, lane by lane."""
    lanes, heads, _, head_dim = suffix_keys.shape
    out_WD = torch.zeros(lanes, heads * head_dim)
    for lane in active_W.nonzero().flatten().tolist():
        q, k, v = qkv_WD[lane].view(3, heads, head_dim)
        slot, length, step = int(slots_W[lane]), int(prefix_lengths_W[lane]), int(steps_W[lane])
        suffix_keys[lane, :, step], suffix_values[lane, :, step] = k, v
        keys = torch.cat([prefix_keys[slot, :, :length], suffix_keys[lane, :, : step + 1]], dim=1)
        values = torch.cat([prefix_values[slot, :, :length], suffix_values[lane, :, : step + 1]], dim=1)
        shares = torch.einsum("hn,hpn->hp", q, keys).softmax(-1)
        out_WD[lane] = torch.einsum("hp,hpn->hn", shares, values).flatten()
    return out_WD


@pytest.mark.parametrize(
    ("budget", "lanes", "slots"),
    [(10**9, 24, 24), (24 * LANE_BYTES + 6 * SLOT_BYTES, 24, 6), (3 * LANE_BYTES + SLOT_BYTES, 3, 1)],
)
def test_the_tokens_are_those_of_the_cohorts(
    monkeypatch: pytest.MonkeyPatch, budget: int, lanes: int, slots: int
) -> None:
    sampler = CandidateSampler(small_decoder())
    rows = [prompt(number) for number in range(6)]
    expected = sampler.sample(rows, PARAMS)
    decoder = StaticDecoder(sampler.weights, PARAMS, 24, budget, attend_plainly)
    assert (decoder.lanes, decoder.slots) == (lanes, slots)
    monkeypatch.setattr(sampler, "new_decoder", lambda params: decoder)
    results = sampler.sample(rows, PARAMS)
    assert [plain(row) for row in results] == [plain(row) for row in expected]


def test_logits_that_are_no_numbers_draw_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.lm_head.bias[7] = torch.nan
    sampler = CandidateSampler(model)
    decoder = StaticDecoder(sampler.weights, PARAMS, 24, 10**9, attend_plainly)
    monkeypatch.setattr(sampler, "new_decoder", lambda params: decoder)
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        sampler.sample([prompt(1)], PARAMS)


def test_a_budget_too_small_for_one_lane_is_a_clear_error() -> None:
    weights = arrange_weights(small_decoder())
    with pytest.raises(MemoryBudgetError, match="one candidate needs"):
        plan(weights, 24, LANE_BYTES, 96, 50)
    assert plan(weights, 24, LANE_BYTES + SLOT_BYTES, 96, 50) == (1, 1)


INTERPRETED = """
import torch
from triton.runtime import interpreter

patch = interpreter._patch_lang_tensor
def patch_for_new_numpy(tensor, scope):  # int() of arrays of one element, which NumPy no longer does
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
interpreter._patch_lang_tensor = patch_for_new_numpy

from clvp.sampling.gpu_attention import attend
from tests.sampling.test_gpu_decoder import attend_plainly

torch.manual_seed(0)
lanes, slots, heads, prefix, suffix, head_dim = 5, 3, 2, 96, 70, 32
kv = [torch.randn(n, heads, room, head_dim) for n, room in ((slots, prefix),) * 2 + ((lanes, suffix),) * 2]
arguments = [
    torch.tensor([0, 2, 1, 2, 0]),
    torch.tensor([5, 96, 64, 96, 1]),
    torch.tensor([0, 3, 64, 69, 12]),
    torch.tensor([True, True, True, True, False]),
]
qkv = torch.randn(lanes, 3 * heads * head_dim)
copies = [tensor.clone() for tensor in kv]
ours, expected = attend(qkv, *kv, *arguments), attend_plainly(qkv, *copies, *arguments)
torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
assert all(torch.equal(a, b) for a, b in zip(kv, copies))
assert not torch.equal(ours[0], ours[1])
"""


def test_the_triton_kernel_computes_attention() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


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
