"""The Ray cluster that a run uses: joining or starting it, what it has, and what its errors mean."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.errors import RunError, Terminated
from pipeline.settings import Pool
from pipeline.stages import Stage
from pipeline.stream.envelope import Envelope
from pipeline.stream.workers import raise_stopped

# A block whose process dies is tried once more by Ray itself; then it is lost and planned again.
TASK_RETRIES = 1
# A cluster may wait hours for spot capacity; Ray Data's own limit is half an hour.
NO_PROGRESS_SECONDS = 6 * 3600

# What Ray raises for a block whose process or node has died. Whatever else it raises concerns the run.
LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)


@dataclass(frozen=True)
class Cluster:
    """What the stages can count on. An autoscaling cluster may start with nothing."""

    cpus: float
    gpus: float
    node_memory: float = 0  # bytes that tasks can reserve on the largest node; 0: not known

    @classmethod
    def current(cls, gpus: int | None = None) -> "Cluster":
        """What there is now; `gpus` can come, where the cluster grows."""
        resources = ray.cluster_resources()
        memory = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
        return cls(resources.get("CPU", 0), max(resources.get("GPU", 0), gpus or 0), max(memory, default=0))

    @property
    def task_cpus(self) -> float:
        """For a task that decodes audio: a whole core, unless the only one must be shared with the actors."""
        return 0.25 if 0 < self.cpus < 2 else 1

    def cpus_of(self, group: Sequence[Stage]) -> float:
        """For a task of some stages."""
        return max(self.task_cpus if stage.num_cpus is None else stage.num_cpus for stage in group)

    def task_memory(self, wanted: int) -> dict[str, Any]:
        """`map_batches` arguments of tasks that take `wanted` bytes at most.

        One that is larger than the largest node would wait for ever; it runs alone there instead.
        """
        return {"memory": min(wanted, self.node_memory)} if wanted and self.node_memory else {}

    def resources(self, pool: Pool, gpu_share: float) -> dict[str, float]:
        """What one actor of the pool reserves.

        One with a GPU reserves no CPU: audio tasks may hold all CPUs of its node, and it would wait for them.
        """
        num_gpus = pool.num_gpus if pool.num_gpus is not None else gpu_share if self.gpus else 0
        return {"num_gpus": num_gpus, "num_cpus": 0 if num_gpus else pool.num_cpus}

    def pool(self, pool: Pool, gpu_share: float) -> dict[str, Any]:
        """`map_batches` arguments of an actor pool: its size, and that dead actors come back."""
        resources = self.resources(pool, gpu_share)
        max_size = pool.max_size or max(pool.min_size, int(self.gpus) if resources["num_gpus"] else 1)
        return {
            "compute": ActorPoolStrategy(min_size=pool.min_size, max_size=max_size),
            "max_restarts": -1,
            "max_task_retries": TASK_RETRIES,
            **resources,
        }


@contextmanager
def connected(worker_logs: bool) -> Iterator[None]:
    """Use the Ray cluster that this process belongs to or is pointed at, or start one on this machine.

    One that was started ends with the context.
    """
    started = not ray.is_initialized()
    try:
        if started:
            _start_or_join(worker_logs)
        # The run prints its own progress and its own message for what goes wrong; Ray keeps its in log files.
        DataContext.get_current().enable_progress_bars = False
        DataContext.get_current().execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
        logging.getLogger("ray.data").setLevel(logging.ERROR if worker_logs else logging.CRITICAL)
        yield
    finally:
        if started:
            ray.shutdown()


def _start_or_join(worker_logs: bool) -> None:
    # Read by an instance that is started here. With as many actors as cores, Ray would end every task worker
    # that is idle for a second, and the next block would wait for a new one to import torch. A task that
    # takes more memory than there is would be tried for ever.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_task_oom_retries", str(TASK_RETRIES))
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=worker_logs)
    except SystemExit as error:  # from the handler that Ray puts in the place of ours
        raise Terminated from error
    finally:
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def block_reports(dataset: Dataset, lost_blocks: int) -> Iterator[tuple[Envelope, dict[str, Any]]]:
    """Run the stream; yields the envelope and the report of each block when it is written.

    Up to `lost_blocks` blocks may be missing in the end, because their process or node has died.

    Raises ManifestError or RunError with the message of the stage that failed, and one of LOST when more
    blocks are lost.
    """
    dataset.context.max_errored_blocks = lost_blocks
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for i in range(len(batch)):
                envelope = Envelope.open(batch.slice(i, 1))
                if envelope.stopped is not None:
                    raise_stopped(envelope.stopped)
                assert envelope.table is not None
                for report in envelope.table.to_pylist():
                    yield envelope, report
    except LOST:
        raise
    except ray.exceptions.RayError as error:
        raise RunError(f"the cluster failed: {summary(error)}") from error


def surviving(dataset: Dataset) -> Dataset:
    """The blocks that come to a dataset's end, computed and kept, without those that a process died with.

    Raises RunError when the cluster fails otherwise.
    """
    dataset.context.max_errored_blocks = -1
    try:
        return dataset.materialize()
    except ray.exceptions.RayError as error:
        raise RunError(f"the cluster failed: {summary(error)}") from error


def summary(error: BaseException) -> str:
    """The lines of Ray's message that are no traceback, as one."""
    lines = [line for line in str(error).splitlines() if line[:1].strip()]
    kept = [line.strip() for line in lines if "ray::" not in line and "Traceback (" not in line]
    return " ".join(kept) or type(error).__name__
