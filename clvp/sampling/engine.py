"""The loop that decodes rows in lanes, whenever they come and whoever waits for them.

Candidates of rows that come later take the lanes that earlier ones leave. Rows are prefilled once each.
All the memory that a candidate can come to need is reserved before it is admitted, so the budget holds,
whatever their number and their lengths.
"""

import atexit
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import DecoderWeights
from clvp.sampling.gpu_decoder import StaticDecoder
from clvp.sampling.lanes import Admission, FinishedLane, LaneOwner
from clvp.sampling.noise import candidate_keys
from clvp.sampling.params import Candidate, PromptRow, SamplingParams
from clvp.sampling.prefill import Prefix

Decoder = CohortDecoder | StaticDecoder
Result = Future[list[Candidate]]  # of a row, in the order of its candidates

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Row:
    """A row under way."""

    number: int
    prompt: PromptRow
    result: Result
    waiting: deque[int]  # candidates that have had no lane yet
    prefix: Prefix | None = None  # while candidates wait
    done: dict[int, Candidate] = field(default_factory=dict)


@dataclass
class SamplingStats:
    """Counts of one engine, for reports."""

    tokens: int = 0  # drawn and kept, stop tokens not counted
    steps: int = 0
    live_steps: int = 0  # lanes in use × steps
    lane_steps: int = 0  # lanes × steps, padding included: the work done
    prefills: int = 0


class Engine:
    """Decodes rows: those of `submit`, in any thread, after `start`; or those of `begin` by `step`.

    What concerns one row is that row's error. When all that are under way fail together, for lack of memory
    say, they are decoded again one by one, to the same tokens.
    """

    def __init__(
        self, weights: DecoderWeights, params: SamplingParams, lanes: int, new_decoder: Callable[[], Decoder]
    ) -> None:
        self.weights, self.params, self.lanes, self.new_decoder = weights, params, lanes, new_decoder
        self.stats = SamplingStats()
        self.inbox: SimpleQueue[tuple[Callable[[], PromptRow], Result]] = SimpleQueue()
        self.rows: dict[int, _Row] = {}  # under way, by number
        self.queue: deque[_Row] = deque()  # those of which candidates wait
        self.numbers = count()
        self.decoder: Decoder | None = None
        self.ended = False

    def submit(self, make: Callable[[], PromptRow]) -> Result:
        """A row for the engine's thread, which makes it in its turn; until then it can be cancelled."""
        result: Result = Future()
        self.inbox.put((make, result))
        return result

    def start(self) -> None:
        """Decodes what is submitted in a thread of its own, until the process ends."""
        thread = Thread(target=self._run, name="engine", daemon=True)
        thread.start()

        def end() -> None:  # a thread that Python ends in the middle of a product would abort the process
            self.ended = True
            thread.join()

        atexit.register(end)

    def _run(self) -> None:
        torch.get_num_threads()  # until it asks, a new thread computes with as many as OpenMP likes
        while not self.ended:
            while self.wants_more:
                try:
                    make, result = self.inbox.get(block=not self.rows, timeout=0.1)
                except Empty:
                    break
                if result.set_running_or_notify_cancel():
                    try:
                        self.begin(make(), result)
                    except Exception as error:
                        result.set_exception(error)
            self.step()

    @property
    def wants_more(self) -> bool:
        """Whether fewer candidates wait than there are lanes."""
        return sum(len(row.waiting) for row in self.queue) < self.lanes

    def begin(self, prompt: PromptRow, result: Result | None = None) -> Result:
        """Puts a row behind the others. Raises ValueError, naming it, where it cannot be decoded."""
        _check_prompt(prompt, self.weights)
        result = Future() if result is None else result
        if prompt.candidates:
            self._enqueue(prompt, result)
        else:
            result.set_result([])
        return result

    def _enqueue(self, prompt: PromptRow, result: Result) -> None:
        row = _Row(next(self.numbers), prompt, result, deque(prompt.candidates))
        self.rows[row.number] = row
        self.queue.append(row)

    def step(self) -> None:
        """Fills free lanes and draws each lane's next token (several on a GPU); errors go to the results."""
        try:
            finished = self._drawn() if self.rows else []
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold what has filled the memory
        else:
            for lane in finished:
                self._finish(lane)
            return
        self._decode_alone(failure)

    def _drawn(self) -> list[FinishedLane]:
        if self.decoder is None:
            self.decoder = self.new_decoder()
        if self.decoder.has_room:
            self._admit(self.decoder)
        self.stats.steps += 1
        self.stats.live_steps += self.decoder.live
        finished = self.decoder.step()
        self.stats.lane_steps = self.decoder.width_steps
        return finished

    def _admit(self, decoder: Decoder) -> None:
        admitted: list[tuple[_Row, list[int]]] = []
        while self.queue:
            row = self.queue[0]
            granted = decoder.reserve(row.prompt.prefix_PD.shape[0], len(row.waiting))
            if not granted:
                break
            admitted.append((row, [row.waiting.popleft() for _ in range(granted)]))
            if not row.waiting:
                self.queue.popleft()
        new = list(dict.fromkeys(row for row, _ in admitted if row.prefix is None))
        for row, prefix in zip(new, decoder.prefill([r.prompt.prefix_PD for r in new]), strict=True):
            row.prefix = prefix
        self.stats.prefills += len(new)
        admissions = []
        for row, taken in admitted:
            keys_N = candidate_keys(self.params.seed, row.prompt.row_id, taken)
            assert row.prefix is not None
            admissions.append(Admission(row.prefix, [LaneOwner(row.number, c) for c in taken], keys_N))
        for row, _ in admitted:
            if not row.waiting:
                row.prefix = None
        if admissions:
            decoder.admit(admissions)

    def _finish(self, lane: FinishedLane) -> None:
        """Takes in a candidate that is done."""
        row, candidate = self.rows[lane.owner.row], lane.owner.candidate
        row.done[candidate] = Candidate(row.prompt.row_id, candidate, lane.tokens, lane.finished)
        self.stats.tokens += len(lane.tokens)
        if len(row.done) == len(row.prompt.candidates):
            del self.rows[row.number]
            row.result.set_result([row.done[index] for index in row.prompt.candidates])

    def _decode_alone(self, error: Exception) -> None:
        """After an error of all rows under way: decodes each by itself, or fails the only one."""
        rows, self.rows, self.decoder = list(self.rows.values()), {}, None
        self.queue.clear()
        if len(rows) == 1:
            rows[0].result.set_exception(error)
            return
        logger.warning("%d rows failed together (%s): they are decoded one by one", len(rows), error)
        for row in rows:
            alone = Engine(self.weights, self.params, self.lanes, self.new_decoder)
            alone._enqueue(row.prompt, row.result)
            while alone.rows and not self.ended:
                alone.step()


def _check_prompt(row: PromptRow, weights: DecoderWeights) -> None:
    """Raises ValueError, naming the row, where a prompt cannot be decoded."""
    shape, longest = tuple(row.prefix_PD.shape), weights.max_prefix
    if len(shape) != 2 or not 1 <= shape[0] <= longest or shape[1] != weights.width:
        raise ValueError(f"row {row.row_id!r}: prefix of shape {shape}, not [1…{longest}, {weights.width}]")
    if not bool(torch.isfinite(row.prefix_PD).all()):
        raise ValueError(f"row {row.row_id!r}: its prefix holds values that are not finite")
    if len(set(row.candidates)) != len(row.candidates) or min(row.candidates, default=0) < 0:
        raise ValueError(f"row {row.row_id!r}: candidate indices must be distinct and not negative")
