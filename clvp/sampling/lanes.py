"""What is known of every lane besides its keys and values. A lane is one candidate being decoded.

Shapes: B lanes, V vocabulary, T tokens at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clvp.sampling.filters import choose_tokens, forbid_early_stop, penalize
from clvp.sampling.noise import uniform
from clvp.sampling.params import SamplingParams
from clvp.sampling.weights import DecoderWeights


@dataclass(frozen=True)
class LaneOwner:
    """Whose candidate a lane decodes: the row's place in the input, and the candidate's index."""

    row: int
    candidate: int


@dataclass(frozen=True)
class FinishedLane:
    """A candidate that is done."""

    owner: LaneOwner
    tokens: Tensor  # [T] int64 on the CPU, without the stop token
    finished: bool  # False: it ran into the length limit


class LaneTable:
    """Last token, step, random key, seen tokens and drawn tokens of the lanes, in the lanes' order."""

    def __init__(self, weights: DecoderWeights, params: SamplingParams) -> None:
        self.weights = weights
        self.params = params
        self.owners: list[LaneOwner] = []
        device = weights.device
        self.tokens_B = torch.empty(0, dtype=torch.int64, device=device)
        self.steps_B = torch.empty(0, dtype=torch.int64, device=device)
        self.keys_B = torch.empty(0, dtype=torch.int64, device=device)
        self.seen_BV = torch.empty(0, weights.vocabulary, dtype=torch.bool, device=device)
        self.drawn_BT = torch.empty(0, params.max_new_tokens, dtype=torch.int32, device=device)

    def __len__(self) -> int:
        return len(self.owners)

    def append(self, owners: Sequence[LaneOwner], keys_N: Tensor) -> None:
        """New lanes at the end, about to decode their first token from the start token."""
        new, device = len(owners), self.weights.device
        self.owners.extend(owners)
        seen = self.seen_BV.new_zeros(new, self.weights.vocabulary)
        seen[:, [self.weights.start_token, *self.params.penalized_tokens]] = True
        start = torch.full((new,), self.weights.start_token, device=device)
        self.tokens_B = torch.cat([self.tokens_B, start])
        self.steps_B = torch.cat([self.steps_B, torch.zeros_like(start)])
        self.keys_B = torch.cat([self.keys_B, keys_N.to(device)])
        self.seen_BV = torch.cat([self.seen_BV, seen])
        self.drawn_BT = torch.cat([self.drawn_BT, self.drawn_BT.new_zeros(new, self.params.max_new_tokens)])

    def keep(self, order: Sequence[int]) -> None:
        """Keeps the lanes `order`, in that order."""
        self.owners = [self.owners[lane] for lane in order]
        order_B = torch.tensor(order, dtype=torch.int64, device=self.weights.device)
        self.tokens_B, self.steps_B, self.keys_B = (
            x[order_B] for x in (self.tokens_B, self.steps_B, self.keys_B)
        )
        self.seen_BV, self.drawn_BT = self.seen_BV[order_B], self.drawn_BT[order_B]

    def inputs(self) -> Tensor:
        """Embedded last tokens at their mel positions: [B, D]."""
        positions_B = self.steps_B
        if self.params.mel_positions == "skip_one":
            positions_B = positions_B + (positions_B > 0)
        return (
            self.weights.token_embedding_VD[self.tokens_B] + self.weights.position_embedding_LD[positions_B]
        )

    def draw(self, logits_BV: Tensor) -> list[int]:
        """Draws the next token of each lane from float32 logits; gives the lanes that are done now."""
        params = self.params
        if params.repetition_penalty != 1:
            logits_BV = penalize(logits_BV, self.seen_BV, params.repetition_penalty)
        if params.min_new_tokens:
            logits_BV = forbid_early_stop(
                logits_BV, self.steps_B, self.weights.stop_token, params.min_new_tokens
            )
        self.tokens_B = choose_tokens(logits_BV, uniform(self.keys_B, self.steps_B), params)
        if params.repetition_penalty != 1:
            self.seen_BV.scatter_(1, self.tokens_B[:, None], True)
        self.drawn_BT.scatter_(1, self.steps_B[:, None], self.tokens_B[:, None].to(torch.int32))
        self.steps_B = self.steps_B + 1
        done_B = (self.tokens_B == self.weights.stop_token) | (self.steps_B == params.max_new_tokens)
        return done_B.nonzero().flatten().tolist()

    def collect(self, lane: int) -> FinishedLane:
        """The result of a lane that is done."""
        drawn = self.drawn_BT[lane, : int(self.steps_B[lane])].to("cpu", torch.int64)
        finished = int(drawn[-1]) == self.weights.stop_token
        return FinishedLane(self.owners[lane], drawn[:-1] if finished else drawn, finished)
