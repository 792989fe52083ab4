"""CLVP scores: how well speech tokens fit a text, by the cosine of their embeddings.

A score depends on the length to which the speech tokens are padded, so that length is a constant and never
that of the longest candidate in a batch. Candidates are padded as Tortoise pads them, their silent end is
written as the diffusion decoder expects it, and all positions are scored.

K candidates, L scoring length, N text tokens, P projection width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clvp.config import ClvpConfig, ClvpDecoderConfig
from clvp.encoder import ClvpEncoder
from clvp.outputs import ClvpEncoderOutput, ClvpOutput
from clvp.pretrained import inference

FIXING_CODES = ClvpDecoderConfig.decoder_fixing_codes
SCORING_BATCH = 32


def write_ending(codes_L: Tensor, end: int, fixing_codes: Sequence[int]) -> None:
    """Fill [L] codes from the end of speech with the first of `fixing_codes`, and at last with the others.

    These keep their places, so that they take those of a speech which ends too late for them.
    """
    first = max(len(codes_L) - len(fixing_codes) + 1, 0)
    codes_L[min(end, first) :] = fixing_codes[0]
    codes_L[first:] = codes_L.new_tensor(fixing_codes[first - len(codes_L) :] if len(codes_L) else ())


def pad_and_fix_codes(
    tokens: Sequence[Tensor],
    finished: Sequence[bool],
    length: int = ClvpConfig.scoring_length,
    fixing_codes: Sequence[int] = FIXING_CODES,
) -> Tensor:
    """[K, length] codes to score, from candidates [T] without start and stop token.

    A candidate that ends inside `length` is followed by the filling code and closed by the three ending
    codes; so is one that fills `length` and finished. One that fills it unfinished stays as it is. This is
    Tortoise's `fix_autoregressive_output` after its padding to `max_mel_tokens`.

    Raises ValueError naming a candidate that is longer than `length`.
    """
    codes_KL = torch.empty(len(tokens), length, dtype=torch.long)
    for index, (row, done) in enumerate(zip(tokens, finished, strict=True)):
        if len(row) > length:
            raise ValueError(
                f"candidate {index} has {len(row)} tokens, more than the scoring length {length}"
            )
        codes_KL[index, : len(row)] = row
        if len(row) < length or done:
            write_ending(codes_KL[index], len(row), fixing_codes)
    return codes_KL


def fix_rows(codes_BL: Tensor, lengths: Sequence[int], decoder: ClvpDecoderConfig) -> Tensor:
    """The codes of rows of different lengths, each fixed from its own first stop token to its own end.

    Rows without a stop token stay as they are, and so does what lies behind a row's length.
    """
    fixed = codes_BL.clone()
    for row, length in zip(fixed, lengths, strict=True):
        stops = (row[:length] == decoder.eos_token_id).nonzero()
        if len(stops):
            write_ending(row[:length], int(stops[0]), decoder.decoder_fixing_codes)
    return fixed


def encode_speech(encoder: ClvpEncoder, codes_KL: Tensor) -> ClvpEncoderOutput:
    """Embeddings and pooled states of codes that need no mask, `SCORING_BATCH` candidates at a time.

    Raises ValueError naming a candidate with a code outside the speech vocabulary.
    """
    outside = ((codes_KL < 0) | (codes_KL >= encoder.config.vocab_size)).any(dim=1)
    if bool(outside.any()):
        raise ValueError(
            f"candidate {int(outside.nonzero()[0])} has a code outside the speech vocabulary of "
            f"{encoder.config.vocab_size}; start and stop tokens are none"
        )
    outputs = [encoder(codes.to(encoder.device)) for codes in codes_KL.split(SCORING_BATCH)]
    return ClvpEncoderOutput(
        embeds=torch.cat([output.embeds for output in outputs]),
        pooler_output=torch.cat([output.pooler_output for output in outputs]),
    )


def unit(embeds: Tensor) -> Tensor:
    """Embeddings of length 1, in float32: similarities are too fine for half precision."""
    wide = embeds.float()
    return wide / wide.norm(dim=-1, keepdim=True)


def compare(text: ClvpEncoderOutput, speech: ClvpEncoderOutput, logit_scale: Tensor) -> ClvpOutput:
    """Cosines of all texts and all speech sequences times exp(logit_scale), with what the encoders gave."""
    text_embeds, speech_embeds = unit(text["embeds"]), unit(speech["embeds"])
    logits = text_embeds @ speech_embeds.T * logit_scale.float().exp()
    return ClvpOutput(
        logits_per_speech=logits.T,
        logits_per_text=logits,
        text_embeds=text_embeds,
        speech_embeds=speech_embeds,
        text_model_output=text.pooler_output,
        speech_model_output=speech.pooler_output,
        text_encoder_hidden_states=text.hidden_states,
        speech_encoder_hidden_states=speech.hidden_states,
    )


def score_candidates(
    text_encoder: ClvpEncoder,
    speech_encoder: ClvpEncoder,
    logit_scale: Tensor,
    input_ids_N: Tensor,
    codes_KL: Tensor,
) -> Tensor:
    """[K] float32 scores of codes, from `pad_and_fix_codes`, against one text of N tokens without padding.

    The text encoder sees the text and one stop token, as when the reference generates. A candidate's score
    does not depend on the others. Raises ValueError for a code outside the speech vocabulary.
    """
    output = score_texts(text_encoder, speech_encoder, logit_scale, [input_ids_N], codes_KL)
    return output["logits_per_text"][0]


@inference
def score_texts(
    text_encoder: ClvpEncoder,
    speech_encoder: ClvpEncoder,
    logit_scale: Tensor,
    texts: Sequence[Tensor],
    codes_SL: Tensor,
    output_hidden_states: bool = False,
) -> ClvpOutput:
    """All texts, ids [N] or embeddings [N, D] to which one stop token is added, against all codes."""
    rows = [_with_stop(text_encoder, text) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    text = text_encoder(
        **{"input_ids" if padded.dim() == 2 else "inputs_embeds": padded},
        attention_mask=torch.arange(padded.shape[1]) < lengths[:, None],
        output_hidden_states=output_hidden_states,
    )
    speech = encode_speech(speech_encoder, codes_SL)
    if output_hidden_states:
        speech.hidden_states = speech_encoder(codes_SL, output_hidden_states=True).hidden_states
    output = compare(text, speech, logit_scale)
    output.speech_ids = codes_SL
    return output


def _with_stop(encoder: ClvpEncoder, text: Tensor) -> Tensor:
    stop = torch.tensor([encoder.config.eos_token_id], device=encoder.device)
    text = text.to(encoder.device)
    return torch.cat((text, encoder.token_embedding(stop) if text.is_floating_point() else stop))
