"""Ray Data and torch without anything of ours: a block through a task and two actors that import torch.

What `tests.benchmarks.start` measures cannot be shorter. Prints the seconds to the block, and to the end.
"""

import logging
import time


def main() -> None:
    """Prints the two numbers."""
    began = time.monotonic()
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    def task(table: pa.Table) -> pa.Table:
        import torch  # noqa: F401

        return table

    class Actor:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(1)

        def __call__(self, table: pa.Table) -> pa.Table:
            return table

    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    actor = {"compute": ActorPoolStrategy(size=1), "num_cpus": 0.5, "batch_format": "pyarrow"}
    dataset = ray.data.from_items([{"id": "a"}]).map_batches(task, batch_format="pyarrow")
    dataset = dataset.map_batches(Actor, **actor).map_batches(Actor, **actor)
    assert list(dataset.iter_rows()) == [{"id": "a"}]
    first = time.monotonic() - began
    ray.shutdown()
    print(first, time.monotonic() - began)


if __name__ == "__main__":
    main()
