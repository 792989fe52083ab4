"""The speech-token model: the decoder with its head, its training loss, and its generation.

The head ends layer_norm, final_norm, lm_head. Tokens are sampled by the engine in `clvp.sampling`.

B batch, L length, P prefix length, D width, T speech tokens, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.batch import check_choice, without_padding
from clvp.config import ClvpDecoderConfig
from clvp.decoder import ClvpModel
from clvp.generation_config import ClvpGenerationConfig, check_generation
from clvp.layers import initialize
from clvp.outputs import ClvpCausalLMOutput, ClvpGenerateOutput, KeyValues
from clvp.pretrained import ClvpPreTrainedModel, inference
from clvp.sampling import Candidate, CandidateSampler, EngineConfig, MelPositions, PromptRow
from clvp.sampling.decode_weights import check_plain
from clvp.sampling.lanes import positions_of

LABEL_IGNORED = -100


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
            loss, logits_BLV, output.past_key_values, output.hidden_states, output.attentions
        )
        return result.to_tuple() if return_dict is False else result

    def get_output_embeddings(self) -> nn.Linear:
        """What gives the logits."""
        return self.lm_head

    def mel_embeddings(self, tokens_BT: Tensor, mel_positions: MelPositions = "trained") -> Tensor:
        """[B, T, D] embeddings of speech tokens, the start token first, on mel positions 0, 1, 2 ... or, as
        references generate, 0, 2, 3 ...; ValueError for other `mel_positions`.
        """
        check_choice("mel_positions", mel_positions, get_args(MelPositions))
        positions = positions_of(torch.arange(tokens_BT.shape[1], device=tokens_BT.device), mel_positions)
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
    ) -> tuple[Tensor, ...]:
        """Decoder states [B, T, D] at the positions that predict each of `speech_ids` [B, T], in one pass.

        `conditioning_embeds` [B, P, D] are prefixes, `attention_mask` [B, P] marks their padding. The start
        token is put before `speech_ids`, so that state t has seen the tokens before t. The last layer's
        alone, or with `output_hidden_states` those of all layers.
        """
        start = speech_ids.new_full((len(speech_ids), 1), self.config.bos_token_id)
        inputs_BT = torch.cat((start, speech_ids), dim=1)[:, : speech_ids.shape[1]]
        embeds = torch.cat((conditioning_embeds, self.mel_embeddings(inputs_BT, mel_positions)), dim=1)
        mask = None
        if attention_mask is not None:
            mask = torch.cat((attention_mask.to(inputs_BT), torch.ones_like(inputs_BT)), dim=1)
        output = self.model.decoder.hidden_of(embeds, mask, output_hidden_states=output_hidden_states)
        states = output.hidden_states or (output["last_hidden_state"],)
        return tuple(x[:, conditioning_embeds.shape[1] :] for x in states)

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
        return self.final_norm(states[-1])

    @inference
    def generate(
        self,
        conditioning_embeds: Tensor | Sequence[Tensor],
        generation_config: Any = None,
        attention_mask: Tensor | None = None,
        *,
        row_ids: Sequence[str] | None = None,
        engine_config: EngineConfig | None = None,
        **kwargs: Any,
    ) -> ClvpGenerateOutput | Tensor:
        """Speech tokens after prefixes [B, P, D], their padding masked by [B, P], or a list of [P, D].

        Returns sequences [B * k, 1 + T], start token first, a finished row ending in the stop token, padded
        with the pad token, or the stop token where there is none; k = `num_return_sequences`. With
        `return_dict_in_generate` they come in a ClvpGenerateOutput.

        `kwargs` replace fields of a copy of `generation_config`, or of the model's own; a `GenerationConfig`
        of `transformers` replaces what it sets. A row's random numbers depend on `seed`, its entry of
        `row_ids`, the candidate and the step: by default rows with the same prefix are told apart, and a row
        samples the same tokens alone and in a batch.

        The sampling engine copies the weights on the first call, which takes seconds for a large model, and
        again when they have changed; `engine_config` says how it runs.

        Raises TypeError for an unknown keyword or a model with adapters or hooks, ValueError for a bad value.
        """
        config = self.generation_config.for_call(generation_config, **kwargs)
        prefixes = without_padding(conditioning_embeds, attention_mask)
        rows = sample_prompts(self, prefixes, config, row_ids, engine_config)
        candidates = [candidate for row in rows for candidate in row]
        start, stop = torch.tensor([self.config.bos_token_id]), torch.tensor([self.config.eos_token_id])
        tokens = [torch.cat((start, c.tokens, stop) if c.finished else (start, c.tokens)) for c in candidates]
        pad = self.config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        sequences = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=pad).to(self.device)
        if not config.return_dict_in_generate:
            return sequences
        finished = torch.tensor([c.finished for c in candidates], device=self.device)
        return ClvpGenerateOutput(sequences=sequences, finished=finished)


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

_COLUMNS = 8209  # a prime, so that rows of equal length that change places come to stand in other columns
# With what each was made from.
_SAMPLERS: WeakKeyDictionary[ClvpForCausalLM, tuple[object, CandidateSampler]] = WeakKeyDictionary()


def sampler_for(model: ClvpForCausalLM, config: EngineConfig | None = None) -> CandidateSampler:
    """The sampler of this model, made anew where its weights or `config` have changed since the last call.

    It holds a copy of the decoder's weights, arranged for decoding, for as long as the model lives. Raises
    TypeError for a model with adapters or hooks.
    """
    config = config or EngineConfig()
    check_plain(model)
    made_from = (config, _contents(model))
    held = _SAMPLERS.get(model)
    if held is None or held[0] != made_from:
        held = _SAMPLERS[model] = (made_from, CandidateSampler(model, config))
    return held[1]


@torch.no_grad()
def _contents(model: nn.Module) -> object:
    """What stands in the weights, by a checksum of all their bits that depends on where they stand.

    Writes through `.data` or a numpy view leave no other trace. Each weight is read once, as in one step of
    decoding: their words are summed up in columns, and these with odd factors. (Python's CRC and torch's
    `hash_tensor` take several times as long, and the latter does not see all signs turned.)
    """
    odd = torch.randint(-(2**63), 2**63 - 1, (2 * _COLUMNS,), generator=torch.Generator().manual_seed(0)) | 1
    contents = []
    for name, weight in model.named_parameters():
        odd = odd.to(weight.device)
        flat, per_word = weight.flatten(), 8 // weight.dtype.itemsize
        if flat.numel() % per_word or flat.storage_offset() % per_word:
            flat = functional.pad(flat, (0, -flat.numel() % per_word))
        words = flat.view(torch.int64)
        whole = len(words) - len(words) % _COLUMNS
        folded = torch.cat((words[:whole].view(-1, _COLUMNS).sum(dim=0), words[whole:]))
        checksum = int((folded * odd[: len(folded)]).sum())
        contents.append((name, weight.shape, weight.dtype, weight.device, checksum))
    return contents
