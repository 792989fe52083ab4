"""What the stages of a stream are at right now, as Ray Data's executor knows it.

The executor calls its callbacks in each of its steps. It makes them of classes in its context, which travels
to the workers: a class of a module travels as its name, and whom it tells is set in the driver alone.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator

from pipeline.stream.states import StageState

PAUSE = 0.5  # seconds between two looks


class Watch(ExecutionCallback):
    tell: ClassVar[list[Callable[[list[StageState]], None]]] = []
    looked = 0.0

    def on_execution_step(self, executor: Any) -> None:
        if time.monotonic() - self.looked >= PAUSE:
            self.looked = time.monotonic()
            for tell in self.tell:
                tell(_states(executor._topology))


def watch(tell: Callable[[list[StageState]], None]) -> None:
    """Have `tell` called with the states of the stages now and then, in streams that begin from now on."""
    Watch.tell = [tell]
    DataContext.get_current().custom_execution_callback_classes = [Watch]


def _states(operators: Iterable[Any]) -> list[StageState]:
    found = []
    for operator in operators:
        name = operator.name.removeprefix("MapBatches(").removesuffix(")")
        if isinstance(operator, ActorPoolMapOperator):
            info = operator.get_actor_info()
            starting = info.pending + info.restarting
            lacks = _lacking(operator._ray_remote_args) if starting and not info.running else ""
            found.append(StageState(name, info.active, info.running, starting, lacks))
        elif isinstance(operator, MapOperator):
            found.append(StageState(name, operator.num_active_tasks(), None))
    return found


def _lacking(wanted: dict[str, Any]) -> str:
    there = ray.cluster_resources()
    kinds = {"GPU": wanted.get("num_gpus"), "CPU": wanted.get("num_cpus")}
    return next((kind for kind, amount in kinds.items() if amount and not there.get(kind)), "")
