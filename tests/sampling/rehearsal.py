"""What only a GPU runs, as a CPU can run it: no graph, attention in torch or by Triton's interpreter.

`python -m tests.gpu --rehearse` sets the variable; without it and without a GPU nothing of this is used but
`attend_plainly`.
"""

import os
from typing import Any

import torch
from torch import Tensor

from clvp.sampling import CandidateSampler, SamplingParams
from clvp.sampling.gpu_decoder import Attend, StaticDecoder
from clvp.sampling.memory import default_budget
from clvp.sampling.prefill import StaticPrefill

VARIABLE = "CLVP_REHEARSE_GPU"
REHEARSED = bool(os.environ.get(VARIABLE))
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not REHEARSED else "cpu")


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
    lanes, (_, heads, _, head_dim) = len(qkv_WD), suffix_keys.shape
    out_WD = qkv_WD.new_zeros(lanes, heads * head_dim)
    for lane in active_W.nonzero().flatten().tolist():
        q, k, v = qkv_WD[lane].view(3, heads, head_dim)
        slot, length, step = int(slots_W[lane]), int(prefix_lengths_W[lane]), int(steps_W[lane])
        suffix_keys[lane, :, step], suffix_values[lane, :, step] = k, v
        keys = torch.cat([prefix_keys[slot, :, :length], suffix_keys[lane, :, : step + 1]], dim=1)
        values = torch.cat([prefix_values[slot, :, :length], suffix_values[lane, :, : step + 1]], dim=1)
        shares = torch.einsum("hn,hpn->hp", q, keys).softmax(-1)
        out_WD[lane] = torch.einsum("hp,hpn->hn", shares, values).flatten()
    return out_WD


def ready_for_triton() -> None:
    """On a CPU kernels are the interpreter's, for which TRITON_INTERPRET=1 is in the environment."""
    if DEVICE.type == "cpu":
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patch_for_new_numpy(tensor: Any, scope: Any) -> None:
            """int() of arrays of one element, which NumPy no longer does."""
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        interpreter._patch_lang_tensor = patch_for_new_numpy


def triton_attend() -> Attend:
    """The sampler's kernel."""
    ready_for_triton()
    from clvp.sampling.gpu_attention import attend

    return attend


def static_decoder(sampler: CandidateSampler, params: SamplingParams) -> StaticDecoder:
    """In place of `CandidateSampler.new_decoder`: the decoder for GPUs on a CPU."""
    weights = sampler.weights
    budget = sampler.config.kv_budget_bytes or default_budget(weights.device)
    return StaticDecoder(weights, params, sampler.lanes, budget, attend_plainly, StaticPrefill(weights))
