"""The composite model: speech tokens for a text in the voice of reference audio, and how well they fit it.

B texts, k candidates each, S speech sequences (B * k after `generate`), N text tokens, L codes, P projection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.batch import without_padding
from clvp.conditioning import ClvpConditioningEncoder, InputFeatures, clips_of, pair_up
from clvp.config import ClvpConfig
from clvp.encoder import ClvpEncoder
from clvp.generation import ClvpForCausalLM, row_names, sample_prompts
from clvp.generation_config import ClvpGenerationConfig
from clvp.outputs import ClvpEncoderOutput, ClvpOutput
from clvp.pretrained import ClvpPreTrainedModel, inference
from clvp.sampling import Candidate, EngineConfig
from clvp.scoring import compare, encode_speech, fix_rows, pad_and_fix_codes, score_texts


def contrastive_loss(logits_BB: Tensor) -> Tensor:
    """Mean cross-entropy of finding each text's speech and each speech's text (Radford et al., 2021)."""
    if logits_BB.shape[0] != logits_BB.shape[1]:
        raise ValueError(f"the contrastive loss pairs texts with audios; got {list(logits_BB.shape)} of them")
    targets = torch.arange(len(logits_BB), device=logits_BB.device)
    return (functional.cross_entropy(logits_BB, targets) + functional.cross_entropy(logits_BB.T, targets)) / 2


class ClvpModelForConditionalGeneration(ClvpPreTrainedModel):
    """Conditioning encoder, speech decoder, text and speech encoder, and the scale of their similarity."""

    config_class = ClvpConfig
    config: ClvpConfig

    def __init__(self, config: ClvpConfig) -> None:
        super().__init__(config)
        self.conditioning_encoder = ClvpConditioningEncoder(config)
        self.speech_decoder_model = ClvpForCausalLM(config.decoder_config)
        self.text_encoder_model = ClvpEncoder(config.text_config)
        self.speech_encoder_model = ClvpEncoder(config.speech_config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.generation_config = ClvpGenerationConfig.for_decoder(
            config.decoder_config, config.scoring_length
        )

    @property
    def encoders(self) -> tuple[ClvpEncoder, ClvpEncoder, Tensor]:
        """Of text and of speech, and the scale of their similarity: what `clvp.scoring` scores with."""
        return self.text_encoder_model, self.speech_encoder_model, self.logit_scale

    def fix_speech_decoder_output(self, speech_ids: Tensor) -> Tensor:
        """Codes [S, L - 1] of generated tokens [S, L]: without start token, fixed from the first stop on."""
        codes = speech_ids[:, 1:]
        return fix_rows(codes, [codes.shape[1]] * len(codes), self.config.decoder_config)

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        text_encoder_inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> ClvpEncoderOutput | tuple[Tensor, ...]:
        """The text encoder's output for ids [B, N] or embeddings [B, N, D]; its `embeds` are not normed."""
        return self.text_encoder_model(input_ids, text_encoder_inputs_embeds, attention_mask, **kwargs)

    def get_speech_features(
        self,
        speech_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
        input_features: InputFeatures | None = None,
        conditioning_encoder_inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Speech embeddings [S, P], not normed, of codes [S, L] or of speech generated for texts and audios.

        `attention_mask` belongs to `speech_ids` where they are given and to the text otherwise. Generated
        speech is padded and fixed as in `generate`; `kwargs` are generation settings for this call alone.
        """
        if speech_ids is not None:
            return self.speech_encoder_model(speech_ids, attention_mask=attention_mask).embeds
        config = self.generation_config.for_call(generation_config, **kwargs)
        text = input_ids if conditioning_encoder_inputs_embeds is None else conditioning_encoder_inputs_embeds
        _, _, codes = self._sample(text, input_features, attention_mask, config)
        return encode_speech(self.speech_encoder_model, codes)["embeds"]

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: InputFeatures | None = None,
        conditioning_encoder_inputs_embeds: Tensor | None = None,
        text_encoder_inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> ClvpOutput | tuple[Any, ...]:
        """Similarity of texts and of the speech that the decoder, fed with prefixes, finds most probable.

        This trains the encoders contrastively (`return_loss`); the most probable tokens carry no gradient, so
        that the decoder is trained by `ClvpForCausalLM(labels=...)`. As the reference defines it, and unlike
        `generate`, decoder positions are added on top of the text's, and the prefix has no start token.

        `input_ids` [B, N] go to both the conditioning and the text encoder, each of which takes embeddings in
        their place. `attention_mask` [B, N] marks padding, which changes nothing in any row.
        """
        if input_features is None:
            raise ValueError("forward needs input_features")
        # Nothing behind the most probable token has a gradient: keep the graph only for who looks inside.
        with torch.set_grad_enabled(torch.is_grad_enabled() and output_hidden_states):
            ids = input_ids if conditioning_encoder_inputs_embeds is None else None
            prefix = self.conditioning_encoder(
                input_features, ids, conditioning_encoder_inputs_embeds, attention_mask
            )
            codes, mask, decoder_states = self._most_probable_codes(
                prefix, attention_mask, output_hidden_states
            )
        inside = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        speech = self.speech_encoder_model(codes, attention_mask=mask, **inside)
        text_ids = input_ids if text_encoder_inputs_embeds is None else None
        text = self.text_encoder_model(text_ids, text_encoder_inputs_embeds, attention_mask, **inside)
        output = compare(text, speech, self.logit_scale)
        if return_loss:
            output.loss = contrastive_loss(output["logits_per_text"])
        output.decoder_hidden_states = decoder_states
        return output.to_tuple() if return_dict is False else output

    def _most_probable_codes(
        self, prefix: Tensor, attention_mask: Tensor | None, output_hidden_states: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Fixed codes [B, N + 2], the mask of those that are no padding, and the decoder's hidden states."""
        batch, length, _ = prefix.shape
        lengths, mask = [length] * batch, None
        if attention_mask is not None:
            added = length - int(attention_mask.sum(dim=1).max())
            lengths = [int(n) + added for n in attention_mask.sum(dim=1).expand(batch)]
            mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).to(prefix.device)
        decoded = self.speech_decoder_model(
            inputs_embeds=prefix,
            attention_mask=mask,
            use_cache=False,
            output_hidden_states=output_hidden_states,
        )
        decoder = self.config.decoder_config
        # Speech and the stop token; the start token is neither, and no speech encoder knows it.
        token_V = torch.arange(decoder.vocab_size, device=prefix.device)
        allowed_V = (token_V < self.config.speech_config.vocab_size) | (token_V == decoder.eos_token_id)
        logits_BLV = decoded.logits.masked_fill(~allowed_V, -torch.inf)
        codes = fix_rows(logits_BLV.argmax(dim=-1)[:, 1:], [n - 1 for n in lengths], decoder)
        if mask is None:
            return codes, None, decoded.hidden_states
        mask = mask[:, 1:]
        return codes.masked_fill(~mask, 0), mask, decoded.hidden_states

    @inference
    def generate(
        self,
        input_ids: Tensor | None = None,
        input_features: InputFeatures | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        pad_to_max_mel_tokens: int | None = None,
        output_hidden_states: bool | None = None,
        *,
        conditioning_encoder_inputs_embeds: Tensor | None = None,
        text_encoder_inputs_embeds: Tensor | None = None,
        row_ids: Sequence[str] | None = None,
        engine_config: EngineConfig | None = None,
        **kwargs: Any,
    ) -> ClvpOutput | tuple[Any, ...]:
        """Speech codes for texts in the voice of reference audio, and their scores.

        Args:
            input_ids: [B, N] text tokens. The text encoder and the conditioning encoder each take embeddings
                [B, N, D] in their place.
            input_features: [B, bands, T] log-mels, or a list with the clips of each row, whose latents are
                averaged. One text with many audios, or one audio with many texts, is repeated.
            attention_mask: [B, N] 1 at text, 0 at padding on whichever side.
            generation_config: replaces the model's own for this call. One of `transformers` replaces what it
                sets.
            pad_to_max_mel_tokens: scores n - 1 codes, as the reference does for n; None scores the constant
                `config.scoring_length`.
            output_hidden_states: decoder states [S, longest, D] of the positions that predict each token,
                computed in a second pass, and those of both encoders.
            row_ids: names that the random numbers of each text depend on; by default its tokens and its
                audio.
            engine_config: how the sampling engine runs; no token depends on it.
            kwargs: generation settings, such as `num_return_sequences` (k), `do_sample`, `temperature`,
                `seed`.

        Returns:
            ClvpOutput with `speech_ids` [B * k, scoring length] fixed and padded, of which rows i * k ...
            (i + 1) * k - 1 belong to text i, and `logits_per_text` [B, B * k]; a tuple of its fields with
            `return_dict_in_generate=False`.

        Raises:
            ValueError: a text that is too long, inputs that do not fit each other, settings out of range.
            TypeError: an unknown setting; a decoder with adapters or hooks.
        """
        config = self.generation_config.for_call(generation_config, **kwargs)
        inside = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        said = input_ids if conditioning_encoder_inputs_embeds is None else conditioning_encoder_inputs_embeds
        scored = input_ids if text_encoder_inputs_embeds is None else text_encoder_inputs_embeds
        if scored is None:
            raise ValueError("give input_ids or text_encoder_inputs_embeds, to score speech against the text")
        length = None if pad_to_max_mel_tokens is None else pad_to_max_mel_tokens - 1
        prefixes, candidates, codes = self._sample(
            said, input_features, attention_mask, config, length, row_ids, engine_config
        )
        output = score_texts(*self.encoders, without_padding(scored, attention_mask), codes, inside)
        output.finished = torch.tensor([c.finished for c in candidates], device=self.device)
        if inside:
            output.decoder_hidden_states = self._decoder_states(prefixes, candidates, config)
        return output.to_tuple() if config.return_dict_in_generate is False else output

    @inference
    def _sample(
        self,
        text: Tensor | None,
        input_features: InputFeatures | None,
        attention_mask: Tensor | None,
        config: ClvpGenerationConfig,
        length: int | None = None,
        row_ids: Sequence[str] | None = None,
        engine_config: EngineConfig | None = None,
    ) -> tuple[list[Tensor], list[Candidate], Tensor]:
        """The prefix [P, D] of each text (ids or embeddings), all candidates, and their codes [S, length].

        ValueError when more could be generated than the `length` (default: the model's) that is scored.
        """
        length = self.config.scoring_length if length is None else length
        if config.max_new_tokens > length:
            raise ValueError(
                f"max_new_tokens {config.max_new_tokens} exceeds the {length} codes that are scored; lower "
                "it, or raise pad_to_max_mel_tokens or config.scoring_length"
            )
        if text is None or input_features is None:
            raise ValueError(
                "give input_features, and input_ids or conditioning_encoder_inputs_embeds, to generate speech"
            )
        voices = [clips_of(row) for row in input_features]
        encoded = [(clips, self.conditioning_encoder.average_clips(clips)) for clips in voices]
        texts, audios = pair_up(without_padding(text, attention_mask), encoded)
        prefixes = []
        for index, (row, (_, latent)) in enumerate(zip(texts, audios, strict=True)):
            try:
                prefixes.append(self.conditioning_encoder.build_prefix(latent, row))
            except ValueError as error:
                raise ValueError(f"row {index}: {error}") from error
        names = row_names(texts, [clips for clips, _ in audios]) if row_ids is None else row_ids
        rows = sample_prompts(self.speech_decoder_model, prefixes, config, names, engine_config)
        candidates = [candidate for row in rows for candidate in row]
        codes = pad_and_fix_codes(
            [candidate.tokens for candidate in candidates],
            [candidate.finished for candidate in candidates],
            length,
            self.config.decoder_config.decoder_fixing_codes,
        )
        return prefixes, candidates, codes.to(self.device)

    def _decoder_states(
        self, prefixes: list[Tensor], candidates: Sequence[Candidate], config: ClvpGenerationConfig
    ) -> tuple[Tensor, ...]:
        """Layers + 1 of [S, longest, D]: states that predict each token, zero behind a candidate's end."""
        tokens = nn.utils.rnn.pad_sequence([c.tokens for c in candidates], batch_first=True).to(self.device)
        lengths = torch.tensor([len(c.tokens) for c in candidates], device=self.device)
        inside = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
        settings: dict[str, Any] = {"mel_positions": config.mel_positions, "output_hidden_states": True}
        per_text = [
            self.speech_decoder_model.speech_states(prefix.expand(len(ids), -1, -1), ids, **settings)
            for prefix, ids in zip(prefixes, tokens.split(config.num_return_sequences), strict=True)
        ]
        return tuple(torch.cat(layer) * inside[..., None] for layer in zip(*per_text, strict=True))
