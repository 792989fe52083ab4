"""Lanes that started at the same step: their keys and values, and attention over them.

A lane is one candidate being decoded. The lanes of a cohort have drawn equally many tokens, so their suffixes
lie in one compact block that is read exactly as far as it is filled; the prefixes lie beside it, once per
row. The block grows by `GROWTH` positions at a time and is cut down to the lanes that still live.

Every product has a shape that follows from the row alone: [1, N] x [N, T] per lane for the suffix, and for
the prefix [M, N] x [N, P] per row with M a width of `Products` (see `invariance`). That is what makes a
lane's numbers independent of its neighbours.

Shapes: B lanes, R rows, M padded lanes per row, P padded prefix length, T suffix length, H heads, N head
dimensions, D = H·N.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clvp.sampling.decode_weights import DecoderWeights, Products
from clvp.sampling.memory import give_back_freed
from clvp.sampling.prefill import Prefix

GROWTH = 64


class _PrefixStack:
    """The prefixes of a cohort's rows, and where each lane's query goes among them. E = R·H."""

    def __init__(self, prefixes: Sequence[Prefix], lanes: Sequence[int], products: Products) -> None:
        self.heads, self.padded, _ = prefixes[0].keys[0].shape
        self.members = products.padded(max(lanes))  # M
        device = prefixes[0].keys[0].device
        lengths_R1 = torch.tensor([prefix.length for prefix in prefixes], device=device)[:, None]
        beyond_RP = torch.arange(self.padded, device=device) >= lengths_R1
        # 0, or −inf where the prefix is padding.
        self.padding_RP = torch.zeros(beyond_RP.shape, device=device).masked_fill(beyond_RP, -torch.inf)
        self.keys = [torch.cat(layer) for layer in zip(*(p.keys for p in prefixes), strict=True)]  # [E, P, N]
        self.values = [torch.cat(layer) for layer in zip(*(p.values for p in prefixes), strict=True)]
        slots = [row * self.members + place for row, count in enumerate(lanes) for place in range(count)]
        # Every place of every row is taken, in order: nothing needs to be gathered.
        self.full = slots == list(range(len(prefixes) * self.members))
        self._place_lanes(torch.tensor(slots, device=device))

    def _place_lanes(self, slot_B: Tensor) -> None:
        self.slot_B = slot_B  # row · M + place among the row's lanes
        self.padding_B1P = self.padding_RP[slot_B // self.members][:, None]

    @property
    def rows(self) -> int:
        return self.padding_RP.shape[0]

    def keep(self, order_B: Tensor) -> None:
        """Keeps the lanes `order_B` of the present ones, in that order."""
        self.full = False
        self._place_lanes(self.slot_B[order_B])

    def drop_empty_rows(self) -> None:
        row_B, place_B = self.slot_B // self.members, self.slot_B % self.members
        rows_R, new_row_B = row_B.unique(return_inverse=True)
        if len(rows_R) < self.rows:

            def kept(blocks: list[Tensor]) -> list[Tensor]:
                return [block.unflatten(0, (-1, self.heads))[rows_R].flatten(0, 1) for block in blocks]

            self.keys, self.values = kept(self.keys), kept(self.values)
            self.padding_RP = self.padding_RP[rows_R]
            self._place_lanes(new_row_B * self.members + place_B)

    def by_row(self, x_BHX: Tensor) -> Tensor:
        """[B, H, X] -> [E, M, X], zero where a row has no lane."""
        if not self.full:
            padded = x_BHX.new_zeros(self.rows * self.members, *x_BHX.shape[1:])
            x_BHX = padded.index_copy_(0, self.slot_B, x_BHX)
        return x_BHX.unflatten(0, (self.rows, self.members)).transpose(1, 2).flatten(0, 1)

    def by_lane(self, x_EMX: Tensor) -> Tensor:
        """[E, M, X] -> [B, H, X]; the inverse of `by_row`."""
        x_SHX = x_EMX.unflatten(0, (self.rows, -1)).transpose(1, 2).flatten(0, 1)  # S = R·M
        return x_SHX if self.full else x_SHX[self.slot_B]

    def scores(self, layer: int, q_BHN: Tensor) -> Tensor:
        """[B, H, P]"""
        scores_EMP = torch.bmm(self.by_row(q_BHN), self.keys[layer].transpose(1, 2))
        return self.by_lane(scores_EMP) + self.padding_B1P

    def read(self, layer: int, weights_BHP: Tensor) -> Tensor:
        """[B, H, N]"""
        return self.by_lane(torch.bmm(self.by_row(weights_BHP), self.values[layer]))


class Cohort:
    """Keys and values of lanes in lockstep. The order of the lanes is that of the block's first dimension."""

    def __init__(
        self, weights: DecoderWeights, prefixes: Sequence[Prefix], lanes: Sequence[int], max_tokens: int
    ) -> None:
        """`lanes[r]` lanes of at most `max_tokens` tokens for row r; the prefixes have one padded length.

        No row has more lanes than the widest product.
        """
        assert weights.products is not None
        self.weights = weights
        self.max_tokens = max_tokens
        self.size = sum(lanes)
        self.length = 0  # tokens in the suffix
        self.prefix = _PrefixStack(prefixes, lanes, weights.products)
        shape = (self.size, weights.heads, min(GROWTH, max_tokens), weights.width // weights.heads)

        def blocks() -> list[Tensor]:  # [capacity, H, room, N] each
            return [torch.empty(shape, dtype=weights.dtype, device=weights.device) for _ in weights.layers]

        self.keys, self.values = blocks(), blocks()

    @property
    def capacity(self) -> int:
        """Lanes for which the block has memory."""
        return self.keys[0].shape[0]

    @property
    def reserved_bytes(self) -> int:
        """The most that this cohort may come to hold, at its present capacity."""
        per_token = self.weights.kv_bytes_per_token
        return per_token * (self.capacity * self.max_tokens + self.prefix.rows * self.prefix.padded)

    def keep(self, order: Sequence[int]) -> None:
        """Keeps the lanes `order`; a lane may move only into the place of one that goes.

        When half of the block is empty its memory is given back.
        """
        for place, lane in enumerate(order):
            if place != lane:
                for block in (*self.keys, *self.values):
                    block[place, :, : self.length] = block[lane, :, : self.length]
        self.size = len(order)
        self.prefix.keep(torch.tensor(order, device=self.weights.device))
        if self.size <= self.capacity // 2:
            self._rebuild(self.keys[0].shape[2])

    def begin_step(self) -> None:
        """Makes room for one more position."""
        room = self.keys[0].shape[2]
        if self.length == room:
            self._rebuild(min(room + GROWTH, self.max_tokens))
        self.length += 1

    def _rebuild(self, room: int) -> None:
        """Moves the live lanes into blocks of `room` positions, one layer after the other."""
        for blocks in (self.keys, self.values):
            for layer, block in enumerate(blocks):
                moved = block.new_empty(self.size, block.shape[1], room, block.shape[3])
                moved[:, :, : self.length] = block[: self.size, :, : self.length]
                blocks[layer] = moved
        self.prefix.drop_empty_rows()
        give_back_freed(self.weights.device)

    def attend(self, layer: int, q_BD: Tensor, k_BD: Tensor, v_BD: Tensor) -> Tensor:
        """[B, D]: attention of the newest position, whose key and value are taken in, over all of them."""
        lanes, heads, length = self.size, self.weights.heads, self.length
        q_BHN, k_BHN, v_BHN = (x.unflatten(1, (heads, -1)) for x in (q_BD, k_BD, v_BD))
        keys, values = self.keys[layer][:lanes], self.values[layer][:lanes]
        keys[:, :, length - 1], values[:, :, length - 1] = k_BHN, v_BHN
        keys_ETN = keys.flatten(0, 1)[:, :length]  # E = B·H
        values_ETN = values.flatten(0, 1)[:, :length]
        suffix_E1T = torch.bmm(q_BHN.reshape(lanes * heads, 1, -1), keys_ETN.transpose(1, 2))
        prefix_BHP = self.prefix.scores(layer, q_BHN)
        scores_BHS = torch.cat([prefix_BHP, suffix_E1T.view(lanes, heads, length)], dim=-1)
        weights_BHS = scores_BHS.softmax(-1, dtype=torch.float32).to(values.dtype)
        weights_BHP, weights_BHT = weights_BHS.split([self.prefix.padded, length], dim=-1)
        read_E1N = torch.bmm(weights_BHT.reshape(lanes * heads, 1, length), values_ETN)
        return (read_E1N.view(lanes, heads, -1) + self.prefix.read(layer, weights_BHP)).flatten(1)
