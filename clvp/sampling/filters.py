"""From logits to a token: the filters of `transformers`' generation, on the sorted head of the distribution.

Sorting once (or taking the top k once) serves top-k, top-p, typical sampling and the draw itself.
Every operation works on the rows apart, so a row's token never depends on its neighbours.

Shapes: B rows, V vocabulary, K kept (top_k, or V).
"""

import torch
from torch import Tensor

from clvp.sampling.params import SamplingParams

NO_NUMBERS = (
    "the model's logits are NaN or infinite: its weights are damaged, or float16 is too narrow for them (try "
    "bfloat16 or float32)"
)


def without_maximum(logits_BV: Tensor) -> Tensor:
    """Bool [B]: the rows from which no token can be drawn, since they hold a NaN or +inf, or −inf alone."""
    return ~logits_BV.amax(-1).isfinite()


def penalize(logits_BV: Tensor, history_BT: Tensor, penalty: float) -> Tensor:
    """Repetition penalty (Keskar et al. 2019) on the tokens of `history_BT`, int64, in place.

    Their logits are divided by the penalty, or multiplied if negative, once however often they occur.
    """
    seen_BT = logits_BV.gather(1, history_BT)
    return logits_BV.scatter_(1, history_BT, torch.where(seen_BT < 0, seen_BT * penalty, seen_BT / penalty))


def forbid_early_stop(logits_BV: Tensor, steps_B: Tensor, stop_token: int, min_new_tokens: int) -> Tensor:
    """Makes the stop token impossible in rows with fewer than `min_new_tokens` tokens (in place)."""
    stop_B = logits_BV[:, stop_token]
    logits_BV[:, stop_token] = stop_B.masked_fill(steps_B < min_new_tokens, -torch.inf)
    return logits_BV


def _drop_outside_nucleus(scores_BK: Tensor, top_p: float) -> Tensor:
    """Top-p on scores sorted downwards: drops a token where it and all behind it have mass ≤ 1 − top_p."""
    probabilities_BK = scores_BK.softmax(-1)
    tail_BK = probabilities_BK.flip(-1).cumsum(-1).flip(-1)
    drop_BK = tail_BK <= 1 - top_p
    drop_BK[:, 0] = False
    return scores_BK.masked_fill(drop_BK, -torch.inf)


def _drop_atypical(scores_BK: Tensor, typical_p: float) -> Tensor:
    """Typical sampling: keeps the tokens whose surprise is nearest to the entropy, up to mass `typical_p`."""
    log_probabilities_BK = scores_BK.log_softmax(-1)
    probabilities_BK = log_probabilities_BK.exp()
    entropy_B1 = -(log_probabilities_BK * probabilities_BK).nansum(-1, keepdim=True)
    distance_BK = (-log_probabilities_BK - entropy_B1).abs()
    sorted_distance_BK, order_BK = distance_BK.sort(stable=True, dim=-1)
    mass_BK = probabilities_BK.gather(-1, order_BK).cumsum(-1)
    last_B1 = (mass_BK < typical_p).sum(-1, keepdim=True).clamp(max=mass_BK.shape[-1] - 1)
    return scores_BK.masked_fill(distance_BK > sorted_distance_BK.gather(-1, last_B1), -torch.inf)


def filtered_distribution(logits_BV: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Temperature, top-k, top-p and typical filters of float32 logits, penalized; −inf: impossible.

    Gives probabilities [B, K], sorted downwards before typical filtering, zero where filtered, and token ids
    [B, K]. Of equal logits at the edge of the top k exactly k are kept (`transformers` keeps every tie).
    """
    scores_BV = logits_BV / params.temperature
    vocabulary = scores_BV.shape[-1]
    if 0 < params.top_k < vocabulary:
        scores_BK, tokens_BK = scores_BV.topk(params.top_k)
    else:
        scores_BK, tokens_BK = scores_BV.sort(stable=True, dim=-1, descending=True)
    if params.top_p < 1:
        scores_BK = _drop_outside_nucleus(scores_BK, params.top_p)
    if params.typical_p < 1:
        scores_BK = _drop_atypical(scores_BK, params.typical_p)
    return scores_BK.softmax(-1), tokens_BK


def choose_tokens(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> Tensor:
    """The next token of each row, int64 [B], by float32 logits, penalized: the most probable, or the inverse
    of the distribution at `uniform_B`, float64 in (0, 1).
    """
    if not params.do_sample:
        return logits_BV.argmax(-1)
    probabilities_BK, tokens_BK = filtered_distribution(logits_BV, params)
    cumulative_BK = probabilities_BK.to(torch.float64).cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BK[:, -1:]
    index_B1 = (cumulative_BK <= target_B1).sum(-1, keepdim=True).clamp(max=cumulative_BK.shape[-1] - 1)
    return tokens_BK.gather(-1, index_B1).squeeze(-1)
