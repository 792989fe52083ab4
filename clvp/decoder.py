"""The speech decoder without its head: a GPT-2 over a text prefix and speech tokens.

Layer: x + attention(layernorm(x)), then x + mlp(layernorm(x)). `forward` adds the mel position table to
whatever it is given, as the reference does; `hidden_of` takes embeddings that already carry their positions,
which is what generation needs: a prefix with text positions, then speech tokens with mel positions.

B batch, L length, P past length, D width.
"""

from functools import wraps
from typing import Any

from torch import Tensor, nn

from clvp.batch import check_mask, count_positions
from clvp.config import ClvpDecoderConfig
from clvp.layers import (
    ClvpSelfAttention,
    Conv1D,
    KeyValue,
    activation_function,
    causal_mask,
    exactly_one,
    initialize,
)
from clvp.outputs import ClvpDecoderOutput, KeyValues
from clvp.pretrained import ClvpPreTrainedModel


class ClvpDecoderMLP(nn.Module):
    """Two transposed linear layers around an activation."""

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.inner_size, config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.inner_size)
        self.activation = activation_function(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D]."""
        return self.dropout(self.c_proj(self.activation(self.c_fc(x_BLD))))


class ClvpDecoderLayer(nn.Module):
    """Causal attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = ClvpSelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = ClvpDecoderMLP(config)

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None, causal: bool, past: KeyValue | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None, KeyValue]:
        """New states [B, L, D], attention weights if asked for, keys and values of past and present."""
        normed = self.input_layernorm(x_BLD)
        attended, weights, keys_values = self.attn(
            normed, mask=mask, causal=causal, past=past, output_attentions=output_attentions
        )
        x_BLD = x_BLD + attended
        return x_BLD + self.mlp(self.post_attention_layernorm(x_BLD)), weights, keys_values


class ClvpDecoder(ClvpPreTrainedModel):
    """The layers, with the tables of speech tokens and mel positions."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.model.decoder.", "model.decoder.", "decoder.")
    input_embeddings = "input_embeds_layer"
    config: ClvpDecoderConfig

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__(config)
        self.input_embeds_layer = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeds_layer = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList(ClvpDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        initialize(self, 0.02 * config.initializer_factor)
        # Residual projections shrink with depth, as in GPT-2.
        for name, part in self.named_modules():
            if name.endswith("mlp.c_proj"):
                std = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
                nn.init.normal_(part.weight, std=std)

    def hidden_of(
        self,
        embeds_BLD: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        *,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ClvpDecoderOutput:
        """States of embeddings that already carry their positions; `attention_mask` is [B, P + L]."""
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        mask, causal = _masking(attention_mask, embeds_BLD, past)
        use_cache = use_cache and not (self.gradient_checkpointing and self.training)
        x_BLD = self.drop(embeds_BLD)
        hidden_states: tuple[Tensor, ...] = ()
        attentions: tuple[Tensor, ...] = ()
        cache: KeyValues = ()
        for index, layer in enumerate(self.layers):
            hidden_states += (x_BLD,) if output_hidden_states else ()
            layer_past = None if past_key_values is None else past_key_values[index]
            x_BLD, weights, keys_values = self._run(layer, x_BLD, mask, causal, layer_past, output_attentions)
            attentions += (weights,)
            cache += (keys_values,) if use_cache else ()
        x_BLD = self.layer_norm(x_BLD)
        return ClvpDecoderOutput(
            last_hidden_state=x_BLD,
            past_key_values=cache if use_cache else None,
            hidden_states=(*hidden_states, x_BLD) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> ClvpDecoderOutput | tuple[Any, ...]:
        """States of speech tokens [B, L], or of embeddings [B, L, D] in their place, on mel positions.

        `past_key_values` is what an earlier call with `use_cache` returned; `attention_mask` [B, P + L]
        covers it. `position_ids` [B or 1, L] default to counting the tokens of each row, padding left out.
        `token_type_ids` [B, L] add the embedding of a second token. `use_cache` None means as configured.

        Raises ValueError unless exactly one input is given, and for more positions than the table has.
        """
        embeds_BLD = exactly_one(input_ids, inputs_embeds)
        if inputs_embeds is None:
            embeds_BLD = self.input_embeds_layer(embeds_BLD)
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        if position_ids is None:
            position_ids = count_positions(attention_mask, embeds_BLD, past)
            limit = self.config.max_position_embeddings
            if past + embeds_BLD.shape[1] > limit and (highest := int(position_ids.max())) >= limit:
                raise ValueError(f"{highest + 1} positions are more than the {limit} of the model")
        embeds_BLD = embeds_BLD + self.position_embeds_layer(position_ids)
        if token_type_ids is not None:
            embeds_BLD = embeds_BLD + self.input_embeds_layer(token_type_ids.view(-1, embeds_BLD.shape[1]))
        output = self.hidden_of(
            embeds_BLD,
            attention_mask,
            past_key_values,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output.to_tuple() if return_dict is False else output


class ClvpModel(ClvpPreTrainedModel):
    """The decoder under the name that the checkpoint layout gives it."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.model.", "model.")
    input_embeddings = "decoder.input_embeds_layer"
    config: ClvpDecoderConfig

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__(config)
        self.decoder = ClvpDecoder(config)

    @wraps(ClvpDecoder.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.decoder(*args, **kwargs)


def _masking(attention_mask: Tensor | None, embeds_BLD: Tensor, past: int) -> tuple[Tensor | None, bool]:
    """The mask to attend with, and whether a plain lower triangle does instead."""
    length = embeds_BLD.shape[1]
    if attention_mask is not None:
        check_mask(attention_mask, embeds_BLD, past)
        attention_mask = attention_mask.to(embeds_BLD.device)
    elif past == 0 or length == 1:
        return None, length > 1
    return causal_mask(attention_mask, length, past + length, embeds_BLD.device), False
