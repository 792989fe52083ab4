"""Rows that may be to blame for the death of a process, each tried alone, stage by stage.

Every stage runs in a process of its own that takes nothing else with it. A row whose process dies twice in
the same stage is in the error table afterwards as `ProcessDied`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.errors import RowError, RunError, error_record
from pipeline.rows.columns import EXTRA_PREFIX
from pipeline.rows.plan import make_plan, source_of
from pipeline.rows.scan import RowIndex
from pipeline.stages import ModelStage, Preparation, Work, model_stages
from pipeline.stages.write import lost_row
from pipeline.stream.cluster import LOST, Cluster, summary
from pipeline.stream.envelope import Envelope, Timing
from pipeline.stream.workers import guarded, on_table, raise_stopped, stage_actor

TRIES = 2

Call = Callable[[Any], Any]  # a row as an object reference to the next one


class _Died(Exception):
    """The process of a stage has died with the row in every try."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(stage)
        self.stage = stage
        self.cause = cause


def rows_alone(
    work: Work,
    cluster: Cluster,
    recipe: Preparation,
    index: RowIndex,
    todo: np.ndarray,
    most_deaths: int | None,
) -> Iterator[tuple[tuple[Timing, ...], dict[str, Any]]]:
    """Timings and report of each row at the positions `todo`.

    Raises what a stage raises for the run, and RunError when more than `most_deaths` rows in a row end their
    process.
    """
    stages = _Stages(work, cluster, recipe)
    deaths = 0
    try:
        for position in todo:
            try:
                row = stages.run(index, position)
                deaths = 0
            except _Died as error:
                deaths += 1
                if most_deaths is not None and deaths > most_deaths:
                    raise RunError(
                        f"stage {error.stage} died with each of the last {deaths} rows ({_reason(error)}); "
                        "it is not the rows"
                    ) from error
                row = Envelope(0, _died_row(work, index, position, error))
            assert row.table is not None
            for report in work.writer(row.table).to_pylist():
                yield row.timings, report
    finally:
        stages.close()


def _died_row(work: Work, index: RowIndex, position: int, error: _Died) -> pa.Table:
    location = index.locations[position]
    source = source_of(work.manifest, int(location["file"]), int(location["row"]))
    problem = RowError(
        "ProcessDied", f"the process of this stage died each of {TRIES} times with the row: {_reason(error)}"
    )
    extra = [field.with_name(EXTRA_PREFIX + field.name) for field in work.manifest.extra]
    return lost_row(index.ids[position].as_py(), source, error_record(error.stage, problem), extra)


def _reason(error: _Died) -> str:
    if isinstance(error.cause, ray.exceptions.OutOfMemoryError):
        return "out of memory"
    return f"a crash in native code, or out of memory ({type(error.cause).__name__})"


class _Stages:
    """The stages as calls, each tried again in a new process when its process dies."""

    def __init__(self, work: Work, cluster: Cluster, recipe: Preparation) -> None:
        self.cluster = cluster
        self.recipe = recipe
        self.models = model_stages(work)
        self.actors: dict[str, Any] = {}

    def run(self, index: RowIndex, position: int) -> Envelope:
        """One row through all stages but the last. Raises _Died."""
        recipe, slices = self.recipe, make_plan(index, np.array([position]), 1).block(0)
        first = ray.put(Envelope(0).seal())
        row = self._call("read", self._task("read", lambda _: recipe.read(slices)), first)
        row = self._call("audio", self._task("audio", on_table(recipe.hear)), row)
        for stage in self.models:
            row = self._call(stage.name, partial(self._run_model, stage), row)
        envelope = Envelope.open(ray.get(row))
        if envelope.stopped is not None:
            raise_stopped(envelope.stopped)
        return envelope

    def _task(self, name: str, stage: Callable[[Envelope], pa.Table]) -> Call:
        task = ray.remote(guarded(name, stage))
        return task.options(num_cpus=self.cluster.task_cpus, max_retries=0).remote

    def _call(self, name: str, call: Call, row: Any) -> Any:
        for attempt in range(1, TRIES + 1):
            reference = call(row)
            try:
                ray.get(reference)
                return reference
            except LOST as error:
                self._end_actor(name)
                if attempt == TRIES:
                    raise _Died(name, error) from error
            except ray.exceptions.RayError as error:
                raise RunError(f"stage {name} failed: {summary(error)}") from error
        raise AssertionError("TRIES is at least 1")

    def _run_model(self, stage: ModelStage, row: Any) -> Any:
        return self._actor(stage).run.remote(row)

    def _actor(self, stage: ModelStage) -> Any:
        if stage.name not in self.actors:
            options = {**self.cluster.resources(stage.pool, stage.gpu_share), "max_restarts": 0}
            self.actors[stage.name] = _actor_class(stage.name).options(**options).remote(stage.load)
        return self.actors[stage.name]

    def _end_actor(self, name: str) -> None:
        actor = self.actors.pop(name, None)
        if actor is not None:
            ray.kill(actor)

    def close(self) -> None:
        for name in list(self.actors):
            self._end_actor(name)


def _actor_class(name: str) -> Any:
    stage = stage_actor(name)

    class Alone(stage):  # type: ignore[misc, valid-type]
        def run(self, row: pa.Table) -> pa.Table:
            return self(row)

    return ray.remote(Alone)
