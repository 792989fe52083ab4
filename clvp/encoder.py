"""The CLVP text and speech encoders: a transformer with rotary positions, pooled to one vector and projected.

Layer: x + attention(rmsnorm(x)), then x + mlp(rmsnorm(x)) with a gated unit. Padding never reaches a result:
masked tokens are neither attended to nor pooled, and positions count the tokens that are there.

B batch, L length, D width, P projection width.
"""

import torch
from torch import Tensor, nn

from clvp.batch import check_mask, count_positions
from clvp.config import ClvpEncoderConfig
from clvp.layers import (
    ClvpRotaryPositionalEmbedding,
    ClvpSelfAttention,
    Rotation,
    activation_function,
    exactly_one,
    initialize,
)
from clvp.outputs import ClvpEncoderOutput
from clvp.pretrained import ClvpPreTrainedModel


class ClvpGatedLinearUnit(nn.Module):
    """x * activation(gate), where the projection gives x in its first half and the gate in its second."""

    def __init__(self, config: ClvpEncoderConfig) -> None:
        super().__init__()
        self.activation = activation_function(config.hidden_act)
        self.proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, intermediate]."""
        value, gate = self.proj(x_BLD).chunk(2, dim=-1)
        return value * self.activation(gate)


class ClvpEncoderMLP(nn.Module):
    """Gated unit, dropout, projection back."""

    def __init__(self, config: ClvpEncoderConfig) -> None:
        super().__init__()
        self.fc1 = ClvpGatedLinearUnit(config)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D]."""
        return self.fc2(self.dropout(self.fc1(x_BLD)))


class ClvpEncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ClvpEncoderConfig) -> None:
        super().__init__()
        eps = config.layer_norm_eps if config.rms_norm_eps is None else config.rms_norm_eps
        self.self_attn = ClvpSelfAttention(config)
        self.mlp = ClvpEncoderMLP(config)
        self.input_rmsnorm = nn.RMSNorm(config.hidden_size, eps)  # computes in float32
        self.post_attention_rmsnorm = nn.RMSNorm(config.hidden_size, eps)

    def forward(
        self, x_BLD: Tensor, rotation: Rotation | None, mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """New states [B, L, D], and the attention weights if asked for."""
        attended, weights, _ = self.self_attn(
            self.input_rmsnorm(x_BLD), rotation=rotation, mask=mask, output_attentions=output_attentions
        )
        x_BLD = x_BLD + attended
        return x_BLD + self.mlp(self.post_attention_rmsnorm(x_BLD)), weights


class ClvpEncoder(ClvpPreTrainedModel):
    """Text or speech tokens to one embedding per sequence."""

    config_class = ClvpEncoderConfig
    checkpoint_prefixes = ("text_encoder_model.",)  # unless `config_type` says otherwise
    input_embeddings = "token_embedding"
    config: ClvpEncoderConfig

    def __init__(self, config: ClvpEncoderConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_pos_emb = (
            ClvpRotaryPositionalEmbedding(config.rotary_dim) if config.use_rotary_embedding else None
        )
        self.layers = nn.ModuleList(ClvpEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        config, factor = self.config, self.config.initializer_factor
        initialize(self, 0.02 * factor)
        nn.init.normal_(self.projection.weight, std=config.hidden_size**-0.5 * factor)
        for layer in self.layers:
            assert isinstance(layer, ClvpEncoderLayer)
            nn.init.normal_(layer.mlp.fc1.proj.weight, std=(2 * config.hidden_size) ** -0.5 * factor)
            depth_scale = (2 * config.num_hidden_layers) ** -0.5
            nn.init.normal_(layer.mlp.fc2.weight, std=config.hidden_size**-0.5 * depth_scale * factor)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> ClvpEncoderOutput | tuple[Tensor, ...]:
        """Embed token ids [B, L], or token embeddings [B, L, D] in their place.

        `attention_mask` [B, L] is 1 at tokens and 0 at padding, on whichever side that lies; without it all
        are tokens. `position_ids` [B or 1, L] default to counting the tokens of each row from 0.

        Raises ValueError unless exactly one input is given, and for a row without any token.
        """
        x_BLD = exactly_one(input_ids, inputs_embeds)
        if inputs_embeds is None:
            x_BLD = self.token_embedding(x_BLD)
        mask_BL = used_mask(attention_mask, x_BLD)
        if position_ids is None:
            position_ids = count_positions(mask_BL, x_BLD)
        rotation = None if self.rotary_pos_emb is None else self.rotary_pos_emb(position_ids, x_BLD.dtype)
        mask = None if mask_BL is None else mask_BL[:, None, None]  # of keys
        hidden_states: tuple[Tensor, ...] = ()
        attentions: tuple[Tensor, ...] = ()
        for layer in self.layers:
            hidden_states += (x_BLD,)
            x_BLD, weights = self._run(layer, x_BLD, rotation, mask, output_attentions)
            attentions += (weights,)
        x_BLD = self.final_layer_norm(x_BLD)
        pooled_BD = summarize(x_BLD, mask_BL, self.config.summary_type)
        output = ClvpEncoderOutput(
            embeds=self.projection(pooled_BD),
            last_hidden_state=x_BLD,
            pooler_output=pooled_BD,
            hidden_states=(*hidden_states, x_BLD) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output


def used_mask(attention_mask: Tensor | None, x_BLD: Tensor) -> Tensor | None:
    """The mask as bool [B, L], None where it hides nothing; ValueError for a wrong shape or an empty row."""
    if attention_mask is None:
        return None
    check_mask(attention_mask, x_BLD)
    mask_BL = attention_mask.to(x_BLD.device).bool()
    lengths: list[int] = mask_BL.sum(dim=1).tolist()
    if 0 in lengths:
        raise ValueError(f"row {lengths.index(0)} has no token: its attention_mask is all zeros")
    return None if min(lengths, default=0) == x_BLD.shape[1] else mask_BL


def summarize(x_BLD: Tensor, mask_BL: Tensor | None, summary_type: str) -> Tensor:
    """One vector [B, D] per row out of the states of its tokens: their mean, the first or the last.

    Raises ValueError for any other `summary_type`. "cls_index" is the last token, as in the reference.
    """
    if mask_BL is None:
        mask_BL = torch.ones(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)
    if summary_type == "mean":
        kept_BLD = x_BLD.masked_fill(~mask_BL[..., None], 0)
        return kept_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
    index = torch.arange(x_BLD.shape[1], device=x_BLD.device).expand(mask_BL.shape)
    if summary_type == "first":
        at = index.masked_fill(~mask_BL, x_BLD.shape[1]).amin(dim=1)
    elif summary_type in ("last", "cls_index"):
        at = index.masked_fill(~mask_BL, -1).amax(dim=1)
    else:
        raise ValueError(f'summary_type must be "mean", "first", "last" or "cls_index", not {summary_type!r}')
    return x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), at]
