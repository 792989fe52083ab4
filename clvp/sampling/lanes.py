"""What is known of every lane besides its keys and values. A lane is one candidate being decoded.

Shapes: B lanes, V vocabulary, T tokens at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clvp.sampling.decode_weights import DecoderWeights
from clvp.sampling.filters import NO_NUMBERS, choose_tokens, forbid_early_stop, penalize, without_maximum
from clvp.sampling.noise import uniform
from clvp.sampling.params import MelPositions, SamplingParams
from clvp.sampling.prefill import Prefix


@dataclass(frozen=True)
class LaneOwner:
    """Whose candidate a lane decodes: the row's number, and the candidate's index."""

    row: int
    candidate: int


@dataclass(frozen=True)
class FinishedLane:
    """A candidate that is done."""

    owner: LaneOwner
    tokens: Tensor  # [T] int64 on the CPU, without the stop token
    finished: bool  # False: it ran into the length limit


@dataclass(frozen=True)
class Admission:
    """Candidates of one row that start together."""

    prefix: Prefix
    owners: Sequence[LaneOwner]
    keys_N: Tensor  # [N] int64, the candidates' random keys


def next_tokens(
    logits_BV: Tensor,
    history_BT: Tensor,
    steps_B: Tensor,
    keys_B: Tensor,
    weights: DecoderWeights,
    params: SamplingParams,
) -> Tensor:
    """Draws each lane's next token, int64 [B], from float32 logits, which are changed."""
    if params.repetition_penalty != 1:
        logits_BV = penalize(logits_BV, history_BT, params.repetition_penalty)
    if params.min_new_tokens:
        logits_BV = forbid_early_stop(logits_BV, steps_B, weights.stop_token, params.min_new_tokens)
    return choose_tokens(logits_BV, uniform(keys_B, steps_B), params)


def positions_of(steps: Tensor, mel_positions: MelPositions) -> Tensor:
    """Mel positions of the tokens at `steps`: 0, 1, 2 ... as they are, or 0, 2, 3 ... of "skip_one"."""
    return steps + (steps > 0) if mel_positions == "skip_one" else steps


def finished_lane(owner: LaneOwner, history_T: Tensor, before: int, steps: int, stop: int) -> FinishedLane:
    """The result of a lane that has drawn `steps` tokens, which follow the first `before` of its history."""
    drawn = history_T[before : before + steps].to("cpu", copy=True)
    finished = int(drawn[-1]) == stop
    return FinishedLane(owner, drawn[:-1] if finished else drawn, finished)


class LaneTable:
    """Last token, step, random key and history of the lanes, in the lanes' order.

    A lane's history is the start token, `params.penalized_tokens`, and the tokens drawn; the rest is filled
    with the start token.
    """

    def __init__(self, weights: DecoderWeights, params: SamplingParams) -> None:
        self.weights = weights
        self.params = params
        self.owners: list[LaneOwner] = []
        self.before = (weights.start_token, *params.penalized_tokens)
        self.tokens_B = self.steps_B = self.keys_B = torch.empty(0, dtype=torch.int64, device=weights.device)
        self.history_BT = self.tokens_B.new_empty(0, len(self.before) + params.max_new_tokens)

    def __len__(self) -> int:
        return len(self.owners)

    def append(self, owners: Sequence[LaneOwner], keys_N: Tensor) -> None:
        """New lanes at the end, about to decode their first token from the start token."""
        new, device = len(owners), self.weights.device
        self.owners.extend(owners)
        history = self.history_BT.new_full((new, self.history_BT.shape[1]), self.weights.start_token)
        history[:, : len(self.before)] = history.new_tensor(self.before)
        start = torch.full((new,), self.weights.start_token, device=device)
        self.tokens_B = torch.cat([self.tokens_B, start])
        self.steps_B = torch.cat([self.steps_B, torch.zeros_like(start)])
        self.keys_B = torch.cat([self.keys_B, keys_N.to(device)])
        self.history_BT = torch.cat([self.history_BT, history])

    def keep(self, order: Sequence[int]) -> None:
        """Keeps the lanes `order`, in that order."""
        self.owners = [self.owners[lane] for lane in order]
        order_B = torch.tensor(order, dtype=torch.int64, device=self.weights.device)
        self.tokens_B, self.steps_B, self.keys_B, self.history_BT = (
            x[order_B] for x in (self.tokens_B, self.steps_B, self.keys_B, self.history_BT)
        )

    def inputs(self) -> Tensor:
        """Embedded last tokens at their mel positions: [B, D]."""
        weights, positions_B = self.weights, positions_of(self.steps_B, self.params.mel_positions)
        return weights.token_embedding_VD[self.tokens_B] + weights.position_embedding_LD[positions_B]

    def draw(self, logits_BV: Tensor) -> list[int]:
        """Draws the next token of each lane from float32 logits; gives the lanes that are done now.

        Raises ValueError for logits that are NaN or infinite.
        """
        if bool(without_maximum(logits_BV).any()):
            raise ValueError(NO_NUMBERS)
        self.tokens_B = next_tokens(
            logits_BV, self.history_BT, self.steps_B, self.keys_B, self.weights, self.params
        )
        self.history_BT.scatter_(1, len(self.before) + self.steps_B[:, None], self.tokens_B[:, None])
        self.steps_B = self.steps_B + 1
        done_B = (self.tokens_B == self.weights.stop_token) | (self.steps_B == self.params.max_new_tokens)
        return done_B.nonzero().flatten().tolist()

    def collect(self, lane: int) -> FinishedLane:
        """The result of a lane that is done."""
        steps, stop = int(self.steps_B[lane]), self.weights.stop_token
        return finished_lane(self.owners[lane], self.history_BT[lane], len(self.before), steps, stop)
