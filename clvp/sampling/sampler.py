"""Candidate sampling: embedded prompts in, speech tokens out. Knows nothing of text, audio or clusters.

Rows are prefilled once each; their candidates are decoded in *lanes*, all lanes one token a step. A
candidate that is done makes room for the next one at once, whichever row that belongs to. Memory is
reserved before a candidate is admitted, so any number of rows and candidates runs within the budget.
"""

import platform
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import DecoderWeights, DecoderWithHead, arrange_weights
from clvp.sampling.gpu_decoder import StaticDecoder
from clvp.sampling.invariance import find_arithmetic
from clvp.sampling.lanes import Admission, LaneOwner
from clvp.sampling.memory import default_budget
from clvp.sampling.noise import candidate_keys
from clvp.sampling.params import Candidate, EngineConfig, PromptRow, SamplingParams
from clvp.sampling.prefill import Prefix, prefill

DEFAULT_LANES = {"cpu": 64, "cuda": 256}


@dataclass
class _PendingRow:
    """A row of which candidates still wait for a lane."""

    index: int  # place in the input
    row: PromptRow
    waiting: deque[int]  # candidate indices
    prefix: Prefix | None = None


@dataclass
class SamplingStats:
    """Counts of one `sample_iter`, for reports."""

    tokens: int = 0  # drawn and kept, stop tokens not counted
    steps: int = 0
    lane_steps: int = 0  # lanes × steps, padding included: the work done
    prefills: int = 0


class CandidateSampler:
    """Samples candidates with one model on one device.

    The tokens of a row depend on its prompt, its id, the candidate index, `SamplingParams` and `facts()`;
    not on the rows beside it, their order, or the lanes and memory there are. Tests hold it to that, bit
    for bit.

    The weights are copied; later changes of the model's parameters are not seen.
    """

    def __init__(self, model: DecoderWithHead, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        device = model.lm_head.weight.device.type
        self.lanes = self.config.lanes or DEFAULT_LANES.get(device, 64)
        on_gpu = device == "cuda"
        self.arithmetic = None if on_gpu else find_arithmetic(model, self.config.products)
        self.weights = arrange_weights(model, self.arithmetic.products if self.arithmetic else None)
        self.stats = SamplingStats()

    def facts(self) -> dict[str, str | int]:
        """What the bit-for-bit promise depends on, apart from the model's weights and `SamplingParams`."""
        device = self.weights.device
        cpu = torch.backends.cpu.get_cpu_capability()
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {cpu}",
            "dtype": str(self.weights.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **(self.arithmetic.facts() if self.arithmetic else {"products": "torch", "quantum": self.lanes}),
        }

    def sample(self, rows: Iterable[PromptRow], params: SamplingParams) -> list[list[Candidate]]:
        """The candidates of every row, in the order of `rows` and of each row's `candidates`.

        Raises:
            ValueError: a prompt is malformed, or `max_new_tokens` exceeds the model's mel positions.
            MemoryBudgetError: the budget cannot hold one candidate.
        """
        results = dict(self.sample_iter(rows, params))
        return [results[index] for index in range(len(results))]

    def sample_iter(
        self, rows: Iterable[PromptRow], params: SamplingParams
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """(place of the row in `rows`, its candidates), rows as they become complete.

        `rows` is read lazily: only as far as there are lanes to fill. Raises as `sample` does.
        """
        self._check_length(params)
        run = _Run(self, params, rows)
        yield from run.results()

    def new_decoder(self, params: SamplingParams) -> CohortDecoder | StaticDecoder:
        """The decoder for this device, with no lane in use."""
        device = self.weights.device
        budget = self.config.kv_budget_bytes or default_budget(device)
        if device.type == "cuda":
            from clvp.sampling.gpu_attention import attend  # Triton is there only beside CUDA

            return StaticDecoder(self.weights, params, self.lanes, budget, attend)
        return CohortDecoder(self.weights, params, self.lanes, budget)

    def _check_length(self, params: SamplingParams) -> None:
        positions = self.weights.position_embedding_LD.shape[0] - (params.mel_positions == "skip_one")
        if params.max_new_tokens > positions:
            raise ValueError(
                f"max_new_tokens={params.max_new_tokens} exceeds the model's {positions} mel positions"
            )


class _Run:
    """One call of `sample_iter`: the queue of waiting candidates, the lanes, and the rows under way."""

    def __init__(self, sampler: CandidateSampler, params: SamplingParams, rows: Iterable[PromptRow]) -> None:
        self.sampler = sampler
        self.params = params
        self.source = enumerate(rows)
        self.pending: deque[_PendingRow] = deque()
        self.decoder = sampler.new_decoder(params)
        self.rows: dict[int, PromptRow] = {}
        self.done: dict[int, dict[int, Candidate]] = {}

    def results(self) -> Iterator[tuple[int, list[Candidate]]]:
        """Runs until no candidate waits and no lane is in use."""
        stats = self.sampler.stats = SamplingStats()
        while True:
            yield from self._admit()
            if not self.decoder.live:
                return
            for lane in self.decoder.step():
                stats.tokens += len(lane.tokens)
                row = self.rows[lane.owner.row]
                result = Candidate(row.row_id, lane.owner.candidate, lane.tokens, lane.finished)
                self.done[lane.owner.row][lane.owner.candidate] = result
                if len(self.done[lane.owner.row]) == len(row.candidates):
                    yield self._complete(lane.owner.row)
            stats.steps += 1
            stats.lane_steps = self.decoder.width_steps

    def _complete(self, index: int) -> tuple[int, list[Candidate]]:
        row, done = self.rows.pop(index), self.done.pop(index)
        return index, [done[candidate] for candidate in row.candidates]

    def _next_pending(self) -> _PendingRow | None:
        """The row whose candidates are next, read from the input where none waits."""
        if not self.pending:
            for index, row in self.source:
                _check_prompt(row, self.sampler.weights)
                self.rows[index], self.done[index] = row, {}
                self.pending.append(_PendingRow(index, row, deque(row.candidates)))
                break
        return self.pending[0] if self.pending else None

    def _admit(self) -> Iterator[tuple[int, list[Candidate]]]:
        """Fills free lanes, once enough are free. Yields the rows that want no candidate."""
        if not self.decoder.has_room and self.decoder.live:
            return
        admissions: list[Admission] = []
        while (pending := self._next_pending()) is not None:
            if not pending.waiting:
                self.pending.popleft()
                yield self._complete(pending.index)
                continue
            count = self.decoder.reserve(pending.row.prefix_PD.shape[0], len(pending.waiting))
            if not count:
                break
            admissions.append(self._start(pending, count))
        if admissions:
            self.decoder.admit(admissions)

    def _start(self, pending: _PendingRow, count: int) -> Admission:
        """Takes `count` waiting candidates of a row, which is prefilled the first time."""
        if pending.prefix is None:
            pending.prefix = prefill(self.sampler.weights, pending.row.prefix_PD)
            self.sampler.stats.prefills += 1
        taken = [pending.waiting.popleft() for _ in range(count)]
        if not pending.waiting:
            self.pending.popleft()
        keys_N = candidate_keys(self.params.seed, pending.row.row_id, taken)
        return Admission(pending.prefix, [LaneOwner(pending.index, c) for c in taken], keys_N)


def _check_prompt(row: PromptRow, weights: DecoderWeights) -> None:
    """Raises ValueError, naming the row, where a prompt cannot be decoded."""
    shape, longest = tuple(row.prefix_PD.shape), weights.max_prefix
    if len(shape) != 2 or not 1 <= shape[0] <= longest or shape[1] != weights.width:
        raise ValueError(f"row {row.row_id!r}: prefix of shape {shape}, not [1…{longest}, {weights.width}]")
    if not bool(torch.isfinite(row.prefix_PD).all()):
        raise ValueError(f"row {row.row_id!r}: its prefix holds values that are not finite")
    if len(set(row.candidates)) != len(row.candidates) or min(row.candidates, default=0) < 0:
        raise ValueError(f"row {row.row_id!r}: candidate indices must be distinct and not negative")
