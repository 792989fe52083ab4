"""Block numbers reach the first stage one at a time, whatever their number."""

import pyarrow as pa
import pytest

from pipeline.stream.stream import block_numbers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_instance")]


def _seen(numbers: pa.Table) -> pa.Table:
    return pa.table({"ids": [numbers["id"].to_pylist()]})


def test_every_block_is_one_number_and_none_is_missing() -> None:
    """Two fused stages see one row at a time: blocks that were merged would come as lists of several."""
    blocks = block_numbers(60)
    for stage in (lambda numbers: numbers, _seen):
        blocks = blocks.map_batches(stage, batch_size=None, batch_format="pyarrow", num_cpus=1)
    seen = [row["ids"] for row in blocks.iter_rows()]
    assert sorted(seen) == [[number] for number in range(60)]


def test_the_first_of_very_many_blocks_come_first() -> None:
    """And at once: with a read task per block the test would time out before any of them."""
    blocks = block_numbers(50_000).map_batches(_seen, batch_size=None, batch_format="pyarrow", num_cpus=1)
    batches = blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    [[first]] = next(iter(batches))["ids"].to_pylist()
    assert first < 10  # tasks that run side by side may overtake each other


def test_a_plan_without_blocks_is_an_empty_stream() -> None:
    stream = block_numbers(0).map_batches(_seen, batch_size=None, batch_format="pyarrow")
    assert stream.take_all() == []
