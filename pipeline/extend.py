"""A run that takes over the candidates of an earlier one and samples only what that one has not.

The tokens of candidate k do not depend on how many there are, so a run with 16 candidates is the beginning of
one with 64. The earlier output stays as it is; the new one becomes what a run with 64 from the start gives,
since all candidates are scored and ranked again. Where the earlier run kept only its best, those that it
dropped cannot be among the best of more.
"""

import copy
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.description import ENGINE, Description, differences, read_description, write
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.output.stored_candidates import StoredCandidates, open_stored


@dataclass(frozen=True)
class Extended:
    """The earlier run."""

    output: OutputFolder
    description: Description

    @property
    def sampled(self) -> int:
        return int(_results(self.description)["num_candidates"])

    def inherit_engine(self, output: OutputFolder, description: Description) -> Description:
        """The new run's description with the facts of the engine that drew the first candidates."""
        if description[ENGINE] is None and self.description[ENGINE] is not None:
            description = {**description, ENGINE: self.description[ENGINE]}
            write(output, description)
        return description

    def open(self) -> StoredCandidates:
        return open_stored(self.output, self.sampled)


def check_extendable(source: str, output: OutputFolder, now: Description) -> Extended:
    """The run in `source`, if a run described by `now` can extend it; else RunError says why not."""
    folder = OutputFolder(storage.absolute(source))
    before = read_description(folder)
    if before is None:
        raise RunError(f"{folder.uri} holds no run to extend: there is no run.json in it")
    if folder.uri == output.uri:
        raise RunError("a run is extended into an output of its own: name another folder as --output")
    if "ResultSettings" not in before.get("settings", {}):
        raise RunError(f"{folder.uri} was not sampled but ranked only; there is nothing to extend")
    old, new = _results(before), _results(now)
    if new["num_candidates"] < old["num_candidates"]:
        raise RunError(
            f"{folder.uri} has {old['num_candidates']} candidates a row, more than {new['num_candidates']}"
        )
    kept = old["scoring"]["keep"]
    if kept is not None and (new["scoring"]["keep"] is None or new["scoring"]["keep"] > kept):
        raise RunError(
            f"{folder.uri} kept the best {kept} candidates: a run that extends it can keep no more"
        )
    aligned = copy.deepcopy(before)
    _results(aligned)["num_candidates"] = new["num_candidates"]
    _results(aligned)["scoring"]["keep"] = new["scoring"]["keep"]
    differing = differences(aligned, now)
    if differing:
        raise RunError(f"{folder.uri} cannot be extended with other settings: {'; '.join(differing)}")
    return Extended(folder, before)


def _results(description: Description) -> dict[str, Any]:
    return description["settings"]["ResultSettings"]
