"""The decoding loop's body for CPUs (and any device without CUDA graphs): one step for all lanes at once.

The matrix products run over all lanes together, so that the weights are read once a step; attention runs
cohort by cohort. Shapes: B lanes, W lanes padded to a width of `Products`, D width, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn import functional

from clvp.sampling.cohort import Cohort
from clvp.sampling.decode_weights import DecoderWeights, decoder_logits
from clvp.sampling.lanes import Admission, FinishedLane, LaneTable
from clvp.sampling.memory import budget_error, give_back_freed
from clvp.sampling.params import SamplingParams
from clvp.sampling.prefill import padded_length, prefill

WORTH_A_COHORT = 8  # free lanes, from which on a cohort of their own pays


def _filling_holes(size: int, gone: set[int]) -> list[int]:
    """The order in which the lanes that stay keep their places, and the last ones fill those of the gone."""
    order = list(range(size - len(gone)))
    movers = [lane for lane in range(size - len(gone), size) if lane not in gone]
    for lane in sorted(gone):
        if lane < len(order):
            order[lane] = movers.pop()
    return order


class CohortDecoder:
    """Lanes in decoding. `reserve` and `admit` add some, `step` draws a token for each and gives the done."""

    def __init__(self, weights: DecoderWeights, params: SamplingParams, lanes: int, budget: int) -> None:
        """At most `lanes` lanes, and `budget` bytes for their keys and values."""
        assert weights.products is not None
        self.weights, self.products = weights, weights.products
        self.lanes, self.budget = lanes, budget
        self.prefill = partial(prefill, weights)
        self.table = LaneTable(weights, params)
        self.cohorts: list[Cohort] = []
        self.promised_lanes = self.promised_bytes = 0
        self.width_steps = 0  # padded lanes, summed over the steps: the work done

    @property
    def live(self) -> int:
        """Lanes in use."""
        return len(self.table)

    @property
    def has_room(self) -> bool:
        """Whether enough lanes are free to be worth a cohort of their own."""
        return self.lanes - self.live >= min(WORTH_A_COHORT, self.lanes)

    def bytes_for(self, prefix_positions: int, candidates: int) -> int:
        """What candidates of one row can come to need. The prefix counts twice: kept for those to come."""
        positions = 2 * padded_length(prefix_positions) + candidates * self.table.params.max_new_tokens
        workspace = candidates * self.weights.workspace_bytes_per_lane
        return self.weights.kv_bytes_per_token * positions + workspace

    def reserve(self, prefix_positions: int, wanted: int) -> int:
        """How many of `wanted` candidates of one row can be admitted now; they are promised room.

        Where memory is short, a few are not worth a cohort with its copy of the prefix: more will be free.
        Raises MemoryBudgetError where the whole budget does not hold one.
        """
        one = self.bytes_for(prefix_positions, 1)
        if one > self.budget:
            raise budget_error(self.budget, one, f"a row with a prefix of {prefix_positions} positions")
        held = sum(cohort.reserved_bytes for cohort in self.cohorts) + self.promised_bytes
        held += self.live * self.weights.workspace_bytes_per_lane
        fixed = self.bytes_for(prefix_positions, 0)
        fitting = (self.budget - held - fixed) // (one - fixed)
        free = self.lanes - self.live - self.promised_lanes
        granted = min(wanted, free, fitting, self.products.widest)
        if granted <= 0 or (self.live and granted == fitting < min(WORTH_A_COHORT, wanted)):
            return 0
        self.promised_lanes += granted
        self.promised_bytes += self.bytes_for(prefix_positions, granted)
        return granted

    @torch.inference_mode()
    def admit(self, admissions: Sequence[Admission]) -> None:
        """New lanes. Rows of one padded prefix length form one cohort."""
        self.promised_lanes = self.promised_bytes = 0
        length = attrgetter("prefix.padded")
        for _, group in groupby(sorted(admissions, key=length), key=length):
            together = list(group)
            prefixes, lanes = [new.prefix for new in together], [len(new.owners) for new in together]
            self.cohorts.append(Cohort(self.weights, prefixes, lanes, self.table.params.max_new_tokens))
            for new in together:
                self.table.append(new.owners, new.keys_N)

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
        padding = self.products.padded(self.live) - self.live
        x_WD = functional.pad(self.table.inputs(), (0, 0, 0, padding))
        self.width_steps += x_WD.shape[0]
        return decoder_logits(self.weights, x_WD, self._attend)[: self.live]

    def _attend(self, layer: int, qkv_WE: Tensor) -> Tensor:
        q_WD, k_WD, v_WD = qkv_WE.chunk(3, dim=-1)
        if len(self.cohorts) == 1 and self.live == q_WD.shape[0]:
            return self.cohorts[0].attend(layer, q_WD, k_WD, v_WD)
        attended_WD = torch.empty(q_WD.shape, dtype=q_WD.dtype, device=q_WD.device)
        attended_WD[self.live :] = 0
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
        if not all(cohort.size for cohort in self.cohorts):
            self.cohorts = [cohort for cohort in self.cohorts if cohort.size]
            give_back_freed(self.weights.device)
        self.table.keep(order)
