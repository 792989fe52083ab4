"""What Ray Data's executor tells of stages that are at work."""

import time
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.mark.slow
def test_the_states_of_a_stream(ray_instance: None) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from pipeline.stream.states import StageState, waits_for
    from pipeline.stream.watch import watch

    class Model:
        def __init__(self) -> None:
            time.sleep(2)

        def __call__(self, batch: Any) -> Iterator[Any]:
            time.sleep(2)
            yield batch

    def read(batch: Any) -> Any:
        return batch

    seen: list[list[StageState]] = []
    watch(seen.append)
    try:
        one = ActorPoolStrategy(size=1)
        rows = ray.data.range(2).map_batches(read, num_cpus=0.5)
        assert rows.map_batches(Model, compute=one, num_cpus=0.25, batch_size=1).count() == 2
    finally:
        DataContext.get_current().custom_execution_callback_classes = []
    models = [state for states in seen for state in states if "Model" in state.name]
    assert {(state.actors, state.starting) for state in models} >= {(0, 1), (1, 0)}
    assert max(state.busy for state in models) == 1
    assert any(waits_for(states) == f"loading the weights of {models[0].name}" for states in seen)
    assert waits_for(seen[-1]) == ""
