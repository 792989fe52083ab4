"""Prefill: a row's prefix through the decoder, once per row, whatever the number of its candidates.

A row is padded to a length that follows from its own.

Shapes: R rows; P prefix length, padded; X = R·P; D width; H heads; N head dimensions.
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

PREFIX_BUCKET = 32  # prefixes are padded to a multiple of this; rows of one padded length share calls


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

    Rows of one padded length go together as far as the widest product of a CPU takes them: its widths leave a
    row its bits, and wide ones are up to twice as fast. `StaticPrefill` is for GPUs.
    """
    places: dict[int, list[int]] = {}
    for place, prefix_PD in enumerate(prefixes):
        places.setdefault(padded_length(len(prefix_PD)), []).append(place)
    found: dict[int, Prefix] = {}
    for padded, alike in places.items():
        together = max(weights.products.widest // padded, 1) if weights.products else 1
        for begin in range(0, len(alike), together):
            chosen = alike[begin : begin + together]
            found |= zip(chosen, _together(weights, [prefixes[i] for i in chosen], padded), strict=True)
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

        def keep(layer: int, k: Tensor, v: Tensor) -> None:
            keys[layer], values[layer] = k[0], v[0]

        work = partial(_through_layers, self.weights, self.x_PD[:padded], padded, keep)
        if padded not in self.graphs or self.pool is None:
            self.graphs[padded] = None
            work()
            return
        graph = self.graphs[padded]
        if graph is None:
            graph = self.graphs[padded] = recorded(work, (self.x_PD,), self.pool)
        graph.replay()


def _through_layers(
    weights: DecoderWeights, x_XD: Tensor, padded: int, keep: Callable[[int, Tensor, Tensor], None]
) -> None:
    """`keep` takes each layer's number, keys and values [R, H, P, N].

    Padding stands at a row's end, behind the causal mask, so it changes nothing before it.
    """
    shape = (-1, padded, 3, weights.heads, weights.width // weights.heads)
    for number, layer in enumerate(weights.layers):
        q, k, v = layer.qkv(layer.input_norm(x_XD)).view(shape).permute(2, 0, 3, 1, 4)
        keep(number, k, v)
        if number + 1 == len(weights.layers):
            return  # nothing reads the last layer's output at a prefix position
        if x_XD.device.type == "cpu":  # in half precision torch's kernel depends on the number of threads
            q, k, v = q.float(), k.float(), v.float()
        attended_RHPN = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        x_XD = layer.out(attended_RHPN.transpose(1, 2).reshape(x_XD.shape).to(x_XD.dtype), x_XD)
        x_XD = layer.mlp_out(layer.mlp_in(layer.mlp_norm(x_XD)), x_XD)


@torch.inference_mode()
def _together(weights: DecoderWeights, prefixes: Sequence[Tensor], padded: int) -> list[Prefix]:
    """Rows of one padded length."""
    rows_PD = [x_PD.to(device=weights.device, dtype=weights.dtype) for x_PD in prefixes]
    x_XD = torch.cat([functional.pad(x_PD, (0, 0, 0, padded - len(x_PD))) for x_PD in rows_PD])
    found = [Prefix([], [], len(prefix_PD)) for prefix_PD in prefixes]

    def keep(_: int, k: Tensor, v: Tensor) -> None:
        for prefix, keys_HPN, values_HPN in zip(found, k, v, strict=True):
            prefix.keys.append(keys_HPN.contiguous())
            prefix.values.append(values_HPN.contiguous())

    _through_layers(weights, x_XD, padded, keep)
    return found
