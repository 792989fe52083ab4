"""The Ray cluster that a run uses: joining or starting it, what it has, and what its errors mean."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline import storage
from pipeline.errors import RunError, Terminated, printable
from pipeline.settings import Pool
from pipeline.stages import Stage
from pipeline.stream.envelope import Envelope
from pipeline.stream.workers import raise_stopped

# A block whose process dies is tried once more by Ray itself; then it is lost and planned again.
TASK_RETRIES = 1
# A cluster may wait hours for spot capacity; Ray Data's own limit is half an hour.
NO_PROGRESS_SECONDS = 6 * 3600
# Seconds that Ray's processes may be out of reach. The GCS of a cluster may come back: Ray waits a minute.
RAYLET_PATIENCE, GCS_PATIENCE = 0.2, 40.0

# What Ray raises for a block whose process or node has died. Whatever else it raises concerns the run.
LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)


_connect = ray._private.worker.connect


@dataclass(frozen=True)
class Cluster:
    """What the stages can count on. An autoscaling cluster may start with nothing."""

    cpus: float
    gpus: float
    node_memory: float = 0  # bytes that tasks can reserve on the largest node; 0: not known
    nodes: int = 1

    @classmethod
    def current(cls, gpus: int | None = None) -> "Cluster":
        """What there is now; `gpus` can come, where the cluster grows."""
        resources = ray.cluster_resources()
        memory = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
        gpus = max(resources.get("GPU", 0), gpus or 0)
        return cls(resources.get("CPU", 0), gpus, max(memory, default=0), len(memory))

    @property
    def task_cpus(self) -> float:
        """For a task that decodes audio: a whole core, unless the only one must be shared with the actors."""
        return 0.25 if 0 < self.cpus < 2 else 1

    def task(self, group: Sequence[Stage], num_bytes: int) -> dict[str, Any]:
        """`map_batches` arguments of tasks of some stages, which take `num_bytes` at most.

        One that is larger than the largest node would wait for ever; it runs alone there instead.
        """
        num_cpus = max(self.task_cpus if stage.num_cpus is None else stage.num_cpus for stage in group)
        memory = {"memory": min(num_bytes, self.node_memory)} if num_bytes and self.node_memory else {}
        return {"num_cpus": num_cpus, **memory, "max_retries": TASK_RETRIES}

    def resources(self, pool: Pool, gpu_share: float) -> dict[str, float]:
        """What one actor of the pool reserves.

        One with a GPU reserves no CPU: audio tasks may hold all CPUs of its node, and it would wait for them.
        """
        num_gpus = pool.num_gpus if pool.num_gpus is not None else gpu_share if self.gpus else 0
        return {"num_gpus": num_gpus, "num_cpus": 0 if num_gpus else pool.num_cpus}

    def pool(self, pool: Pool, gpu_share: float, blocks_at_once: int = 1) -> dict[str, Any]:
        """`map_batches` arguments of an actor pool: its size, and that dead actors come back."""
        resources = self.resources(pool, gpu_share)
        max_size = pool.max_size or max(pool.min_size, int(self.gpus) if resources["num_gpus"] else 1)
        return {
            "compute": ActorPoolStrategy(
                min_size=pool.min_size,
                max_size=max_size,
                max_concurrent_calls_per_actor=blocks_at_once,
                enable_true_multi_threading=blocks_at_once > 1,
            ),
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
        in_main_thread = threading.current_thread() is threading.main_thread()
        with _watched() if started and in_main_thread else nullcontext():
            yield
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _watched() -> Iterator[None]:
    """Raise RunError in the main thread soon after the raylet of this node or the GCS is gone.

    Ray itself ends the process by native code, up to a minute later, and with no word of what it was.
    """

    def interrupt(*_: Any) -> None:
        raise Terminated

    lost: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(stop, lost), name="watch", daemon=True)
    before = signal.signal(signal.SIGUSR1, interrupt)
    thread.start()
    try:
        yield
    except Terminated:
        if not lost:
            raise
        sys.unraisablehook = lambda _: None  # destructors of Ray find nothing left to end, and say so
        raise RunError(
            f"Ray's {lost[0]} is gone (killed, or out of memory?); the same command continues where it ended"
        ) from None
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def _watch(stop: threading.Event, lost: list[str]) -> None:
    """Ends when told to, or with the name of what is lost and a signal to the main thread."""
    here = ray.get_runtime_context()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    host, _, port = here.gcs_address.rpartition(":")
    raylet, gcs = (node["NodeManagerAddress"], node["NodeManagerPort"]), (host.strip("[]"), int(port))
    patience = GCS_PATIENCE if os.environ.get("RAY_ADDRESS") else RAYLET_PATIENCE
    connections: dict[str, socket.socket | None] = {"raylet": None, "GCS": None}
    seen = dict.fromkeys(connections, time.monotonic())
    while not stop.wait(0.05):
        for name, address, most in (("raylet", raylet, RAYLET_PATIENCE), ("GCS", gcs, patience)):
            connections[name] = _connected(connections[name], address)
            if connections[name]:
                seen[name] = time.monotonic()
            elif time.monotonic() - seen[name] > most:
                lost.append(name)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return


def _connected(connection: socket.socket | None, address: tuple[str, int]) -> socket.socket | None:
    """The connection, a new one where it has ended, or None where nobody listens.

    Kept open, it ends with the process at the other side: the next attempt to connect might come too late.
    """
    if connection is not None:
        try:
            while connection.recv(4096):  # what a server says first
                pass
        except BlockingIOError:
            return connection
        except OSError:
            pass
        connection.close()
    try:
        connection = socket.create_connection(address, timeout=1)
    except OSError:
        return None
    connection.setblocking(False)
    return connection


def _start_or_join(worker_logs: bool) -> None:
    """Raises RunError where there is no cluster to join, or none comes up: a start may be too slow once."""
    # Read by an instance that is started here. With as many actors as cores, Ray would end every task worker
    # that is idle for a second, and the next block would wait for a new one to import torch. A task that
    # takes more memory than there is would be tried for ever.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_task_oom_retries", str(TASK_RETRIES))
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if not worker_logs:  # else Ray prints 50 lines of its state when a raylet dies, and more with each worker
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        ray._private.worker.connect = _connect_silently
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for is_last in (False, True):
            try:
                ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=worker_logs)
                return
            except Exception as error:  # of any type, Exception itself included
                ray.shutdown()
                if is_last or "timed out" not in str(error).lower():
                    raise RunError(_why_not_started(error)) from error
    except SystemExit as error:  # from the handler that Ray puts in the place of ours
        raise Terminated from error
    finally:
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _connect_silently(*arguments: Any, **named: Any) -> Any:
    """Ray's native code in this process prints errors that are none, of every actor that Ray Data makes
    (ray-project/ray#57733) and of every task that dies. It reads its level when it connects, and prints that
    it has; processes that are started before have theirs from the environment.
    """
    before = os.environ.get("RAY_BACKEND_LOG_LEVEL")
    if sys.stderr is None or before is not None:
        return _connect(*arguments, **named)
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        return _connect(*arguments, **named)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _why_not_started(error: Exception) -> str:
    address = storage.public(os.environ.get("RAY_ADDRESS", ""))
    reason = printable(f"{error}; {error.__cause__ or ''}", 600).rstrip(" ;.")
    hint = "has this machine memory, disk and time to spare? Ray's logs are in /tmp/ray/session_latest"
    if address:
        hint = f"is the cluster of RAY_ADDRESS={address} up, and can it be reached from here?"
    if "ersion mismatch" in reason:
        hint = "install the cluster's versions of Ray and Python here, or run the job in the cluster's image"
    return f"Ray could not be {'joined' if address else 'started'}: {reason}; {hint}"


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
