"""Candidate sampling: embedded prompts in, speech tokens out. Knows nothing of text, audio or clusters.

The candidates of all rows are decoded in *lanes* (`engine`), all lanes one token a step. A candidate that is
done makes room for the next one at once, whichever row that belongs to.
"""

import logging
import platform
from collections.abc import Iterable, Iterator

import torch

from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import DecoderWithHead, arrange_weights
from clvp.sampling.engine import Decoder, Engine, Result, SamplingStats
from clvp.sampling.gpu_decoder import StaticDecoder
from clvp.sampling.invariance import Arithmetic, find_arithmetic
from clvp.sampling.memory import default_budget
from clvp.sampling.params import DEFAULT_LANES, Candidate, EngineConfig, PromptRow, SamplingParams
from clvp.sampling.prefill import StaticPrefill

logger = logging.getLogger(__name__)


class CandidateSampler:
    """Samples candidates with one model on one device.

    The tokens of a row depend on its prompt, its id, the candidate index, `SamplingParams` and `facts()`;
    not on the rows beside it, their order, or the lanes and memory there are: they are the same bit for bit.

    The weights are copied; later changes of the model's parameters are not seen. `arithmetic` is what
    `find_arithmetic` has found where `deciding` was the same.
    """

    def __init__(
        self,
        model: DecoderWithHead,
        config: EngineConfig | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        device = model.lm_head.weight.device.type
        self.lanes = self.config.lanes or DEFAULT_LANES.get(device, 64)
        on_gpu = device == "cuda"
        self.arithmetic = None if on_gpu else arithmetic or find_arithmetic(model, self.config.products)
        if self.arithmetic and self.arithmetic.digest is None:
            logger.warning(
                "no width of a matrix product gives a row the same bits in any company here; tokens may "
                "depend on neighbours and threads. Import clvp before anything computes with torch"
            )
        self.weights = arrange_weights(model, self.arithmetic.products if self.arithmetic else None)
        self.prefill = StaticPrefill(self.weights) if on_gpu else None  # keeps its graphs
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

        Raises ValueError for a malformed prompt, and for more `max_new_tokens` than the model has mel
        positions; MemoryBudgetError where the budget cannot hold one candidate.
        """
        results = dict(self.sample_iter(rows, params))
        return [results[index] for index in range(len(results))]

    def sample_iter(
        self, rows: Iterable[PromptRow], params: SamplingParams
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """(place of the row in `rows`, its candidates), rows as they become complete.

        `rows` is read lazily: as many candidates ahead as there are lanes. Raises as `sample` does.
        """
        engine = self.engine(params)
        self.stats = engine.stats
        source = enumerate(rows)
        places: dict[Result, int] = {}  # of the rows under way
        while True:
            while engine.wants_more and (item := next(source, None)):
                places[engine.begin(item[1])] = item[0]
            if not places:
                return
            engine.step()
            for result in [result for result in places if result.done()]:
                yield places.pop(result), result.result()

    def engine(self, params: SamplingParams) -> Engine:
        """One to submit rows to, at any time. Raises ValueError where `max_new_tokens` is too large."""
        positions = self.weights.position_embedding_LD.shape[0] - (params.mel_positions == "skip_one")
        if params.max_new_tokens > positions:
            raise ValueError(
                f"max_new_tokens={params.max_new_tokens} exceeds the model's {positions} mel positions"
            )
        return Engine(self.weights, params, self.lanes, lambda: self.new_decoder(params))

    def new_decoder(self, params: SamplingParams) -> Decoder:
        """The decoder for this device, with no lane in use."""
        device = self.weights.device
        budget = self.config.kv_budget_bytes or default_budget(device)
        if self.prefill is not None:
            from clvp.sampling.gpu_attention import attend  # Triton is there only beside CUDA

            return StaticDecoder(self.weights, params, self.lanes, budget, attend, self.prefill)
        return CohortDecoder(self.weights, params, self.lanes, budget)
