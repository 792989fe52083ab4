"""The stages as one Ray Data stream.

    blocks -> prepare (read, validate, audio)  =>  sample  =>  rank  =>  write
              (CPU tasks)                         (actors)   (actors)   (CPU tasks)

Every stage maps one block to one block, in an envelope of its own (`pipeline.stream.envelope`), so that a
block keeps its rows from the first stage to its file. Only the plan lies in the object store beforehand; rows
are read by the tasks that need them.
"""

import math
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution.interfaces import BlockEntry, BlockSlice, RefBundle
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import InputData
from ray.data._internal.stats import DatasetStats
from ray.data.block import BlockMetadata
from ray.util.annotations import RayDeprecationWarning

from clvp.sampling.sampler import DEFAULT_LANES
from pipeline.rows.memory import reading_memory
from pipeline.rows.plan import Plan
from pipeline.settings import ExecutionSettings
from pipeline.stages import Preparation, Work, model_stages
from pipeline.stream.cluster import TASK_RETRIES, Cluster
from pipeline.stream.envelope import Envelope
from pipeline.stream.workers import guarded, on_table, shared, stage_actor

WRITE_CPUS = 0.25
LANES_PER_BLOCK = {"cpu": 2, "cuda": 8}  # blocks hold this many times the candidates that run at once
MAX_ROWS_PER_BLOCK = 256
CLIPS_PER_ROW = 4  # different ones, for which memory is reserved
NUMBERS = pa.schema([("id", pa.int64())])  # of blocks, where the stream begins
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


def stream(work: Work, cluster: Cluster, plan: Plan, preparation: Preparation) -> Dataset:
    """The stream of the envelopes of block reports; nothing runs until it is consumed."""
    reference = ray.put((preparation, plan))

    # What Ray Data calls deprecated is passed by names that it does not have yet.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return _connected(work, cluster, plan, reference)


def _connected(work: Work, cluster: Cluster, plan: Plan, reference: Any) -> Dataset:
    def prepare(envelope: Envelope) -> pa.Table:
        recipe, blocks = shared(reference)
        return recipe(blocks.block(envelope.block))

    blocks = block_numbers(plan.num_blocks).map_batches(
        guarded("prepare", prepare),
        **ONE_BLOCK,
        num_cpus=cluster.task_cpus,
        max_retries=TASK_RETRIES,
        **cluster.task_memory(_memory(work, plan)),
    )
    for stage in model_stages(work):
        blocks = blocks.map_batches(
            stage_actor(stage.name),
            fn_constructor_kwargs={"load": stage.load},
            **ONE_BLOCK,
            **cluster.pool(stage.pool, stage.gpu_share),
        )
    writer = guarded("write", on_table(work.writer))
    return blocks.map_batches(writer, **ONE_BLOCK, num_cpus=WRITE_CPUS, max_retries=TASK_RETRIES)


def _memory(work: Work, plan: Plan) -> int:
    """What a task that prepares a block reserves: enough for any file, and for a few clips in every row."""
    seconds = work.synthesis.audio_seconds if work.synthesis else None
    return reading_memory(plan.rows_per_block, seconds, CLIPS_PER_ROW)


def block_numbers(num_blocks: int) -> Dataset:
    """A dataset of `num_blocks` blocks with one row each; its column `id` counts them from 0.

    Blocks come in ascending order as long as the stages behind let them. Costs the driver 1.4 KB a block.
    Connect to Ray first.

    `ray.data.range(n, override_num_blocks=n)` would be the public way to say this, but it pickles one read
    task per block before the first of them starts (about a minute for 10,000 blocks), and a streaming
    repartition to one row hands all numbers to a single task. Here all numbers are one small object, and
    every block is a slice of it, as Ray Data's own `repartition` makes them: what the driver does ahead is
    one Python object per block.
    """
    numbers = pa.table([np.arange(num_blocks)], schema=NUMBERS)
    whole = BlockEntry(
        ray.put(numbers),
        BlockMetadata(num_rows=num_blocks, size_bytes=numbers.nbytes, input_files=None, exec_stats=None),
    )
    bundles = [
        RefBundle((whole,), schema=NUMBERS, owns_blocks=False, slices=(BlockSlice(i, i + 1),))
        for i in range(num_blocks)
    ]
    context = DataContext.get_current().copy()
    plan = LogicalPlan(InputData(input_data=bundles), context)
    return Dataset(plan, context, DatasetStats(metadata={}, parent=None))
