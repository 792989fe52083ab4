"""The stages as one Ray Data stream.

    blocks -> prepare (read, validate, audio)  =>  sample  =>  rank  =>  write
              (CPU tasks)                         (actors)   (actors)   (CPU tasks)

Every stage maps one block to one block, in an envelope of its own (`pipeline.stream.envelope`), so that a
block keeps its rows from the first stage to its file. Only the plan lies in the object store beforehand; rows
are read by the tasks that need them.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.execution.interfaces import BlockEntry, BlockSlice, RefBundle
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import InputData
from ray.data._internal.stats import DatasetStats
from ray.data.block import BlockMetadata
from ray.util.annotations import RayDeprecationWarning

from clvp.sampling.params import DEFAULT_LANES
from pipeline.rows.plan import Plan
from pipeline.settings import ExecutionSettings
from pipeline.stages import Stage, Work, gpu_shares, grouped, stages_of
from pipeline.stream.cluster import Cluster
from pipeline.stream.workers import stage_actor, stage_task

LANES_PER_BLOCK = {"cpu": 2, "cuda": 4}  # blocks hold this many times the candidates that run at once
MAX_ROWS_PER_BLOCK = 256
MAX_ROWS_WITH_SOUND = 64  # of each candidate that becomes sound: some hundred kilobytes
NUMBERS = pa.schema([("id", pa.int64())])  # of blocks, where the stream begins


def rows_per_block(
    execution: ExecutionSettings, num_candidates: int, cluster: Cluster, num_rows: int, sounds: int = 0
) -> int:
    """Enough rows to keep a sampler's lanes full, few enough that every sampler gets several blocks.

    The last blocks are no smaller: two at a time would not fill the lanes. As it is, the first of 8 samplers
    is without work for no longer than the longest candidate takes (by count, with lengths as in speech: 474
    steps of 500 with 64 lanes, 362 with 256); shrunk to a quarter they would take it 6 to 20% longer.

    `sounds` of the candidates of a row become sound, which the driver holds of 16 blocks at a time.
    """
    if execution.rows_per_block is not None:
        return execution.rows_per_block
    kind = "cuda" if cluster.gpus else "cpu"
    lanes = execution.engine.lanes or DEFAULT_LANES[kind]
    wanted = math.ceil(LANES_PER_BLOCK[kind] * lanes / num_candidates)
    samplers = execution.samplers.max_size or max(int(cluster.gpus), 1)
    most = MAX_ROWS_WITH_SOUND // sounds if sounds else MAX_ROWS_PER_BLOCK
    return max(1, min(wanted, most, math.ceil(num_rows / (4 * samplers))))


class Stream:
    """The stages of a run as operators on the blocks of a plan; nothing runs until a dataset is consumed."""

    def __init__(self, work: Work, cluster: Cluster, plan: Plan) -> None:
        self.work, self.cluster, self.plan = work, cluster, plan
        self.stages = stages_of(work.run)
        self.shares = gpu_shares(self.stages)
        self.references = ray.put(work), ray.put(plan)  # read once per process

    def whole(self) -> Dataset:
        """The envelopes of block reports."""
        blocks = block_numbers(self.plan.num_blocks)
        for name, group in grouped(self.stages):
            blocks = self.behind(blocks, name, group)
        return blocks

    def behind(self, blocks: Dataset, name: str, group: Sequence[Stage], alone: bool = False) -> Dataset:
        """The blocks after some stages that share a process. `alone`: one block at a time in the cluster."""
        arguments: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}  # a block is one row
        pool = group[0].pool
        if pool is None:
            num_bytes = max(stage.memory(self.work, self.plan.rows_per_block) for stage in group)
            arguments |= self.cluster.task(group, num_bytes)
            if alone:
                arguments["compute"] = TaskPoolStrategy(size=1)
            function: Any = stage_task(name, group, *self.references)
        else:
            arguments |= self.cluster.pool(pool, self.shares[group[0].name], group[0].blocks_at_once)
            if alone:
                arguments["compute"] = ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1)
            arguments["fn_constructor_kwargs"] = {"group": group, "work": self.references[0]}
            function = stage_actor(name)
        # What Ray Data calls deprecated is passed by names that it does not have yet.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return blocks.map_batches(function, **arguments)


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
