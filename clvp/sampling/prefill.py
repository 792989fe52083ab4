"""Prefill: a row's prefix through the decoder, once per row, whatever the number of its candidates.

A row is prefilled alone and padded to a length that follows from its own, so it always meets the same shapes.

Shapes: P prefix length, padded; D width; H heads; N head dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clvp.sampling.decode_weights import DecoderWeights, LayerWeights

PREFIX_BUCKET = (
    32  # prefixes are padded to a multiple of this; rows of one padded length share attention calls
)


def padded_length(length: int) -> int:
    """The length to which a prefix of `length` positions is padded."""
    return -(-length // PREFIX_BUCKET) * PREFIX_BUCKET


@dataclass(frozen=True)
class Prefix:
    """Keys and values of one row's prefix, one tensor a layer."""

    keys: list[Tensor]  # [H, P, N] each
    values: list[Tensor]  # [H, P, N] each
    length: int  # positions that are not padding

    @property
    def padded(self) -> int:
        """P."""
        return self.keys[0].shape[1]


def _heads(x_PD: Tensor, heads: int) -> Tensor:
    return x_PD.view(x_PD.shape[0], heads, -1).transpose(0, 1)  # [H, P, N]


def _finish_layer(layer: LayerWeights, x_PD: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if x_PD.device.type == "cpu":  # in half precision torch's kernel depends on the number of threads
        q, k, v = q.float(), k.float(), v.float()
    attended_HPN = functional.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, scale=1.0
    ).squeeze(0)
    x_PD = layer.out(attended_HPN.transpose(0, 1).reshape(x_PD.shape).to(x_PD.dtype), x_PD)
    return layer.mlp_out(layer.mlp_in(layer.mlp_norm(x_PD)), x_PD)


@torch.inference_mode()
def prefill(weights: DecoderWeights, prefix_PD: Tensor) -> Prefix:
    """Keys and values of every layer for the embedded prefix [P, D].

    Padding stands at the end, behind the causal mask, so it changes nothing before it.
    """
    length = prefix_PD.shape[0]
    x_PD = prefix_PD.to(device=weights.device, dtype=weights.dtype)
    x_PD = functional.pad(x_PD, (0, 0, 0, padded_length(length) - length))
    keys, values = [], []
    for number, layer in enumerate(weights.layers):
        q_PD, k_PD, v_PD = layer.qkv(layer.input_norm(x_PD)).chunk(3, dim=-1)
        q, k, v = (_heads(part, weights.heads) for part in (q_PD, k_PD, v_PD))
        keys.append(k.contiguous())
        values.append(v.contiguous())
        if number + 1 < len(weights.layers):  # nothing reads the last layer's output at a prefix position
            x_PD = _finish_layer(layer, x_PD, q, k, v)
    return Prefix(keys, values, length)
