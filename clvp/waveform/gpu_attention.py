"""Attention of the sampling steps on CUDA: the bias of relative positions is looked up within the kernel.

`flex_attention` (Dong et al., "Flex Attention", 2024) is compiled for all lengths, so that which came first
does not matter, and to one kernel: by itself it has another for less than 128 frames, and none after too many
kinds of shapes, which `fullgraph` makes an error. R rows, T frames, C width, H heads, N head dimensions.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from clvp.waveform.denoiser import distance_bias

_compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attend(qkv_RTE: Tensor, table_KH: Tensor, lengths_R: Tensor) -> Tensor:
    """[R, T, C] as `denoiser.attend_by_row`, but for the frames behind a row's own."""
    frames, heads = qkv_RTE.shape[1], table_KH.shape[1]
    q, k, v = qkv_RTE.unflatten(2, (heads, 3, -1)).permute(3, 0, 2, 1, 4)
    bias_HD = distance_bias(table_KH, q.shape[3], frames)

    def score(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(key < lengths_R[row], score + bias_HD[head, key - query + frames - 1], -torch.inf)

    attended_RHTN: Tensor = _compiled(  # type: ignore[assignment]
        q, k, v, score_mod=score, kernel_options={"BACKEND": "TRITON"}
    )
    return attended_RHTN.transpose(1, 2).flatten(2)
