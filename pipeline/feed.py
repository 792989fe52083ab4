"""Where the stream begins: the numbers of the plan's blocks, each a block of its own.

`ray.data.range(n, override_num_blocks=n)` would be the public way to say this, but it pickles one read task
per block before the first of them starts (about a minute for 10,000 blocks), and a streaming repartition to
one row hands all numbers to a single task. Here all numbers are one small object, and every block is a slice
of it, as Ray Data's own `repartition` makes them: what the driver does ahead is one Python object per block.
"""

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution.interfaces import BlockEntry, BlockSlice, RefBundle
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import InputData
from ray.data._internal.stats import DatasetStats
from ray.data.block import BlockMetadata

SCHEMA = pa.schema([("id", pa.int64())])


def block_numbers(num_blocks: int) -> Dataset:
    """A dataset of `num_blocks` blocks with one row each; its column `id` counts them from 0.

    Blocks come in ascending order as long as the stages behind let them. Costs the driver 1.4 KB a block.
    Connect to Ray first.
    """
    numbers = pa.table([np.arange(num_blocks)], schema=SCHEMA)
    whole = BlockEntry(
        ray.put(numbers),
        BlockMetadata(num_rows=num_blocks, size_bytes=numbers.nbytes, input_files=None, exec_stats=None),
    )
    bundles = [
        RefBundle((whole,), schema=SCHEMA, owns_blocks=False, slices=(BlockSlice(i, i + 1),))
        for i in range(num_blocks)
    ]
    context = DataContext.get_current().copy()
    plan = LogicalPlan(InputData(input_data=bundles), context)
    return Dataset(plan, context, DatasetStats(metadata={}, parent=None))
