"""Finds shapes in which a row's numbers do not depend on the rows beside it, by trying them out.

Matrix libraries choose their inner loops by the shape of the whole product. With oneDNN and MKL on the
processors we know, every product of at least four rows gives each row the same bits, however many rows
there are and wherever it stands. That is nobody's promise, so it is checked on the machine at hand, with
the model's own weights: the width of a step may then be any multiple of the *quantum*. Where the check
fails the quantum grows, at the worst to the number of lanes: one width for everything, which is slower and
always right.

Shapes: M rows of a product, D width, N head dimensions.
"""

import torch
from torch import Tensor

from clvp.sampling.weights import DecoderWeights, Linear

SMALLEST_QUANTUM = 8


def find_quantum(weights: DecoderWeights, lanes: int) -> int:
    """The smallest width, from 8 up, whose multiples up to `lanes` all give the same bits per row."""
    quantum = SMALLEST_QUANTUM
    while quantum < lanes:
        if _products_agree(weights, quantum, lanes):
            return quantum
        quantum *= 2
    return quantum


def _widths(quantum: int, lanes: int) -> list[int]:
    """Multiples of the quantum to try: the first, some between, and the largest."""
    largest = -(-lanes // quantum) * quantum
    return sorted({quantum, 2 * quantum, 3 * quantum, largest // 2 // quantum * quantum, largest} - {0})


@torch.inference_mode()
def _products_agree(weights: DecoderWeights, quantum: int, lanes: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    widths = _widths(quantum, max(lanes, 3 * quantum))
    layer = weights.layers[0]
    normal_MD = torch.randn(widths[-1], weights.width, generator=generator).to(weights.device, weights.dtype)
    hidden_MF = layer.mlp_in(normal_MD)
    cases: list[tuple[Linear, Tensor]] = [
        (layer.qkv, normal_MD),
        (lambda x_MD: layer.out(x_MD, x_MD), normal_MD),
        (layer.mlp_in, normal_MD),
        (lambda x_MF: layer.mlp_out(x_MF, x_MF[:, : weights.width].contiguous()), hidden_MF),
        (weights.head, normal_MD),
    ]
    if not all(_linear_agrees(linear, x_MI, widths) for linear, x_MI in cases):
        return False
    return _prefix_products_agree(weights, normal_MD, widths)


def _linear_agrees(linear: Linear, x_MI: Tensor, widths: list[int]) -> bool:
    """Whether each row keeps its bits in every width, and in reverse order."""
    expected_MO = linear(x_MI)
    return all(
        torch.equal(linear(x_MI[:width].contiguous()), expected_MO[:width])
        and torch.equal(linear(x_MI[:width].flip(0).contiguous()), expected_MO[:width].flip(0))
        for width in widths
    )


def _prefix_products_agree(weights: DecoderWeights, normal_MD: Tensor, widths: list[int]) -> bool:
    """The same for attention over a prefix: [M, N] x [N, P] and [M, P] x [P, N] for every head."""
    for padded in (32, 96):
        queries_HMN = normal_MD.unflatten(1, (weights.heads, -1)).transpose(0, 1)
        keys_HPN = queries_HMN[:, :1].roll(1, 0).repeat(1, padded, 1) * torch.linspace(
            -1, 1, padded, device=weights.device, dtype=weights.dtype
        ).view(1, -1, 1)
        expected_HMP = torch.bmm(queries_HMN.contiguous(), keys_HPN.transpose(1, 2))
        expected_HMN = torch.bmm(expected_HMP, keys_HPN)
        for width in widths:
            scores_HMP = torch.bmm(queries_HMN[:, :width].contiguous(), keys_HPN.transpose(1, 2))
            read_HMN = torch.bmm(expected_HMP[:, :width].contiguous(), keys_HPN)
            if not torch.equal(scores_HMP, expected_HMP[:, :width]):
                return False
            if not torch.equal(read_HMN, expected_HMN[:, :width]):
                return False
    return True
