"""The autoregressive decoder, a GPT-2 over text prefix and speech tokens, and its language-modelling head.

Layer: x + attention(layernorm(x)), then x + mlp(layernorm(x)). The head ends layer_norm, final_norm, lm_head.
`forward` adds the mel position table to whatever it is given, as the reference does; `hidden_of` takes embeddings
that already carry their positions, which is what generation needs: a prefix with text positions, then mel positions.

B batch, L length, P past length, D width, T speech tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.activations import activation_function
from clvp.attention import ClvpSelfAttention, KeyValue, causal_mask
from clvp.checkpoint import CheckpointSource
from clvp.configuration import ClvpDecoderConfig
from clvp.generation import ClvpGenerationConfig, MelPositions, mel_position_ids, sample_prompts
from clvp.outputs import ClvpCausalLMOutput, ClvpDecoderOutput, ClvpGenerateOutput, KeyValues
from clvp.pretrained import ClvpPreTrainedModel, Conv1D, initialize

if TYPE_CHECKING:
    from clvp.sampling import EngineConfig

LABEL_IGNORED = -100


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
        width = config.hidden_size
        self.input_layernorm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.attn = ClvpSelfAttention(
            width, config.num_attention_heads, bias=config.use_attention_bias, dropout=config.attention_dropout
        )
        self.post_attention_layernorm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.mlp = ClvpDecoderMLP(config)

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None, causal: bool, past: KeyValue | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None, KeyValue]:
        """New states [B, L, D], attention weights if asked for, keys and values of past and present."""
        attended, weights, keys_values = self.attn(
            self.input_layernorm(x_BLD),
            mask=mask,
            causal=causal,
            past=past,
            output_attentions=output_attentions,
        )
        x_BLD = x_BLD + attended
        return x_BLD + self.mlp(self.post_attention_layernorm(x_BLD)), weights, keys_values


class ClvpDecoder(ClvpPreTrainedModel):
    """The layers, with the tables of speech tokens and mel positions."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.model.decoder.", "model.decoder.", "decoder.")
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
                nn.init.normal_(part.weight, std=std)  # type: ignore[arg-type]

    def get_input_embeddings(self) -> nn.Embedding:
        """The speech-token embedding."""
        return self.input_embeds_layer

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the speech-token embedding."""
        self.input_embeds_layer = value

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

        `past_key_values` is what an earlier call with `use_cache` returned; `attention_mask` [B, P + L] covers it.
        `position_ids` [B or 1, L] default to counting the tokens of each row, padding left out. `token_type_ids`
        [B, L] add the embedding of a second token. `use_cache` None means as configured.

        Raises ValueError unless exactly one input is given, and for more positions than the table has.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds_BLD = self.input_embeds_layer(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        if position_ids is None:
            position_ids = self._count_positions(attention_mask, embeds_BLD, past)
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

    def _count_positions(self, attention_mask: Tensor | None, embeds_BLD: Tensor, past: int) -> Tensor:
        length, device = embeds_BLD.shape[1], embeds_BLD.device
        limit = self.config.max_position_embeddings
        if attention_mask is None:
            if past + length > limit:
                raise ValueError(f"{past + length} positions are more than the {limit} of the model")
            return torch.arange(past, past + length, device=device)[None]
        return (attention_mask.to(device).long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]


def _masking(attention_mask: Tensor | None, embeds_BLD: Tensor, past: int) -> tuple[Tensor | None, bool]:
    """The mask to attend with, and whether a plain lower triangle does instead."""
    batch, length, _ = embeds_BLD.shape
    if attention_mask is not None:
        if attention_mask.shape != (batch, past + length):
            raise ValueError(
                f"attention_mask must cover past and present tokens, {[batch, past + length]}, "
                f"not {list(attention_mask.shape)}"
            )
        attention_mask = attention_mask.to(embeds_BLD.device)
        return causal_mask(attention_mask, length, past + length, embeds_BLD.device), False
    if past == 0:
        return None, length > 1
    return (None if length == 1 else causal_mask(None, length, past + length, embeds_BLD.device)), False


class ClvpModel(ClvpPreTrainedModel):
    """The decoder under the name that the checkpoint layout gives it."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.model.", "model.")
    config: ClvpDecoderConfig

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__(config)
        self.decoder = ClvpDecoder(config)

    def get_input_embeddings(self) -> nn.Embedding:
        """The speech-token embedding."""
        return self.decoder.input_embeds_layer

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the speech-token embedding."""
        self.decoder.input_embeds_layer = value

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
        """As `ClvpDecoder.forward`."""
        return self.decoder(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


class ClvpForCausalLM(ClvpPreTrainedModel):
    """The decoder with its head: logits and loss over given tokens, and generation of new ones."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.",)
    config: ClvpDecoderConfig

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__(config)
        self.model = ClvpModel(config)
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        initialize(self.lm_head, 0.02 * config.initializer_factor)
        self.generation_config = ClvpGenerationConfig.for_decoder(config)

    def _read_extra_files(self, source: CheckpointSource) -> None:
        self.generation_config = ClvpGenerationConfig.from_source(source, self.config)

    def _write_extra_files(self, folder: Path) -> None:
        self.generation_config.save_pretrained(folder)

    def get_input_embeddings(self) -> nn.Embedding:
        """The speech-token embedding."""
        return self.model.decoder.input_embeds_layer

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the speech-token embedding."""
        self.model.decoder.input_embeds_layer = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> ClvpCausalLMOutput | tuple[Any, ...]:
        """Logits [B, L, V], and the loss of predicting each label [B, L] from the tokens before it.

        Arguments are those of `ClvpDecoder.forward`; labels of -100 do not count.
        """
        output = self.model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits_BLV = self.lm_head(self.final_norm(output.last_hidden_state))
        loss = None
        if labels is not None:
            targets = labels[:, 1:].to(logits_BLV.device).flatten()
            loss = functional.cross_entropy(
                logits_BLV[:, :-1].flatten(0, 1).float(), targets, ignore_index=LABEL_IGNORED
            )
        result = ClvpCausalLMOutput(
            loss=loss,
            logits=logits_BLV,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def mel_embeddings(self, tokens_BT: Tensor, mel_positions: MelPositions = "trained") -> Tensor:
        """[B, T, D] embeddings of speech tokens, the start token first, on mel positions 0, 1, 2 ..."""
        positions = mel_position_ids(tokens_BT.shape[1], mel_positions).to(tokens_BT.device)
        decoder = self.model.decoder
        return decoder.input_embeds_layer(tokens_BT) + decoder.position_embeds_layer(positions)

    def speech_states(
        self,
        conditioning_embeds: Tensor,
        speech_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mel_positions: MelPositions = "trained",
        output_hidden_states: bool = False,
    ) -> ClvpDecoderOutput:
        """Decoder states [B, T, D] at the positions that predict each of `speech_ids` [B, T], in one pass.

        `conditioning_embeds` [B, P, D] are prefixes, `attention_mask` [B, P] marks their padding. The start token
        is put before `speech_ids`, so that state t has seen the tokens before t. Same for all hidden states.
        """
        start = speech_ids.new_full((len(speech_ids), 1), self.config.bos_token_id)
        inputs_BT = torch.cat((start, speech_ids[:, :-1]), dim=1)
        embeds = torch.cat((conditioning_embeds, self.mel_embeddings(inputs_BT, mel_positions)), dim=1)
        mask = None
        if attention_mask is not None:
            mask = torch.cat((attention_mask.to(embeds.device).bool(), torch.ones_like(inputs_BT).bool()), dim=1)
        output = self.model.decoder.hidden_of(embeds, mask, output_hidden_states=output_hidden_states)
        prefix = conditioning_embeds.shape[1]
        assert output.last_hidden_state is not None
        states = None if output.hidden_states is None else tuple(x[:, prefix:] for x in output.hidden_states)
        return ClvpDecoderOutput(last_hidden_state=output.last_hidden_state[:, prefix:], hidden_states=states)

    def speech_latents(
        self,
        conditioning_embeds: Tensor,
        speech_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mel_positions: MelPositions = "trained",
    ) -> Tensor:
        """Latents [B, T, D] of chosen candidates: what Tortoise's diffusion model takes as input.

        The normed states whose logits predict `speech_ids`; arguments as for `speech_states`.
        """
        states = self.speech_states(
            conditioning_embeds, speech_ids, attention_mask, mel_positions=mel_positions
        )
        return self.final_norm(states.last_hidden_state)

    @torch.no_grad()
    def generate(
        self,
        conditioning_embeds: Tensor | Sequence[Tensor],
        generation_config: ClvpGenerationConfig | None = None,
        attention_mask: Tensor | None = None,
        *,
        row_ids: Sequence[str] | None = None,
        engine_config: "EngineConfig | None" = None,
        **kwargs: Any,
    ) -> ClvpGenerateOutput | Tensor:
        """Speech tokens after prefixes [B, P, D] (padding marked by `attention_mask` [B, P]), or a list of [P, D].

        Returns sequences [B * k, 1 + T], start token first, a finished row ending in the stop token, padded with
        the pad token, or the stop token where there is none; k = `num_return_sequences`. With
        `return_dict_in_generate` they come in a ClvpGenerateOutput.

        `kwargs` replace fields of a copy of `generation_config`, or of the model's own. A row's random numbers
        depend on `seed`, its entry of `row_ids`, the candidate and the step: by default rows with the same prefix
        are told apart, and a row samples the same tokens alone and in a batch.

        Raises TypeError for an unknown keyword, ValueError for a value that is out of range.
        """
        config = (generation_config or self.generation_config).replace(**kwargs)
        prefixes = _prefix_rows(conditioning_embeds, attention_mask)
        candidates = sample_prompts(self, prefixes, config, row_ids, engine_config)
        sequences, finished = self._as_sequences([c for row in candidates for c in row], config)
        if config.return_dict_in_generate:
            return ClvpGenerateOutput(sequences=sequences, finished=finished)
        return sequences

    def _as_sequences(self, candidates: Sequence[Any], config: ClvpGenerationConfig) -> tuple[Tensor, Tensor]:
        start = torch.tensor([self.config.bos_token_id])
        stop = torch.tensor([self.config.eos_token_id])
        pad = self.config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        rows = [torch.cat((start, c.tokens, stop) if c.finished else (start, c.tokens)) for c in candidates]
        sequences = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        finished = torch.tensor([c.finished for c in candidates])
        return sequences.to(self.device), finished.to(self.device)


def _prefix_rows(embeds: Tensor | Sequence[Tensor], attention_mask: Tensor | None) -> list[Tensor]:
    if attention_mask is None:
        return list(embeds)
    return [row[keep.to(row.device).bool()] for row, keep in zip(embeds, attention_mask, strict=True)]
