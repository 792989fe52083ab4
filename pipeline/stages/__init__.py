"""The stages of a run as recipes: small values that any process can turn into the working stage.

The stream of a pass (`pipeline.stream.stream`), rows that are tried alone (`pipeline.stream.isolate`) and a
replay all make their stages here, so that they cannot differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clvp import ClvpConfig, ClvpFeatureExtractor
from clvp.conditioning import PROMPT_TOKENS_AROUND_TEXT
from pipeline.checkpoint import Checkpoint, fetch
from pipeline.output.folder import OutputFolder
from pipeline.output.stored_candidates import StoredCandidates
from pipeline.rows.manifest import Manifest, Slice
from pipeline.rows.read import read_block
from pipeline.settings import ExecutionSettings, ModelSettings, Pool, ResultSettings, ScoringSettings
from pipeline.stages.rank import Ranker
from pipeline.stages.sample import Sampler
from pipeline.stages.tokens import TextToTokens, load_encoder
from pipeline.stages.voices import AudioToMels
from pipeline.stages.write import BlockWriter


@dataclass(frozen=True)
class Work:
    """What every stage of a run is made from."""

    manifest: Manifest
    checkpoint: Checkpoint
    output: OutputFolder
    execution: ExecutionSettings
    loading: ModelSettings
    scoring: ScoringSettings
    synthesis: ResultSettings | None  # None: the manifest brings its candidates along
    seed: int | None  # that the candidates were sampled with
    engine_facts: dict[str, Any] | None = None  # of what the output holds already
    stored: StoredCandidates | None = None  # of the run that this one extends

    @property
    def writer(self) -> BlockWriter:
        return BlockWriter(self.output, self.seed)


@dataclass(frozen=True)
class Preparation:
    """The stages on CPUs: `read` (the manifest's rows, text to tokens) and `audio` (clips to log-mels)."""

    manifest: Manifest
    checkpoint: Checkpoint
    normalizer: str
    max_text_tokens: int
    audio: AudioToMels | None
    stored: StoredCandidates | None

    def __call__(self, slices: Sequence[Slice]) -> pa.Table:
        return self.hear(self.read(slices))

    def read(self, slices: Sequence[Slice]) -> pa.Table:
        encode = load_encoder(fetch(self.checkpoint), self.normalizer)
        return TextToTokens(encode, self.max_text_tokens)(read_block(self.manifest, slices))

    def hear(self, table: pa.Table) -> pa.Table:
        """Log-mels of the rows' voices, and candidates of the run that is extended."""
        if self.audio is not None:
            table = self.audio(table)
        return table if self.stored is None else self.stored.attach(table)


def preparation(work: Work) -> Preparation:
    folder = fetch(work.checkpoint)
    decoder = ClvpConfig.from_pretrained(folder).decoder_config
    audio = None
    if work.synthesis is not None:
        extractor = ClvpFeatureExtractor.from_pretrained(folder)
        audio = AudioToMels(extractor.log_mel, work.synthesis.audio_seconds, work.execution.audio_root)
    return Preparation(
        work.manifest,
        work.checkpoint,
        work.loading.normalizer,
        decoder.max_text_tokens - PROMPT_TOKENS_AROUND_TEXT,
        audio,
        work.stored,
    )


Loader = Callable[[], Callable[[pa.Table], pa.Table]]


@dataclass(frozen=True)
class ModelStage:
    """A stage that holds a model: its name, how to load it, its actors and what one of them reserves."""

    name: str
    load: Loader
    pool: Pool
    gpu_share: float  # of an actor, unless the pool says otherwise


def model_stages(work: Work) -> list[ModelStage]:
    """`sample`, where candidates are sampled, and `rank`."""
    execution = work.execution
    stages = []
    if work.synthesis is not None:
        load = partial(
            _load,
            Sampler,
            work.checkpoint,
            settings=work.synthesis,
            engine=execution.engine,
            voices_cached=execution.voices_cached,
            torch_threads=execution.torch_threads,
            sampled_before=work.stored.sampled if work.stored else 0,
            expected_facts=work.engine_facts,
        )
        stages.append(ModelStage("sample", load, execution.samplers, SAMPLER_GPUS))
    load = partial(
        _load,
        Ranker,
        work.checkpoint,
        loading=work.loading,
        settings=work.scoring,
        torch_threads=execution.torch_threads,
    )
    return [*stages, ModelStage("rank", load, execution.rankers, RANKER_GPUS)]


# A sampler and a ranker share a GPU unless the settings say otherwise.
SAMPLER_GPUS, RANKER_GPUS = 0.75, 0.25


def _load(stage: Any, checkpoint: Checkpoint, **arguments: Any) -> Callable[[pa.Table], pa.Table]:
    return stage(fetch(checkpoint), **arguments)
