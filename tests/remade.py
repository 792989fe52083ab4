"""Stages of a run that are made otherwise: stand-ins, and such as fail."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pipeline import stages
from pipeline.settings import Run
from pipeline.stages import OnBlock, Stage, Work

Make = Callable[[Work], OnBlock]


def remade(changes: Mapping[str, Callable[[Make], Make]]) -> Callable[[Run], list[Stage]]:
    """In the place of `stages.declared`: the stages of these names as they are made of how they were made."""
    declared = stages.declared

    def changed(run: Run) -> list[Stage]:
        return [
            replace(stage, make=changes[stage.name](stage.make)) if stage.name in changes else stage
            for stage in declared(run)
        ]

    return changed
