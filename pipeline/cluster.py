"""The Ray cluster that a run uses: joining or starting it, what it has, and what its errors mean."""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.errors import ManifestError, RunError
from pipeline.settings import Pool

_CHAIN = "The above exception was the direct cause of the following exception:"
_OWN_ERRORS = re.compile(r"^(?:pipeline\.errors|clvp\.checkpoint)\.(?P<name>\w+): ")


@dataclass(frozen=True)
class Cluster:
    """What the stages can count on. An autoscaling cluster may start with nothing."""

    cpus: float
    gpus: float

    @classmethod
    def current(cls) -> "Cluster":
        resources = ray.cluster_resources()
        return cls(resources.get("CPU", 0), resources.get("GPU", 0))

    @property
    def task_cpus(self) -> float:
        """For a task that decodes audio: a whole core, unless the only one must be shared with the actors."""
        return 0.25 if 0 < self.cpus < 2 else 1

    def pool(self, pool: Pool, gpu_share: float, rows_per_block: int) -> dict[str, Any]:
        """`map_batches` arguments of an actor pool that takes whole blocks."""
        num_gpus = pool.num_gpus if pool.num_gpus is not None else gpu_share if self.gpus else 0
        max_size = pool.max_size or max(pool.min_size, int(self.gpus) if num_gpus else 1)
        return {
            "compute": ActorPoolStrategy(min_size=pool.min_size, max_size=max_size),
            "num_gpus": num_gpus,
            "num_cpus": pool.num_cpus,
            # Ray Data wants a number for GPU stages; blocks have that many rows, the last one and those of
            # large rows fewer, and such are joined.
            "batch_size": rows_per_block if num_gpus else None,
            "batch_format": "pyarrow",
        }


def connect(worker_logs: bool) -> None:
    """Use the Ray cluster that this process belongs to or is pointed at, or start one on this machine."""
    if not ray.is_initialized():
        # Read by an instance that is started here. With as many actors as cores, Ray would end every task
        # worker that is idle for a second, and the next block would wait for a new one to import torch.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=worker_logs)
    # The run prints its own progress and its own message for what goes wrong; Ray keeps its in its log files.
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR if worker_logs else logging.CRITICAL)


def block_reports(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Run the stream; yields the report of each block when it is written.

    Raises ManifestError or RunError, with the message of the stage that failed.
    """
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        raise readable_error(str(error)) from error


def readable_error(text: str) -> Exception:
    """The exception that began it all, out of the tracebacks that Ray puts around it."""
    first = [part for part in text.split(_CHAIN) if "ray.exceptions.UserCodeException:" not in part]
    lines = (first[-1] if first else text).splitlines()
    # Exceptions stand at the beginning of a line; frames and their source are indented.
    kept = [line for line in lines if line[:1].strip() and "ray::" not in line and "Traceback (" not in line]
    message = "\n".join(kept).strip() or text.strip()
    own = _OWN_ERRORS.match(message)
    if own is None:
        return RunError(f"a stage failed: {message}")
    return (ManifestError if own["name"] == "ManifestError" else RunError)(message[own.end() :])
