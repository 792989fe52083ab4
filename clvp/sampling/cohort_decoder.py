"""The decoding loop's body for CPUs (and any device without CUDA graphs): one step for all lanes at once.

The matrix products run over all lanes together, so that the weights are read once a step; attention runs
cohort
by cohort. Shapes: B lanes, W lanes padded to a multiple of the quantum, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from clvp.sampling.cohort import Cohort
from clvp.sampling.lanes import FinishedLane, LaneOwner, LaneTable
from clvp.sampling.params import SamplingParams
from clvp.sampling.prefill import Prefix
from clvp.sampling.weights import DecoderWeights


@dataclass(frozen=True)
class Admission:
    """Candidates of one row that start together."""

    prefix: Prefix
    owners: Sequence[LaneOwner]
    keys_N: Tensor  # [N] int64, the candidates' random keys


def _filling_holes(size: int, gone: set[int]) -> list[int]:
    """The order in which the lanes that stay keep their places, and the last ones fill those of the gone."""
    order = list(range(size - len(gone)))
    movers = [lane for lane in range(size - len(gone), size) if lane not in gone]
    for lane in sorted(gone):
        if lane < len(order):
            order[lane] = movers.pop()
    return order


class CohortDecoder:
    """Lanes in decoding. `admit` adds some, `step` draws one token for each and gives those that are done."""

    def __init__(self, weights: DecoderWeights, params: SamplingParams, quantum: int) -> None:
        self.weights = weights
        self.quantum = quantum
        self.table = LaneTable(weights, params)
        self.cohorts: list[Cohort] = []
        self.width_steps = 0  # padded lanes, summed over the steps: the work done

    @property
    def live(self) -> int:
        """Lanes in use."""
        return len(self.table)

    @property
    def reserved_bytes(self) -> int:
        """The most that the keys and values of the present lanes may come to."""
        return sum(cohort.reserved_bytes for cohort in self.cohorts)

    @torch.inference_mode()
    def admit(self, admissions: Sequence[Admission]) -> None:
        """New lanes. Rows of one padded prefix length form one cohort."""
        by_length = sorted(admissions, key=lambda admission: admission.prefix.padded)
        for _, group in groupby(by_length, key=lambda admission: admission.prefix.padded):
            together = list(group)
            prefixes = [admission.prefix for admission in together]
            lanes = [len(admission.owners) for admission in together]
            limit = self.table.params.max_new_tokens
            self.cohorts.append(Cohort(self.weights, prefixes, lanes, limit, self.quantum))
            for admission in together:
                self.table.append(admission.owners, admission.keys_N)

    @torch.inference_mode()
    def step(self) -> list[FinishedLane]:
        """One token for every lane; the lanes that are done leave."""
        done = self.table.draw(self._logits())
        if not done:
            return []
        finished = [self.table.collect(lane) for lane in done]
        self._drop(set(done))
        return finished

    def _logits(self) -> Tensor:
        for cohort in self.cohorts:
            cohort.begin_step()
        x_WD = functional.pad(self.table.inputs(), (0, 0, 0, -self.live % self.quantum))
        self.width_steps += x_WD.shape[0]
        for number, layer in enumerate(self.weights.layers):
            q_WD, k_WD, v_WD = layer.qkv(layer.input_norm(x_WD)).chunk(3, dim=-1)
            x_WD = x_WD + layer.out(self._attend(number, q_WD, k_WD, v_WD))
            x_WD = x_WD + layer.mlp_out(layer.mlp_in(layer.mlp_norm(x_WD)))
        x_WD = self.weights.final_norm(self.weights.decoder_norm(x_WD))
        return self.weights.head(x_WD)[: self.live].float()

    def _attend(self, layer: int, q_WD: Tensor, k_WD: Tensor, v_WD: Tensor) -> Tensor:
        attended_WD = torch.zeros(q_WD.shape, dtype=q_WD.dtype, device=q_WD.device)
        first = 0
        for cohort in self.cohorts:
            lanes = slice(first, first + cohort.size)
            attended_WD[lanes] = cohort.attend(layer, q_WD[lanes], k_WD[lanes], v_WD[lanes])
            first += cohort.size
        return attended_WD

    def _drop(self, done: set[int]) -> None:
        order: list[int] = []
        first = 0
        for cohort in self.cohorts:
            size = cohort.size
            gone = {lane - first for lane in done if first <= lane < first + size}
            kept = _filling_holes(size, gone)
            if gone and kept:
                cohort.keep(kept)
            cohort.size = len(kept)
            order.extend(first + lane for lane in kept)
            first += size
        self.cohorts = [cohort for cohort in self.cohorts if cohort.size]
        self.table.keep(order)
