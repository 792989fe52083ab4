"""The decoding loop's body for GPUs: lanes at fixed addresses, one CUDA graph for a whole step.

The graph holds everything from the embedding of the last tokens to the draw of the next. The host replays
it several times before it looks which lanes are done; those idle meanwhile. Every product has the shape of
all lanes, whoever is in them, so a lane's numbers do not depend on its neighbours.

Shapes: W lanes, R prefix slots, H heads, P prefix room, S suffix room, N head dimensions, D width,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from weakref import ref

import torch
from torch import Tensor

from clvp.cuda_graph import recorded
from clvp.sampling.decode_weights import DecoderWeights, decoder_logits
from clvp.sampling.filters import NO_NUMBERS, without_maximum
from clvp.sampling.lanes import Admission, FinishedLane, LaneOwner, finished_lane, next_tokens, positions_of
from clvp.sampling.memory import budget_error
from clvp.sampling.params import SamplingParams
from clvp.sampling.prefill import Prefix, StaticPrefill, padded_length

Attend = Callable[..., Tensor]  # the signature of `gpu_attention.attend`

STEPS_PER_LOOK = 8


class StaticDecoder:
    """Lanes in decoding. `reserve` and `admit` add some, `step` draws tokens and gives the lanes done."""

    def __init__(
        self,
        weights: DecoderWeights,
        params: SamplingParams,
        lanes: int,
        budget: int,
        attend: Attend,
        prefill: StaticPrefill,
    ) -> None:
        """At most `lanes` lanes, fewer if `budget` bytes for keys and values do not hold them.

        All but keys and values always have `lanes` rows, so the tokens do not depend on the budget.
        """
        self.weights, self.params, self.attend, self.prefill = weights, params, attend, prefill
        self.width = lanes
        prefix_room, suffix_room = padded_length(weights.max_prefix), params.max_new_tokens
        self.lanes, self.slots = plan(weights, lanes, budget, prefix_room, suffix_room)
        layers, heads = len(weights.layers), weights.heads
        head_dim = weights.width // heads

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=weights.device)

        kv = weights.dtype
        self.prefix_keys = zeros(layers, self.slots, heads, prefix_room, head_dim, dtype=kv)
        self.prefix_values = torch.zeros_like(self.prefix_keys)
        self.suffix_keys = zeros(layers, self.lanes, heads, suffix_room, head_dim, dtype=kv)
        self.suffix_values = torch.zeros_like(self.suffix_keys)
        self.slot_W, self.prefix_length_W = zeros(lanes), zeros(lanes)
        self.token_W, self.step_W, self.key_W = zeros(lanes), zeros(lanes), zeros(lanes)
        self.active_W = zeros(lanes, dtype=torch.bool)
        self.broken_1 = zeros(1, dtype=torch.bool)  # whether a lane ever had logits to draw no token from
        self.before = (weights.start_token, *params.penalized_tokens)
        self.history_WT = zeros(lanes, len(self.before) + params.max_new_tokens)

        self.owners: list[LaneOwner | None] = [None] * self.lanes
        self.lane_slot: list[int] = [-1] * self.lanes
        # Whose copy a slot holds. The prefix itself, beyond the budget, lives as long as its row has waiting.
        self.slot_prefix: list[ref[Prefix] | None] = [None] * self.slots
        self.promised_lanes = self.promised_slots = 0
        self.width_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def live(self) -> int:
        """Lanes in use."""
        return sum(owner is not None for owner in self.owners)

    @property
    def has_room(self) -> bool:
        """Whether a lane is free."""
        return self.live < self.lanes

    def reserve(self, prefix_positions: int, wanted: int) -> int:
        """How many of `wanted` candidates of one row can be admitted now; they are promised room."""
        free_slots = self.slot_prefix.count(None) - self.promised_slots
        granted = min(wanted, self.lanes - self.live - self.promised_lanes) if free_slots > 0 else 0
        if granted > 0:
            self.promised_lanes += granted
            self.promised_slots += 1
        return max(granted, 0)

    @torch.inference_mode()
    def admit(self, admissions: Sequence[Admission]) -> None:
        """New lanes in the places that are free."""
        self.promised_lanes = self.promised_slots = 0
        free = [lane for lane, owner in enumerate(self.owners) if owner is None]
        for admission in admissions:
            slot = self._place(admission.prefix)
            lanes = [free.pop(0) for _ in admission.owners]
            for lane, owner in zip(lanes, admission.owners, strict=True):
                self.owners[lane], self.lane_slot[lane] = owner, slot
            index = torch.tensor(lanes, device=self.weights.device)
            self.slot_W[index] = slot
            self.prefix_length_W[index] = admission.prefix.length
            self.token_W[index] = self.weights.start_token
            self.step_W[index] = 0
            self.key_W[index] = admission.keys_N.to(self.weights.device)
            self.history_WT[index] = self.weights.start_token
            self.history_WT[index, : len(self.before)] = self.history_WT.new_tensor(self.before)
            self.active_W[index] = True

    def _place(self, prefix: Prefix) -> int:
        """The slot that holds the prefix, copied there if it is in none."""
        for slot, held in enumerate(self.slot_prefix):
            if held is not None and held() is prefix:
                return slot
        slot = self.slot_prefix.index(None)
        self.slot_prefix[slot] = ref(prefix)
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self.prefix_keys[layer, slot, :, : prefix.padded] = keys
            self.prefix_values[layer, slot, :, : prefix.padded] = values
        return slot

    @torch.inference_mode()
    def step(self) -> list[FinishedLane]:
        """`STEPS_PER_LOOK` tokens for every lane that is not done earlier; the lanes that are done leave.

        Raises ValueError for logits that are NaN or infinite.
        """
        for _ in range(STEPS_PER_LOOK):
            self._replay()
        self.width_steps += STEPS_PER_LOOK * self.width
        broken, *active = torch.cat((self.broken_1, self.active_W)).tolist()  # the only wait
        if broken:
            raise ValueError(NO_NUMBERS)
        lanes = enumerate(self.owners)
        return [self._collect(lane, owner) for lane, owner in lanes if owner is not None and not active[lane]]

    def _collect(self, lane: int, owner: LaneOwner) -> FinishedLane:
        slot = self.lane_slot[lane]
        self.owners[lane], self.lane_slot[lane] = None, -1
        if slot not in self.lane_slot:
            self.slot_prefix[slot] = None
        steps, stop = int(self.step_W[lane]), self.weights.stop_token
        return finished_lane(owner, self.history_WT[lane], len(self.before), steps, stop)

    def _replay(self) -> None:
        if self.weights.device.type != "cuda":
            self._next_step()
            return
        if self.graph is None:
            state = (self.token_W, self.step_W, self.active_W, self.history_WT)
            self.graph = recorded(self._next_step, state)
        self.graph.replay()

    def _next_step(self) -> None:
        self._draw(self._logits())

    def _logits(self) -> Tensor:
        weights, position_W = self.weights, positions_of(self.step_W, self.params.mel_positions)
        last = weights.position_embedding_LD.shape[0] - 1  # where lanes that are done may point
        x_WD = weights.token_embedding_VD[self.token_W]
        x_WD = x_WD + weights.position_embedding_LD[position_W.clamp(max=last)]

        blocks = (self.prefix_keys, self.prefix_values, self.suffix_keys, self.suffix_values)
        lanes = (self.slot_W, self.prefix_length_W, self.step_W, self.active_W)

        def attend(layer: int, qkv_WE: Tensor) -> Tensor:
            return self.attend(qkv_WE, *(block[layer] for block in blocks), *lanes)

        return decoder_logits(weights, x_WD, attend)

    def _draw(self, logits_WV: Tensor) -> None:
        """Draws the next tokens, in place; lanes that are not active keep their state."""
        params, active_W = self.params, self.active_W
        self.broken_1.logical_or_((without_maximum(logits_WV) & active_W).any())
        token_W = next_tokens(logits_WV, self.history_WT, self.step_W, self.key_W, self.weights, params)
        place_W1 = (len(self.before) + self.step_W[:, None]).clamp(max=self.history_WT.shape[1] - 1)
        kept_W1 = self.history_WT.gather(1, place_W1)
        self.history_WT.scatter_(1, place_W1, torch.where(active_W[:, None], token_W[:, None], kept_W1))
        self.token_W.copy_(torch.where(active_W, token_W, self.token_W))
        self.step_W.add_(active_W)
        done_W = (self.token_W == self.weights.stop_token) | (self.step_W == params.max_new_tokens)
        self.active_W.logical_and_(~done_W)


def plan(
    weights: DecoderWeights, lanes: int, budget: int, prefix_room: int, suffix_room: int
) -> tuple[int, int]:
    """(lanes, prefix slots) that the budget holds: a slot per lane if it can, else one per 2 … 16 lanes.

    Raises MemoryBudgetError where it does not hold one of each.
    """
    lane_bytes = weights.kv_bytes_per_token * suffix_room
    slot_bytes = weights.kv_bytes_per_token * prefix_room
    for lanes_per_slot in (1, 2, 4, 8, 16):
        if lanes * lane_bytes + -(-lanes // lanes_per_slot) * slot_bytes <= budget:
            return lanes, -(-lanes // lanes_per_slot)
    groups = budget // (16 * lane_bytes + slot_bytes)
    if groups:
        return 16 * groups, groups
    if budget < lane_bytes + slot_bytes:
        raise budget_error(budget, lane_bytes + slot_bytes, "any row")
    return (budget - slot_bytes) // lane_bytes, 1
