"""Prefill: a row's prefix through the decoder, once per row, whatever the number of its candidates.

Its keys and values are padded to a length that follows from its own.

Shapes: P prefix length, padded where keys and values are kept; X positions of all rows; D width; H heads; N
head dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional

from clvp.cuda_graph import recorded
from clvp.sampling.decode_weights import DecoderWeights

PREFIX_BUCKET = 32  # prefixes are padded to a multiple of this: rows of one padded length share a cohort


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


def prefill(weights: DecoderWeights, prefixes: Sequence[Tensor]) -> list[Prefix]:
    """Keys and values of every layer for embedded prefixes [P, D], each of its own length.

    Rows go together as far as the widest product of a CPU takes their positions: its widths leave a row its
    bits, and wide ones are up to twice as fast. `StaticPrefill` is for GPUs.
    """
    widest = weights.products.widest if weights.products else 0
    groups: list[list[int]] = []
    for place in sorted(range(len(prefixes)), key=lambda place: -len(prefixes[place])):
        taken = len(prefixes[place])
        fitting = (group for group in groups if sum(len(prefixes[i]) for i in group) + taken <= widest)
        if group := next(fitting, None):
            group.append(place)
        else:
            groups.append([place])
    found: dict[int, Prefix] = {}
    for group in groups:
        found |= zip(group, _together(weights, [prefixes[i] for i in group]), strict=True)
    return [found[place] for place in range(len(prefixes))]


class StaticPrefill:
    """The same on a GPU: one row at a time, as one CUDA graph for each padded length.

    A row alone is already the whole of a graph, so its bits depend on nothing else. A length is computed
    without a graph when it is met first, and recorded when it comes again.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        self.weights = weights
        longest, layers = padded_length(weights.max_prefix), len(weights.layers)
        self.x_PD = torch.zeros(longest, weights.width, dtype=weights.dtype, device=weights.device)
        # Every length takes the first part of one room for its results, keys and values of all layers.
        self.results = self.x_PD.new_zeros(2 * layers * longest * weights.width)
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self.lock = Lock()  # several engines may decode at a time
        self.pool = torch.cuda.graph_pool_handle() if weights.device.type == "cuda" else None

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[Tensor]) -> list[Prefix]:
        """Keys and values of every layer for embedded prefixes [P, D], each of its own length."""
        found = []
        for prefix_PD in prefixes:
            length, padded = len(prefix_PD), padded_length(len(prefix_PD))
            with self.lock:
                self.x_PD[:length] = prefix_PD
                self.x_PD[length:padded] = 0
                self._replay(padded)
                keys, values = self._results(padded).clone()
            found.append(Prefix(list(keys), list(values), length))
        return found

    def _results(self, padded: int) -> Tensor:
        """[2, layers, H, P, N]."""
        layers, heads, width = len(self.weights.layers), self.weights.heads, self.weights.width
        shape = (2, layers, heads, padded, width // heads)
        return self.results[: 2 * layers * padded * width].view(shape)

    def _replay(self, padded: int) -> None:
        keys, values = self._results(padded)

        def attend(layer: int, qkv_PE: Tensor) -> Tensor:
            attended_PD, keys[layer], values[layer] = _attend(self.weights, qkv_PE)
            return attended_PD

        work = partial(_through_layers, self.weights, self.x_PD[:padded], attend)
        if padded not in self.graphs or self.pool is None:
            self.graphs[padded] = None
            work()
            return
        graph = self.graphs[padded]
        if graph is None:
            graph = self.graphs[padded] = recorded(work, (self.x_PD,), self.pool)
        graph.replay()


def _through_layers(weights: DecoderWeights, x_XD: Tensor, attend: Callable[[int, Tensor], Tensor]) -> None:
    """`attend` takes each layer's number and its queries, keys and values [X, 3D], and gives [X, D]."""
    for number, layer in enumerate(weights.layers):
        attended_XD = attend(number, layer.qkv(layer.input_norm(x_XD)))
        if number + 1 == len(weights.layers):
            return  # nothing reads what follows in the last layer
        x_XD = layer.out(attended_XD, x_XD)
        x_XD = layer.mlp_out(layer.mlp_in(layer.mlp_norm(x_XD)), x_XD)


def _attend(weights: DecoderWeights, qkv_PE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of one row: [P, D], and its keys and values [H, P, N]."""
    shape = (len(qkv_PE), 3, weights.heads, weights.width // weights.heads)
    q_HPN, k_HPN, v_HPN = qkv_PE.view(shape).permute(1, 2, 0, 3)
    q, k, v = q_HPN[None], k_HPN[None], v_HPN[None]
    if qkv_PE.device.type == "cpu":  # in half precision torch's kernel depends on the number of threads
        q, k, v = q.float(), k.float(), v.float()
    (attended_HPN,) = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    return attended_HPN.transpose(0, 1).flatten(1).to(qkv_PE.dtype), k_HPN, v_HPN


def _padded(x_HPN: Tensor) -> Tensor:
    """With zeros up to the padded length."""
    heads, length, size = x_HPN.shape
    found = x_HPN.new_empty(heads, padded_length(length), size)
    found[:, :length], found[:, length:] = x_HPN, 0
    return found


@torch.inference_mode()
def _together(weights: DecoderWeights, prefixes: Sequence[Tensor]) -> list[Prefix]:
    """Rows side by side, padded to a width of the products; attention is each row's own."""
    x_XD = torch.cat(list(prefixes)).to(weights.device, weights.dtype)
    padding = weights.products.padded(len(x_XD)) - len(x_XD) if weights.products else 0
    x_XD = functional.pad(x_XD, (0, 0, 0, padding))
    found = [Prefix([], [], len(prefix_PD)) for prefix_PD in prefixes]

    def attend(_: int, qkv_XE: Tensor) -> Tensor:
        attended_XD = torch.zeros_like(x_XD)
        first = 0
        for prefix in found:
            row = slice(first, first + prefix.length)
            attended_XD[row], k_HPN, v_HPN = _attend(weights, qkv_XE[row])
            prefix.keys.append(_padded(k_HPN))
            prefix.values.append(_padded(v_HPN))
            first += prefix.length
        return attended_XD

    _through_layers(weights, x_XD, attend)
    return found
