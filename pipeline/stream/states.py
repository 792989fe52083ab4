"""What stages are at, and what they wait for."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class StageState:
    """The tasks or actors of one stage."""

    name: str
    busy: int  # of them at work on a block
    actors: int | None  # that are ready; None for tasks
    starting: int = 0  # actors that wait for a node, or load a model
    lacks: str = ""  # "GPU" or "CPU" where they want one and the cluster has none


def waits_for(states: Iterable[StageState]) -> str:
    """What stages wait for that have no actor yet, in words."""
    waiting = [state for state in states if state.starting and not state.actors]
    if lacking := sorted({state.lacks for state in waiting if state.lacks}):
        return f"waiting for a {' and a '.join(lacking)} node"
    names = " and ".join(", ".join(state.name for state in waiting).rsplit(", ", 1))
    return f"loading the weights of {names}" if waiting else ""


def busy_now(states: Iterable[StageState]) -> str:
    """The workers at work, of those that are ready, in words."""
    counts = [(state, "" if state.actors is None else f"/{state.actors}") for state in states]
    texts = [f"{state.name} {state.busy}{ready}" for state, ready in counts if state.busy or state.actors]
    return f"busy: {', '.join(texts)}" if texts else ""
