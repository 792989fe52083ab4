"""What goes wrong in a worker: an exception ends the run with one message, a broken device the process.

Ray Data counts an exception and a dead process alike as a lost block (`max_errored_blocks`). So that only
dead processes are counted, whatever a stage raises travels to the driver in the block's envelope, past the
later stages, and the driver raises it there.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from pipeline.errors import ManifestError, RunError, is_fatal
from pipeline.stages import Loader
from pipeline.stream.envelope import Envelope, Stopped, Timing
from pipeline.stream.starts import counted_start

EXIT_DEVICE_LOST = 70

Stage = Callable[[Envelope], pa.Table]

logger = logging.getLogger(__name__)


def guarded(name: str, stage: Stage) -> Callable[[pa.Table], pa.Table]:
    """The stage as a function from envelope row to envelope row, named after the stage."""

    def run_stage(row: pa.Table) -> pa.Table:
        envelope = Envelope.open(row)
        if envelope.stopped is not None:
            return row
        started = time.perf_counter()
        try:
            table = stage(envelope)
            timing = Timing(name, time.perf_counter() - started, worker_name())
            return envelope.with_result(table, timing).seal()
        except Exception as error:
            leave_if_fatal(name, error)
            logger.exception("stage %s, block %d", name, envelope.block)
            return envelope.stop(stop_reason(name, error)).seal()

    run_stage.__name__ = run_stage.__qualname__ = name
    return run_stage


def on_table(stage: Callable[[pa.Table], pa.Table]) -> Stage:
    """A stage that needs the block's table alone."""
    return lambda envelope: stage(envelope.table)


def stop_reason(stage: str, error: Exception) -> Stopped:
    """What to tell the user: our own errors speak for themselves, any other is named."""
    text = " ".join(str(error).split())
    if isinstance(error, ManifestError):
        return Stopped(stage, "ManifestError", text)
    if isinstance(error, RunError) or type(error).__module__.startswith("clvp."):
        return Stopped(stage, "RunError", text)
    return Stopped(stage, "RunError", f"stage {stage} failed: {type(error).__name__}: {text}")


def raise_stopped(reason: Stopped) -> None:
    """Raise in the driver what `stop_reason` recorded in a worker."""
    raise (ManifestError if reason.kind == "ManifestError" else RunError)(reason.message)


def stage_actor(name: str) -> type:
    """A class for actors, in which loading the model cannot fail.

    Ray prints the whole traceback of a constructor several times; a failure waits for the first block, where
    it ends the run with one message. So does a model whose loading ends the process again and again.
    """

    class Actor:
        def __init__(self, load: Loader) -> None:
            self.run = guarded(name, on_table(_loaded(name, load)))

        def __call__(self, row: pa.Table) -> pa.Table:
            return self.run(row)

    Actor.__name__ = Actor.__qualname__ = name
    return Actor


def _loaded(name: str, load: Loader) -> Callable[[pa.Table], pa.Table]:
    try:
        with counted_start(f"the model of stage {name}"):
            try:
                return load()
            except Exception as error:
                leave_if_fatal(name, error)
                raise
    except Exception as error:
        failure = error

        def fail(_: pa.Table) -> pa.Table:
            raise failure

        return fail


@lru_cache(maxsize=4)
def shared(reference: Any) -> Any:
    """The value of an object reference, read once per process."""
    return ray.get(reference)


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def leave_if_fatal(name: str, error: Exception) -> None:
    """End the process if its device is lost: a new one, perhaps on another machine, takes the block."""
    if is_fatal(error):
        logger.critical("stage %s: the device is lost, the process ends: %s", name, error)
        os._exit(EXIT_DEVICE_LOST)
