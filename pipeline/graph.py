"""The stages as one Ray Data stream.

    blocks -> read -> validate -> audio  =>  sample  =>  rank  =>  write
              (CPU tasks, fused into one)   (actors)   (actors)   (CPU task)

Every stage maps one block to one block, so that a block keeps its rows from the first stage to its file. Only
the plan lies in the object store beforehand; rows are read by the tasks that need them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from clvp import ClvpConfig, ClvpFeatureExtractor
from clvp.conditioning import PROMPT_TOKENS_AROUND_TEXT
from clvp.sampling.sampler import DEFAULT_LANES
from pipeline.audio import AudioToMels
from pipeline.cluster import Cluster
from pipeline.manifest import Manifest
from pipeline.output import BlockWriter, OutputFolder
from pipeline.plan import Plan
from pipeline.rank import Ranker
from pipeline.read import read_block
from pipeline.sample import Sampler
from pipeline.settings import ExecutionSettings, ModelSettings, ResultSettings, ScoringSettings
from pipeline.validate import TextToTokens, load_encoder

WRITE_CPUS = 0.25
# A sampler and a ranker share a GPU unless the settings say otherwise.
SAMPLER_GPUS, RANKER_GPUS = 0.75, 0.25
LANES_PER_BLOCK = {"cpu": 2, "cuda": 8}  # blocks hold this many times the candidates that run at once
MAX_ROWS_PER_BLOCK = 256


def rows_per_block(execution: ExecutionSettings, num_candidates: int, cluster: Cluster, num_rows: int) -> int:
    """Enough rows to keep a sampler's lanes full, few enough that every sampler gets several blocks."""
    if execution.rows_per_block is not None:
        return execution.rows_per_block
    kind = "cuda" if cluster.gpus else "cpu"
    lanes = execution.engine.lanes or DEFAULT_LANES[kind]
    wanted = math.ceil(LANES_PER_BLOCK[kind] * lanes / num_candidates)
    samplers = execution.samplers.max_size or max(int(cluster.gpus), 1)
    return max(1, min(wanted, MAX_ROWS_PER_BLOCK, math.ceil(num_rows / (4 * samplers))))


@dataclass(frozen=True)
class Work:
    """What every graph is built from."""

    manifest: Manifest
    plan: Plan
    model: str
    output: OutputFolder
    execution: ExecutionSettings
    cluster: Cluster


def synthesis_graph(work: Work, settings: ResultSettings) -> Dataset:
    """The stream of block reports of a synthesis run; nothing runs until it is consumed."""
    extractor = ClvpFeatureExtractor.from_pretrained(work.model)
    audio = AudioToMels(extractor.log_mel, settings.audio_seconds, work.execution.audio_root)
    arguments = {
        "model": work.model,
        "settings": settings,
        "engine": work.execution.engine,
        "voices_cached": work.execution.voices_cached,
        "torch_threads": work.execution.torch_threads,
    }
    pool = work.cluster.pool(work.execution.samplers, SAMPLER_GPUS, work.plan.rows_per_block)
    blocks = _prepared_blocks(work, settings.model, audio)
    sampled = blocks.map_batches(_actor(Sampler), fn_constructor_kwargs=arguments, **pool)
    return _ranked_and_written(sampled, work, settings.model, settings.scoring, settings.sampling.seed)


def ranking_graph(work: Work, loading: ModelSettings, scoring: ScoringSettings) -> Dataset:
    """The stream of block reports of a run that ranks speech tokens of the manifest."""
    return _ranked_and_written(_prepared_blocks(work, loading), work, loading, scoring, None)


def _prepared_blocks(
    work: Work, loading: ModelSettings, audio: Callable[[pa.Table], pa.Table] | None = None
) -> Dataset:
    plan_ref = ray.put((work.manifest, work.plan))
    decoder = ClvpConfig.from_pretrained(work.model).decoder_config
    limit = decoder.max_text_tokens - PROMPT_TOKENS_AROUND_TEXT
    stages: list[Callable[[pa.Table], pa.Table]] = [
        partial(_read, plan_ref=plan_ref),
        partial(_validate, model=work.model, loading=loading, limit=limit),
    ]
    if audio:
        stages.append(audio)
    blocks = ray.data.range(work.plan.num_blocks, override_num_blocks=work.plan.num_blocks)
    for stage in stages:
        blocks = blocks.map_batches(
            _named(stage), batch_size=None, batch_format="pyarrow", num_cpus=work.cluster.task_cpus
        )
    return blocks


def _ranked_and_written(
    blocks: Dataset, work: Work, loading: ModelSettings, scoring: ScoringSettings, seed: int | None
) -> Dataset:
    arguments = {
        "model": work.model,
        "loading": loading,
        "settings": scoring,
        "torch_threads": work.execution.torch_threads,
    }
    pool = work.cluster.pool(work.execution.rankers, RANKER_GPUS, work.plan.rows_per_block)
    ranked = blocks.map_batches(_actor(Ranker), fn_constructor_kwargs=arguments, **pool)
    writer = _named(BlockWriter(work.output, seed))
    return ranked.map_batches(writer, batch_size=None, batch_format="pyarrow", num_cpus=WRITE_CPUS)


def _read(numbers: pa.Table, plan_ref: Any) -> pa.Table:
    manifest, plan = ray.get(plan_ref)
    slices = [part for number in numbers["id"].to_pylist() for part in plan.block(number)]
    return read_block(manifest, slices)


def _validate(table: pa.Table, model: str, loading: ModelSettings, limit: int) -> pa.Table:
    return TextToTokens(load_encoder(model, loading.normalizer), limit)(table)


def _named(stage: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """Ray Data names a stage after its function; callable objects have no name of their own."""

    def run_stage(table: pa.Table) -> pa.Table:
        return stage(table)

    target = stage.func if isinstance(stage, partial) else type(stage)
    run_stage.__name__ = run_stage.__qualname__ = target.__name__.lstrip("_")
    return run_stage


def _actor(stage: type) -> type:
    """The stage as a class for an actor pool, in which loading the model cannot fail.

    Ray prints the whole traceback of a constructor several times; a failure waits for the first
    block, where it ends the run with one message.
    """

    class Actor:
        def __init__(self, **arguments: Any) -> None:
            self.stage: Any = None
            self.failure: Exception | None = None
            try:
                self.stage = stage(**arguments)
            except Exception as error:
                self.failure = error

        def __call__(self, table: pa.Table) -> pa.Table:
            if self.failure is not None:
                raise self.failure
            return self.stage(table)

    Actor.__name__ = Actor.__qualname__ = stage.__name__
    return Actor
