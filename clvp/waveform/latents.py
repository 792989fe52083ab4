"""Chosen candidates to speech latents: the decoder's second pass, over all tokens of a candidate at once.

L latents, P prefix positions, T tokens, D width.
"""

import numpy as np
from torch import Tensor
from torch.nn import functional

from clvp.generation import ClvpForCausalLM
from clvp.pretrained import inference

CALM_TOKENS = 8  # of silence after a finished candidate: 0.37 seconds


def says_nothing(tokens: Tensor | np.ndarray, calm: int) -> bool:
    """Whether none of a candidate's tokens is speech."""
    return bool((tokens == calm).all())


def latent_tokens(tokens_T: Tensor, finished: bool, calm: int) -> Tensor:
    """[L] the tokens whose latents are decoded, from a candidate's without start and stop token.

    A finished one ends in eight calm tokens, in place of those it has there itself; an unfinished one stays
    as it is. Tortoise instead cuts at the first nine calm tokens, even where the speech goes on behind them,
    and writes its ending codes over the last tokens of a long candidate.

    Raises ValueError for a candidate that is nothing but calm.
    """
    if says_nothing(tokens_T, calm):
        raise ValueError(f"the candidate says nothing: none of its {len(tokens_T)} tokens is speech")
    if not finished:
        return tokens_T
    last = int((tokens_T != calm).nonzero()[-1])
    return functional.pad(tokens_T[: last + 1], (0, CALM_TOKENS), value=calm)


def mean_log_probability(
    decoder: ClvpForCausalLM, latents_LD: Tensor, tokens_T: Tensor, finished: bool
) -> float:
    """Of a candidate's spoken tokens under the decoder, at temperature 1 and unfiltered, from its latents.

    Latent i is the state that predicts token i.
    """
    spoken = len(latents_LD) - CALM_TOKENS * finished
    logits_TV = decoder.lm_head(latents_LD[:spoken].to(decoder.dtype)).float()
    tokens_T = tokens_T[:spoken].to(logits_TV.device)
    return -float(functional.cross_entropy(logits_TV, tokens_T))


@inference
def speech_latents(decoder: ClvpForCausalLM, prefix_PD: Tensor, tokens_T: Tensor, finished: bool) -> Tensor:
    """[L, D] float32 latents of one candidate after its text's prefix, computed alone.

    No other candidate takes part in any kernel, so that its latents are the same bits in every batch. Mel
    positions are those of training, whichever the candidate was sampled with: that is Tortoise's definition.

    Raises ValueError for a candidate without speech, or with more tokens than the decoder has positions.
    """
    tokens_L = latent_tokens(tokens_T.to(decoder.device), finished, decoder.config.decoder_fixing_codes[0])
    limit = decoder.config.max_position_embeddings
    if len(tokens_L) > limit:
        raise ValueError(
            f"the candidate has {len(tokens_L)} tokens, with calm ones at its end; the decoder has {limit} "
            "positions"
        )
    return decoder.speech_latents(prefix_PD[None], tokens_L[None])[0].float()
