"""Stage 4, `sample`: text tokens and log-mels to candidate speech tokens.

One conditioning latent is computed per voice and kept. The candidates of all blocks that are there go
through one sampling engine, and a block leaves when its last one is done. A row that fails takes no other
row with it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from clvp import ClvpConditioningEncoder, ClvpForCausalLM
from clvp.sampling import Candidate, CandidateSampler, EngineConfig, PromptRow
from clvp.sampling.invariance import Arithmetic, deciding, find_arithmetic
from pipeline.cache import remembered
from pipeline.description import check_alike
from pipeline.rows.columns import (
    ENGINE,
    good_rows,
    map_rows,
    set_columns,
    struct_lists,
    token_lists,
)
from pipeline.rows.payloads import SAMPLED_TYPE, SPEECH_IDS, STORED
from pipeline.settings import ResultSettings
from pipeline.stages.device import pick_device
from pipeline.stages.sound import RANDOM_KEY, kept
from pipeline.stages.voices import latent, voice_mels


class Sampler:
    """Callable on a block, by several threads at once; holds the conditioning encoder and the speech decoder,
    with which one thread of its own computes.

    `model` is a checkpoint folder or hub id. Runs on the GPU it is given, else with `torch_threads` threads.
    Rows that have a value in a column `stored` (of the type of SPEECH_IDS) keep those candidates, and only
    the indices from `sampled_before` on are sampled for them.

    Raises RunError when the engine's facts are not `expected_facts`: its tokens may be others than those that
    the output holds already.
    """

    def __init__(
        self,
        model: str,
        settings: ResultSettings,
        engine: EngineConfig | None = None,
        voices_cached: int = 4096,
        torch_threads: int | None = None,
        sampled_before: int = 0,
        expected_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.sampled_before = settings, sampled_before
        self.candidates: Sequence[int] = range(settings.num_candidates)  # a replay asks for some of them
        device = pick_device(torch_threads)
        dtype = settings.model.dtype
        self.encoder = ClvpConditioningEncoder.from_pretrained(model, dtype=dtype, device=device)
        decoder = ClvpForCausalLM.from_pretrained(model, dtype=dtype, device=device, mapped=True)
        engine = engine or EngineConfig()
        arithmetic = None if device.type == "cuda" else _arithmetic(decoder, engine)
        sampler = CandidateSampler(decoder, engine, arithmetic)  # has its own copy of the weights
        facts = sampler.facts()
        problem = "this machine's sampler may draw other tokens than the output holds"
        check_alike(expected_facts, facts, "engine", problem)
        self.facts = json.dumps(facts, sort_keys=True)
        self.latents: dict[str, torch.Tensor] = {}  # of the voices used last, the latest at the end
        self.voices_cached = voices_cached
        self.engine = sampler.engine(settings.sampling)
        self.lanes_in_use = 0.0  # the share of them, on average while the last block was here
        self.engine.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        stats = self.engine.stats
        live, steps = stats.live_steps, stats.steps
        sampled = {i: self.engine.submit(partial(self._prompt, table, i)) for i in good_rows(table)}
        rows, table = map_rows(table, "sample", lambda i: [*_stored(table, i), *sampled[i].result()])
        self.lanes_in_use = (stats.live_steps - live) / max(stats.steps - steps, 1) / self.engine.lanes
        return set_columns(table, {SPEECH_IDS: _candidate_column(rows), ENGINE: [self.facts] * len(table)})

    @torch.inference_mode()
    def _prompt(self, table: pa.Table, i: int) -> PromptRow:
        key = table["voice_key"][i].as_py()

        def make() -> torch.Tensor:
            voice = table["voice"][i].as_py()
            if key.startswith(RANDOM_KEY):
                return latent(voice)
            return self.encoder.average_clips(voice_mels(voice, self.settings.audio_seconds))

        latent_D = kept(self.latents, key, self.voices_cached, make)
        input_ids_N = torch.tensor(table["input_ids"][i].as_py())
        prefix_PD = self.encoder.build_prefix(latent_D, input_ids_N)
        first = self.sampled_before if _has_stored(table, i) else 0
        wanted = [index for index in self.candidates if index >= first]
        return PromptRow(table["id"][i].as_py(), prefix_PD, wanted)


def _arithmetic(decoder: ClvpForCausalLM, engine: EngineConfig) -> Arithmetic:
    """How this node computes: tried out once, for seconds."""
    question = ("arithmetic", *deciding(decoder, engine.products))
    return remembered(question, lambda: find_arithmetic(decoder, engine.products), Arithmetic)


def _has_stored(table: pa.Table, i: int) -> bool:
    return STORED.name in table.column_names and bool(table[STORED.name][i].is_valid)


def _stored(table: pa.Table, i: int) -> list[Candidate]:
    """The candidates that an earlier run has sampled for the row."""
    if not _has_stored(table, i):
        return []
    row_id = table["id"][i].as_py()
    return [
        Candidate(row_id, c["candidate"], torch.tensor(c["speech_ids"], dtype=torch.int64), c["finished"])
        for c in table[STORED.name][i].as_py()
    ]


def _candidate_column(rows: Sequence[Sequence[Candidate] | None]) -> pa.ListArray:
    """The `speech_ids` column [n]; null where a row has none."""
    candidates = [candidate for row in rows if row is not None for candidate in row]
    return struct_lists(
        rows,
        [
            pa.array([c.candidate for c in candidates], pa.int16()),
            pa.array([c.finished for c in candidates], pa.bool_()),
            token_lists(c.tokens.numpy() for c in candidates),
        ],
        SAMPLED_TYPE,
    )
