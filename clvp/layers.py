"""What the networks are built of: activations, rotary positions, self-attention, GPT-2's linear layer.

B batch, H heads, L length, Q query length, K key length, N head dimensions, R rotary dimensions, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]  # cosine and sine, each [B or 1, 1, L, R]
KeyValue = tuple[Tensor, Tensor]  # [B, H, K, N] each

# torch computes the last elements of a thread's share by other code where they fill no vector; no processor's
# holds more than these.
_VECTORS = 64
# Elements of a share at least (at::internal::GRAIN_SIZE), and from which on all threads share those of GELU.
_GRAIN, _GELU_SHARED = 32_768, 16_384


def _alike(function: Activation, x: Tensor, gelu: bool = False) -> Tensor:
    """`function`, elementwise, with the same bits for any number of threads: of what they can share in whole
    vectors, then of the rest.
    """
    if x.device.type != "cpu":
        return function(x)
    x, threads, elements = x.contiguous(), torch.get_num_threads(), x.numel()
    if elements > (_GELU_SHARED if gelu else threads * _GRAIN):
        rest = elements % (threads * _VECTORS)
    else:
        rest = 0 if gelu or elements <= _GRAIN else elements % _GRAIN
    if threads == 1 or not rest:
        return function(x)
    flat = x.view(-1)
    return torch.cat([function(flat[:-rest]), function(flat[-rest:])]).view(x.shape)


# By the names that `config.json` uses.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": partial(_alike, functional.gelu, gelu=True),
    "gelu_new": partial(_alike, partial(functional.gelu, approximate="tanh"), gelu=True),
    "relu": functional.relu,
    "silu": partial(_alike, functional.silu),
}


def activation_function(name: str) -> Activation:
    """The function called `name`; ValueError naming the known ones for any other."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


class ActivationLayer(nn.Module):
    """The function called `name`, among layers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = activation_function(name)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.function(x)


class Conv1D(nn.Module):
    """A linear layer whose weight lies transposed, [inputs, outputs], as GPT-2's checkpoints store it."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return functional.linear(x, self.weight.T, self.bias)


def initialize(module: nn.Module, std: float) -> None:
    """Draw all linear layers' and embeddings' weights from a normal distribution; biases become zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | nn.Conv1d | Conv1D):
            nn.init.normal_(part.weight, std=std)
            bias = getattr(part, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)


def exactly_one(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one that is given; ValueError for none or both, and for one without any token."""
    given = [x for x in (input_ids, inputs_embeds) if x is not None]
    if len(given) != 1:
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if given[0].dim() > 1 and not given[0].shape[1]:
        raise ValueError(f"an input of shape {list(given[0].shape)} holds no token: it needs one at least")
    return given[0]


# ---- rotary positions ----


def inverse_frequencies(dim: int) -> Tensor:
    """[dim / 2] float32 angles per position: 10000^(-2i / dim)."""
    # On the CPU first: quotients on `meta` make torch import its compiler, for a second.
    exponents = torch.arange(0, dim, 2, device="cpu").float() / dim
    return (1.0 / 10000**exponents).to(torch.get_default_device())


def exact_frequencies(stored: Tensor) -> Tensor:
    """Float32 frequencies for those in a file: themselves, or computed anew where the file's are rounded."""
    return stored if stored.dtype == torch.float32 else inverse_frequencies(2 * len(stored))


class ClvpRotaryPositionalEmbedding(nn.Module):
    """Turns positions into rotations (Su et al., RoFormer, 2021).

    Angles are computed in float32 for every call and only their sine and cosine are cast. Positions of long
    sequences are not distinguishable in bfloat16, and a cache would outlive a cast or a move of the model.
    The frequencies are stored with the weights, always in float32.
    """

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves like any module, but does not lose precision when the model is cast."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosine and sine in `dtype` for integer positions [B or 1, L]."""
        # Autocast would otherwise compute the product of positions and frequencies in half precision.
        with torch.autocast(positions_BL.device.type, enabled=False):
            angles_BLR = positions_BL[..., None].float() * self.inv_freq.float()
            angles_B1LR = torch.cat((angles_BLR, angles_BLR), dim=-1)[:, None]
            return angles_B1LR.cos().to(dtype), angles_B1LR.sin().to(dtype)


def rotate(x_BHLN: Tensor, rotation: Rotation) -> Tensor:
    """Turn the first R dimensions of every head; dimension i is paired with i + R / 2. The rest passes."""
    cos, sin = rotation
    dim = cos.shape[-1]
    turned, passed = x_BHLN[..., :dim], x_BHLN[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, passed), dim=-1)


# ---- attention ----


def causal_mask(attention_mask_BK: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """[B or 1, 1, Q, K] bool: which of `keys` the last `queries` of them may attend to.

    Every position sees itself even where the mask hides it, so that no row of the softmax is empty.
    """
    query_at = torch.arange(keys - queries, keys, device=device)[:, None]
    key_at = torch.arange(keys, device=device)[None, :]
    allowed = (key_at <= query_at)[None, None]
    if attention_mask_BK is not None:
        allowed = (allowed & attention_mask_BK.bool()[:, None, None]) | (key_at == query_at)
    return allowed


class ClvpSelfAttention(nn.Module):
    """Multi-head self-attention, the block that encoders, decoder and conditioning encoder share.

    CLVP's rotary positions turn part of a head, and the values too. Scores are scaled by the root of N.
    """

    def __init__(self, config: Any) -> None:
        """`config` is a ClvpEncoderConfig or a ClvpDecoderConfig."""
        super().__init__()
        width, bias = config.hidden_size, config.use_attention_bias
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        batch, length, _ = x_BLD.shape
        return x_BLD.view(batch, length, self.num_heads, -1).transpose(1, 2)

    def forward(
        self,
        x_BQD: Tensor,
        *,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        past: KeyValue | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, KeyValue]:
        """Attended values [B, Q, D], the weights [B, H, Q, K] if asked for, and the keys and values.

        `mask` is bool, broadcastable to [B, H, Q, K], True where a query may look; `causal` is the shorthand
        for a lower triangle and stands alone. `past` are keys and values of earlier positions.
        """
        q, k, v = (self._heads(projection(x_BQD)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if rotation is not None:
            q, k, v = rotate(q, rotation), rotate(k, rotation), rotate(v, rotation)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if output_attentions:
            if causal:
                mask = causal_mask(None, q.shape[2], k.shape[2], q.device)
            attended, weights = attend_with_weights(q, k, v, mask, dropout)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), weights, (k, v)


def attend_with_weights(
    q_BHQN: Tensor, k_BHKN: Tensor, v_BHKN: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out, for the callers that want to see its weights."""
    scores = q_BHQN @ k_BHKN.transpose(-1, -2) * q_BHQN.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(dim=-1).to(scores.dtype)
    return functional.dropout(weights, dropout) @ v_BHKN, weights
