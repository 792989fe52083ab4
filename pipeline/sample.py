"""Stage 4, `sample`: text tokens and log-mels to candidate speech tokens.

One conditioning latent is computed per voice and kept; all candidates of all rows of a block go through the
sampling engine together. A row that fails takes no other row with it.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import torch

from clvp import ClvpConditioningEncoder, ClvpForCausalLM
from clvp.sampling import Candidate, CandidateSampler, EngineConfig, PromptRow
from pipeline.audio import VOICE, VOICE_KEY, voice_mels
from pipeline.columns import (
    ID,
    INPUT_IDS,
    SOURCE,
    TEXT,
    good_rows,
    offsets_of,
    replace_columns,
    require_columns,
    token_lists,
)
from pipeline.device import pick_device
from pipeline.errors import ERROR, error_array, error_record, is_fatal
from pipeline.payloads import SAMPLED_TYPE, SPEECH_IDS
from pipeline.settings import ResultSettings

# The time that the row's block took in this stage, divided by its rows.
SAMPLE_SECONDS = pa.field("sample_seconds", pa.float32())

INPUT = pa.schema([ID, TEXT, INPUT_IDS, VOICE_KEY, VOICE, SOURCE, ERROR])
OUTPUT = pa.schema([ID, TEXT, INPUT_IDS, SPEECH_IDS, SAMPLE_SECONDS, SOURCE, ERROR])

logger = logging.getLogger(__name__)


class Sampler:
    """Callable on a block; holds the conditioning encoder and the speech decoder.

    `model` is a checkpoint folder or hub id. Runs on the GPU it is given, else with `torch_threads` threads.
    """

    def __init__(
        self,
        model: str,
        settings: ResultSettings,
        engine: EngineConfig | None = None,
        voices_cached: int = 4096,
        torch_threads: int | None = None,
    ) -> None:
        self.settings = settings
        device = pick_device(torch_threads)
        dtype = settings.model.dtype
        self.encoder = ClvpConditioningEncoder.from_pretrained(model, dtype=dtype, device=device)
        decoder = ClvpForCausalLM.from_pretrained(model, dtype=dtype, device=device)
        self.sampler = CandidateSampler(decoder, engine)  # has its own copy of the weights
        self.latents = _LatestUsed(voices_cached)

    @torch.inference_mode()
    def __call__(self, table: pa.Table) -> pa.Table:
        require_columns(table, INPUT)
        started = time.perf_counter()
        errors = table["error"].to_pylist()
        prompts: dict[int, PromptRow] = {}
        for i in good_rows(table):
            try:
                prompts[i] = self._prompt(table, i)
            except Exception as error:
                _raise_if_fatal(error)
                errors[i] = error_record("sample", error)
        sampled = self._sample(prompts, errors)
        seconds = (time.perf_counter() - started) / max(len(table), 1)
        return replace_columns(
            table,
            OUTPUT,
            {
                "speech_ids": _candidate_column([sampled.get(i) for i in range(len(table))]),
                "sample_seconds": pa.array([seconds] * len(table), pa.float32()),
                "error": error_array(errors),
            },
        )

    def _prompt(self, table: pa.Table, i: int) -> PromptRow:
        key = table["voice_key"][i].as_py()
        latent_D = self.latents.get(key)
        if latent_D is None:
            mels = voice_mels(table["voice"][i].as_py(), self.settings.audio_seconds)
            latent_D = self.encoder.average_clips(mels)
            self.latents.put(key, latent_D)
        input_ids_N = torch.tensor(table["input_ids"][i].as_py())
        prefix_PD = self.encoder.build_prefix(latent_D, input_ids_N)
        return PromptRow(table["id"][i].as_py(), prefix_PD, range(self.settings.num_candidates))

    def _sample(
        self, prompts: dict[int, PromptRow], errors: list[dict[str, str] | None]
    ) -> dict[int, Sequence[Candidate]]:
        """Candidates by row. When the rows fail together, each is tried alone, and may get its own error."""
        params = self.settings.sampling
        try:
            results = self.sampler.sample(list(prompts.values()), params)
            return dict(zip(prompts, results, strict=True))
        except Exception as error:
            _raise_if_fatal(error)
            logger.warning(
                "a block of %d rows failed (%s); its rows are tried one by one", len(prompts), error
            )
        sampled: dict[int, Sequence[Candidate]] = {}
        for i, prompt in prompts.items():
            try:
                sampled[i] = self.sampler.sample([prompt], params)[0]
            except Exception as error:
                _raise_if_fatal(error)
                errors[i] = error_record("sample", error)
        return sampled


class _LatestUsed:
    """Conditioning latents of the voices used last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, key: str) -> torch.Tensor | None:
        if key in self.items:
            self.items.move_to_end(key)
        return self.items.get(key)

    def put(self, key: str, latent_D: torch.Tensor) -> None:
        self.items[key] = latent_D
        if len(self.items) > self.size:
            self.items.popitem(last=False)


def _raise_if_fatal(error: Exception) -> None:
    if is_fatal(error):
        raise error


def _candidate_column(rows: Sequence[Sequence[Candidate] | None]) -> pa.ListArray:
    """The `speech_ids` column [n]; null where a row has none."""
    candidates = [candidate for row in rows if row is not None for candidate in row]
    values = pa.StructArray.from_arrays(
        [
            pa.array([c.candidate for c in candidates], pa.int16()),
            pa.array([c.finished for c in candidates], pa.bool_()),
            token_lists(c.tokens.numpy() for c in candidates),
        ],
        fields=list(SAMPLED_TYPE),
    )
    mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(offsets_of([len(row or ()) for row in rows]), values, mask=mask)
