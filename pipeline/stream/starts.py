"""Counts how often an actor's process has died while it loaded its model.

Ray starts an actor anew as often as it dies, and Ray Data waits for it: a model that takes more memory than
the node has would be loaded for ever. The count lies in the cluster's key-value store, under the actor's id,
which stays the same over restarts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.experimental import internal_kv

from pipeline.errors import RunError

MAX_DEATHS = 3
_NAMESPACE = "clvp_starts"


@contextmanager
def counted_start(what: str) -> Iterator[None]:
    """Around the loading of a model in an actor. Raises RunError if that has ended the process too often."""
    key = ray.get_runtime_context().get_actor_id()
    if key is None:  # not in an actor
        yield
        return
    deaths = int(internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or 0)
    if deaths >= MAX_DEATHS:
        raise RunError(
            f"the process that loads {what} has died {deaths} times in a row, the last time on this node: "
            "is there enough memory for the model, and does the GPU work?"
        )
    internal_kv._internal_kv_put(key, str(deaths + 1), namespace=_NAMESPACE)
    try:
        yield
    finally:  # an exception is reported by itself; only what ends the process leaves its mark
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
