"""The stages of a run as recipes: small values that any process can turn into the working stage.

The stream of a pass (`pipeline.graph`), rows that are tried alone (`pipeline.isolate`) and a replay all make
their stages here, so that they cannot differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from clvp import ClvpConfig, ClvpFeatureExtractor
from clvp.conditioning import PROMPT_TOKENS_AROUND_TEXT
from pipeline.audio import AudioToMels
from pipeline.cluster import Cluster
from pipeline.guard import guarded, leave_if_fatal, on_table
from pipeline.manifest import Manifest, Slice
from pipeline.output import BlockWriter, OutputFolder
from pipeline.rank import Ranker
from pipeline.read import read_block
from pipeline.sample import Sampler
from pipeline.settings import ExecutionSettings, ModelSettings, ResultSettings, ScoringSettings
from pipeline.starts import counted_start
from pipeline.stored_candidates import StoredCandidates
from pipeline.validate import TextToTokens, load_encoder
from pipeline.weights import Checkpoint, fetch


@dataclass(frozen=True)
class Work:
    """What every stage of a run is made from."""

    manifest: Manifest
    checkpoint: Checkpoint
    output: OutputFolder
    execution: ExecutionSettings
    cluster: Cluster
    loading: ModelSettings
    scoring: ScoringSettings
    synthesis: ResultSettings | None  # None: the manifest brings its candidates along
    seed: int | None  # that the candidates were sampled with
    engine_facts: dict[str, Any] | None = None  # of what the output holds already
    stored: StoredCandidates | None = None  # of the run that this one extends
    page_bytes: int = 0  # of the largest page of the manifest's Parquet files

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
    """A stage that holds a model: its name, how to load it, and what an actor reserves and may become."""

    name: str
    load: Loader
    pool: dict[str, Any]  # arguments of `map_batches`
    resources: dict[str, float]


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
        stages.append(_model_stage("sample", load, work, execution.samplers, SAMPLER_GPUS))
    load = partial(
        _load,
        Ranker,
        work.checkpoint,
        loading=work.loading,
        settings=work.scoring,
        torch_threads=execution.torch_threads,
    )
    return [*stages, _model_stage("rank", load, work, execution.rankers, RANKER_GPUS)]


# A sampler and a ranker share a GPU unless the settings say otherwise.
SAMPLER_GPUS, RANKER_GPUS = 0.75, 0.25


def _model_stage(name: str, load: Loader, work: Work, pool: Any, gpu_share: float) -> ModelStage:
    resources = work.cluster.resources(pool, gpu_share)
    return ModelStage(name, load, work.cluster.pool(pool, gpu_share), resources)


def _load(stage: Any, checkpoint: Checkpoint, **arguments: Any) -> Callable[[pa.Table], pa.Table]:
    return stage(fetch(checkpoint), **arguments)


def stage_actor(name: str) -> type:
    """A class for actors, in which loading the model cannot fail.

    Ray prints the whole traceback of a constructor several times; a failure waits for the first block, where
    it ends the run with one message. So does a model whose loading ends the process again and again.
    """

    class Actor:
        def __init__(self, load: Loader) -> None:
            self.run = guarded(name, on_table(_loaded(name, load)))

        def __call__(self, row: pa.Table) -> pa.Table:
            return self.run(row)

    Actor.__name__ = Actor.__qualname__ = name
    return Actor


def _loaded(name: str, load: Loader) -> Callable[[pa.Table], pa.Table]:
    try:
        with counted_start(f"the model of stage {name}"):
            try:
                return load()
            except Exception as error:
                leave_if_fatal(name, error)
                raise
    except Exception as error:
        failure = error

        def fail(_: pa.Table) -> pa.Table:
            raise failure

        return fail


@lru_cache(maxsize=4)
def shared(reference: Any) -> Any:
    """The value of an object reference, read once per process."""
    import ray

    return ray.get(reference)
