"""What goes wrong in a worker: an exception ends the run with one message, a broken device the process.

Ray Data counts an exception and a dead process alike as a lost block (`max_errored_blocks`). So that only
dead processes are counted, whatever a stage raises travels to the driver in the block's envelope, past the
later stages, and the driver raises it there.
"""

import logging
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from pipeline import storage
from pipeline.errors import (
    MAX_RUN_MESSAGE_CHARS,
    ErrorRecord,
    ManifestError,
    RunError,
    error_record,
    is_fatal,
    safe,
)
from pipeline.stages import Chain, OnBlock, Stage
from pipeline.stream.envelope import Envelope, Timing

EXIT_DEVICE_LOST = 70
MAX_DEATHS_LOADING = 3

logger = logging.getLogger(__name__)


def guarded(
    name: str, stage: OnBlock, plan: Any = None, lanes: Callable[[], float] = lambda: 0.0
) -> Callable[[pa.Table], pa.Table]:
    """Stages as a function from envelope row to envelope row.

    `plan` refers to the one whose blocks they begin with; without it blocks come with their tables. Where
    several are called at once, a block has taken the time since the one before it was done. `lanes` gives the
    share of lanes that the block before had in use.
    """
    last = 0.0

    def run_stage(row: pa.Table) -> pa.Table:
        nonlocal last
        envelope = Envelope.open(row)
        if envelope.stopped is not None:
            return row
        started = time.perf_counter()
        try:
            table = envelope.table if envelope.table is not None else shared(plan).slices_of(envelope.block)
            result = stage(table)
            started, last = max(started, last), time.perf_counter()
            timing = Timing(name, last - started, lanes())
            return replace(envelope, table=result, timings=(*envelope.timings, timing)).seal()
        except Exception as error:
            leave_if_fatal(name, error)
            logger.error("stage %s, block %d\n%s", name, envelope.block, safe(traceback.format_exc()))
            return replace(envelope, table=None, stopped=stop_reason(name, error)).seal()

    run_stage.__name__ = run_stage.__qualname__ = name
    return run_stage


def stage_task(name: str, group: Sequence[Stage], work: Any, plan: Any) -> Callable[[pa.Table], pa.Table]:
    """Stages for tasks; `work` and `plan` are references. They are made once per process."""
    group = ray.put(group)
    return guarded(name, lambda table: _chain(group, work)(table), plan)


@lru_cache(maxsize=16)
def _chain(group: Any, work: Any) -> Chain:
    return Chain(ray.get(group), shared(work))


def stage_actor(name: str) -> type:
    """A class for actors, in which loading the model cannot fail.

    Ray prints the whole traceback of a constructor several times; a failure waits for the first block, where
    it ends the run with one message. So does a model whose loading ends the process again and again.
    """

    class Actor:
        def __init__(self, group: Sequence[Stage], work: Any) -> None:
            chain = _loaded(name, group, work)
            made: list[Any] = [made for _, made in chain.steps] if isinstance(chain, Chain) else []
            # Of a sampler; no other stage has lanes.
            self.run = guarded(name, chain, lanes=lambda: sum(getattr(m, "lanes_in_use", 0.0) for m in made))

        def __call__(self, row: pa.Table) -> pa.Table:
            return self.run(row)

    Actor.__name__ = Actor.__qualname__ = name
    return Actor


def _loaded(name: str, group: Sequence[Stage], work: Any) -> OnBlock:
    try:
        with _counted_start(f"the model of stage {name}"):
            try:
                return Chain(group, ray.get(work))
            except Exception as error:
                leave_if_fatal(name, error)
                raise
    except Exception as error:
        failure = error

        def fail(_: pa.Table) -> pa.Table:
            raise failure

        return fail


@contextmanager
def _counted_start(what: str) -> Iterator[None]:
    """Around the loading of a model in an actor. Raises RunError if that has ended the process too often.

    Ray starts an actor anew as often as it dies, and Ray Data waits for it: a model that takes more memory
    than the node has would be loaded for ever. A file of the node counts; the actor's id stays the same.
    """
    actor = ray.get_runtime_context().get_actor_id()
    count = Path(tempfile.gettempdir(), f"clvp-start-{actor}")
    deaths = count.stat().st_size if count.exists() else 0
    try:
        if deaths >= MAX_DEATHS_LOADING:
            raise RunError(
                f"the process that loads {what} has died {deaths} times in a row on {socket.gethostname()}: "
                "is there enough memory for the model, and does the GPU work?"
            )
        with open(count, "wb", opener=storage.no_follow) as file:
            file.write(bytes(deaths + 1))
        yield
    finally:  # an exception is reported by itself; only what ends the process leaves its mark
        count.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def shared(reference: Any) -> Any:
    """The value of an object reference, read once per process."""
    return ray.get(reference)


def stop_reason(stage: str, error: Exception) -> ErrorRecord:
    """What to tell the user: our own errors speak for themselves, any other is named."""
    if not isinstance(error, ManifestError | RunError) and not type(error).__module__.startswith("clvp."):
        error = RunError(f"stage {stage} failed: {type(error).__name__}: {error}")
    return error_record(stage, error, MAX_RUN_MESSAGE_CHARS)


def raise_stopped(reason: ErrorRecord) -> None:
    """Raise in the driver what `stop_reason` recorded in a worker."""
    raise (ManifestError if reason["type"] == ManifestError.__name__ else RunError)(reason["message"])


def leave_if_fatal(name: str, error: Exception) -> None:
    """End the process if its device is lost: a new one, perhaps on another machine, takes the block."""
    if is_fatal(error):
        logger.critical("stage %s: the device is lost, the process ends: %s", name, safe(str(error)))
        os._exit(EXIT_DEVICE_LOST)
