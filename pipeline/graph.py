"""The stages as one Ray Data stream.

    blocks -> prepare (read, validate, audio)  =>  sample  =>  rank  =>  write
              (CPU tasks)                         (actors)   (actors)   (CPU tasks)

Every stage maps one block to one block, in an envelope of its own (`pipeline.envelope`), so that a block
keeps its rows from the first stage to its file. Only the plan lies in the object store beforehand; rows are
read by the tasks that need them.
"""

import math
import warnings
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.util.annotations import RayDeprecationWarning

from clvp.sampling.sampler import DEFAULT_LANES
from pipeline.cluster import TASK_RETRIES, Cluster
from pipeline.envelope import Envelope
from pipeline.feed import block_numbers
from pipeline.guard import guarded, on_table
from pipeline.memory import reading_memory
from pipeline.plan import Plan
from pipeline.settings import ExecutionSettings
from pipeline.stages import Preparation, Work, model_stages, shared, stage_actor

WRITE_CPUS = 0.25
LANES_PER_BLOCK = {"cpu": 2, "cuda": 8}  # blocks hold this many times the candidates that run at once
MAX_ROWS_PER_BLOCK = 256
CLIPS_PER_ROW = 4  # different ones, for which memory is reserved
ONE_BLOCK = {"batch_size": 1, "batch_format": "pyarrow"}  # a block is one row


def rows_per_block(execution: ExecutionSettings, num_candidates: int, cluster: Cluster, num_rows: int) -> int:
    """Enough rows to keep a sampler's lanes full, few enough that every sampler gets several blocks."""
    if execution.rows_per_block is not None:
        return execution.rows_per_block
    kind = "cuda" if cluster.gpus else "cpu"
    lanes = execution.engine.lanes or DEFAULT_LANES[kind]
    wanted = math.ceil(LANES_PER_BLOCK[kind] * lanes / num_candidates)
    samplers = execution.samplers.max_size or max(int(cluster.gpus), 1)
    return max(1, min(wanted, MAX_ROWS_PER_BLOCK, math.ceil(num_rows / (4 * samplers))))


def stream(work: Work, plan: Plan, preparation: Preparation) -> Dataset:
    """The stream of the envelopes of block reports; nothing runs until it is consumed."""
    reference = ray.put((preparation, plan))

    # What Ray Data calls deprecated is passed by names that it does not have yet.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return _connected(work, plan, reference)


def _connected(work: Work, plan: Plan, reference: Any) -> Dataset:
    def prepare(envelope: Envelope) -> pa.Table:
        recipe, blocks = shared(reference)
        return recipe(blocks.block(envelope.block))

    blocks = block_numbers(plan.num_blocks).map_batches(
        guarded("prepare", prepare),
        **ONE_BLOCK,
        num_cpus=work.cluster.task_cpus,
        max_retries=TASK_RETRIES,
        **work.cluster.task_memory(_memory(work, plan)),
    )
    for stage in model_stages(work):
        blocks = blocks.map_batches(
            stage_actor(stage.name), fn_constructor_kwargs={"load": stage.load}, **ONE_BLOCK, **stage.pool
        )
    writer = guarded("write", on_table(work.writer))
    return blocks.map_batches(writer, **ONE_BLOCK, num_cpus=WRITE_CPUS, max_retries=TASK_RETRIES)


def _memory(work: Work, plan: Plan) -> int:
    """What a task that prepares a block reserves: enough for any file, and for a few clips in every row."""
    seconds = work.synthesis.audio_seconds if work.synthesis else None
    return reading_memory(plan.rows_per_block, seconds, work.page_bytes, CLIPS_PER_ROW)
