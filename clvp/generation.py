"""The speech-token model: the decoder with its head, its training loss, and its generation.

The head ends layer_norm, final_norm, lm_head. Tokens are sampled by the engine in `clvp.sampling`.

B batch, L length, P prefix length, D width, T speech tokens, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.batch import without_padding
from clvp.config import ClvpDecoderConfig
from clvp.decoder import ClvpModel
from clvp.generation_config import ClvpGenerationConfig, check_generation
from clvp.layers import initialize
from clvp.outputs import ClvpCausalLMOutput, ClvpDecoderOutput, ClvpGenerateOutput, KeyValues
from clvp.pretrained import ClvpPreTrainedModel
from clvp.sampling import Candidate, CandidateSampler, EngineConfig, MelPositions, PromptRow

LABEL_IGNORED = -100


def mel_position_ids(length: int, mel_positions: MelPositions) -> Tensor:
    """[length] mel positions of the start token and the tokens after it: 0, 1, 2 ... as trained, or 0, 2, 3
    ...

    Cached decoding in the references skips position 1.
    """
    positions = torch.arange(length)
    if mel_positions == "skip_one":
        positions[1:] += 1
    elif mel_positions != "trained":
        raise ValueError(f'mel_positions must be "trained" or "skip_one", not {mel_positions!r}')
    return positions


class ClvpForCausalLM(ClvpPreTrainedModel):
    """The decoder with its head: logits and loss over given tokens, and generation of new ones."""

    config_class = ClvpDecoderConfig
    checkpoint_prefixes = ("speech_decoder_model.",)
    input_embeddings = "model.decoder.input_embeds_layer"
    config: ClvpDecoderConfig

    def __init__(self, config: ClvpDecoderConfig) -> None:
        super().__init__(config)
        self.model = ClvpModel(config)
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        initialize(self.lm_head, 0.02 * config.initializer_factor)
        self.generation_config = ClvpGenerationConfig.for_decoder(config)

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

        `conditioning_embeds` [B, P, D] are prefixes, `attention_mask` [B, P] marks their padding. The start
        token is put before `speech_ids`, so that state t has seen the tokens before t. Same for all hidden
        states.
        """
        start = speech_ids.new_full((len(speech_ids), 1), self.config.bos_token_id)
        inputs_BT = torch.cat((start, speech_ids), dim=1)[:, : speech_ids.shape[1]]
        embeds = torch.cat((conditioning_embeds, self.mel_embeddings(inputs_BT, mel_positions)), dim=1)
        mask = None
        if attention_mask is not None:
            mask = torch.cat(
                (attention_mask.to(embeds.device).bool(), torch.ones_like(inputs_BT).bool()), dim=1
            )
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
        engine_config: EngineConfig | None = None,
        **kwargs: Any,
    ) -> ClvpGenerateOutput | Tensor:
        """Speech tokens after prefixes [B, P, D] (padding marked by `attention_mask` [B, P]), or a list of
        [P, D].

        Returns sequences [B * k, 1 + T], start token first, a finished row ending in the stop token, padded
        with the pad token, or the stop token where there is none; k = `num_return_sequences`. With
        `return_dict_in_generate` they come in a ClvpGenerateOutput.

        `kwargs` replace fields of a copy of `generation_config`, or of the model's own. A row's random
        numbers depend on `seed`, its entry of `row_ids`, the candidate and the step: by default rows with the
        same prefix are told apart, and a row samples the same tokens alone and in a batch.

        The sampling engine copies the weights on the first call, which takes seconds for a large model, and
        again when they have changed; `engine_config` says how it runs.

        Raises TypeError for an unknown keyword, ValueError for a value that is out of range.
        """
        config = (generation_config or self.generation_config).replace(**kwargs)
        prefixes = without_padding(conditioning_embeds, attention_mask)
        candidates = sample_prompts(self, prefixes, config, row_ids, engine_config)
        sequences, finished = self._as_sequences([c for row in candidates for c in row], config)
        if config.return_dict_in_generate:
            return ClvpGenerateOutput(sequences=sequences, finished=finished)
        return sequences

    def _as_sequences(
        self, candidates: Sequence[Candidate], config: ClvpGenerationConfig
    ) -> tuple[Tensor, Tensor]:
        start = torch.tensor([self.config.bos_token_id])
        stop = torch.tensor([self.config.eos_token_id])
        pad = self.config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        rows = [torch.cat((start, c.tokens, stop) if c.finished else (start, c.tokens)) for c in candidates]
        sequences = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        finished = torch.tensor([c.finished for c in candidates])
        return sequences.to(self.device), finished.to(self.device)


# ---- prompts to candidates ----


def sample_prompts(
    decoder: ClvpForCausalLM,
    prefixes: Sequence[Tensor],
    config: ClvpGenerationConfig,
    row_ids: Sequence[str] | None,
    engine_config: EngineConfig | None = None,
) -> list[list[Candidate]]:
    """`num_return_sequences` candidates for each prefix [P, D], in order, from the sampling engine.

    Without `row_ids`, a row is named after the number of equal rows before it, which no other row changes.
    """
    check_generation(config, decoder.config)
    if row_ids is None:
        row_ids = [
            str(sum(torch.equal(row, earlier) for earlier in prefixes[:i])) for i, row in enumerate(prefixes)
        ]
    if len(row_ids) != len(prefixes):
        raise ValueError(f"{len(row_ids)} row_ids do not name {len(prefixes)} rows")
    candidates = range(config.num_return_sequences)
    rows = [PromptRow(name, prefix, candidates) for name, prefix in zip(row_ids, prefixes, strict=True)]
    return sampler_for(decoder, engine_config).sample(rows, config.sampling_params())


def row_names(texts: Sequence[Tensor], audios: Sequence[Sequence[Tensor]]) -> list[str]:
    """A name for each row that depends on its own text and audio alone; equal rows are numbered."""
    seen: dict[str, int] = {}
    names = []
    for text, clips in zip(texts, audios, strict=True):
        digest = hashlib.sha256()
        for part in (text, *clips):
            array = part.detach().cpu().to(torch.float32 if part.is_floating_point() else torch.int64).numpy()
            digest.update(f"{array.shape}".encode() + array.tobytes())
        name = digest.hexdigest()
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name}-{seen[name]}")
    return names


# ---- one sampler per model ----

_State = tuple[object, ...]
_SAMPLERS: WeakKeyDictionary[ClvpForCausalLM, tuple[_State, CandidateSampler]] = WeakKeyDictionary()


def _state(model: ClvpForCausalLM, config: EngineConfig) -> _State:
    """What a sampler was made from. Every in-place change of a parameter counts up its version."""
    versions = [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype)
        for weight in model.parameters()
    ]
    return (config, *versions)


def sampler_for(model: ClvpForCausalLM, config: EngineConfig | None = None) -> CandidateSampler:
    """The sampler of this model, made anew where its weights or `config` have changed since the last call.

    It holds a copy of the decoder's weights, arranged for decoding, for as long as the model lives.
    """
    config = config or EngineConfig()
    state = _state(model, config)
    held = _SAMPLERS.get(model)
    if held is None or held[0] != state:
        held = (state, CandidateSampler(model, config))
        _SAMPLERS[model] = held
    return held[1]
