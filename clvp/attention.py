"""Multi-head self-attention, the one block that the encoders, the decoder and the conditioning encoder share.

B batch, H heads, Q query length, K key length, N head dimensions, D model width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.rotary import Rotation, rotate

KeyValue = tuple[Tensor, Tensor]  # [B, H, K, N] each


def key_mask(attention_mask_BK: Tensor) -> Tensor:
    """[B, 1, 1, K] bool from a mask of ones and zeros: which keys may be attended to."""
    return attention_mask_BK.bool()[:, None, None, :]


def causal_mask(attention_mask_BK: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """[B or 1, 1, Q, K] bool: which of `keys` the last `queries` of them may attend to.

    Every position sees itself even where the mask hides it, so that no row of the softmax is empty.
    """
    query_at = torch.arange(keys - queries, keys, device=device)[:, None]
    key_at = torch.arange(keys, device=device)[None, :]
    allowed = (key_at <= query_at)[None, None]
    if attention_mask_BK is not None:
        allowed = (allowed & key_mask(attention_mask_BK)) | (key_at == query_at)
    return allowed


class ClvpSelfAttention(nn.Module):
    """Scaled dot-product attention over heads of width D / H; queries are scaled by the root of the head
    width.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

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
