"""A run that takes over the candidates of an earlier one and samples only what that one has not.

The tokens of candidate k do not depend on how many there are, so a run with 16 candidates is the beginning of
one with 64. The earlier output stays as it is; the new one becomes what a run with 64 from the start gives,
since all candidates are scored and ranked again. Where the earlier run kept only its best, those that it
dropped cannot be among the best of more.
"""

from dataclasses import replace

from pipeline.checkpoint import SOUND_FILES
from pipeline.description import Description, differences, load, retyped
from pipeline.errors import RunError
from pipeline.output.folder import OutputFolder
from pipeline.settings import ResultSettings
from pipeline.stages.sound import SOUND_COLUMNS


def check_extendable(earlier: OutputFolder, output: OutputFolder, now: Description) -> Description:
    """What the earlier run was told, if one described by `now` can extend it; else RunError says why not."""
    before = load(earlier)
    if before is None:
        raise RunError(f"{earlier.uri} holds no run to extend: there is no run.json in it")
    if earlier.uri == output.uri:
        raise RunError("a run is extended into an output of its own: name another folder as --output")
    before = retyped(earlier, before, now)
    old, new = before.results, now.results
    if not isinstance(old, ResultSettings) or not isinstance(new, ResultSettings):
        raise RunError(f"{earlier.uri} was not sampled but ranked only; there is nothing to extend")
    if new.num_candidates < old.num_candidates:
        counts = f"{old.num_candidates} candidates a row, more than {new.num_candidates}"
        raise RunError(f"{earlier.uri} has {counts}")
    kept, keep = old.scoring.keep, new.scoring.keep
    if kept is not None and (keep is None or keep > kept):
        raise RunError(
            f"{earlier.uri} kept the best {kept} candidates: a run that extends it can keep no more"
        )
    scoring = {**before.settings.get("scoring", {}), "keep": keep}
    more = {"num_candidates": new.num_candidates, "scoring": scoring}
    told = replace(before, settings={**before.settings, **more})
    if differing := differences(_without_sound(told), _without_sound(now)):
        raise RunError(f"{earlier.uri} cannot be extended with other settings: {'; '.join(differing)}")
    return replace(before, settings={**before.settings, "num_candidates": old.num_candidates})


def _without_sound(description: Description) -> Description:
    """What tokens and scores depend on: an earlier run's become sound in whatever way."""
    settings = {k: v for k, v in description.settings.items() if k not in ("waveform", "audio", "measuring")}
    files = {k: v for k, v in description.model_files.items() if k not in SOUND_FILES}
    columns = {k: v for k, v in description.columns.items() if k not in SOUND_COLUMNS}
    return replace(description, settings=settings, model_files=files, columns=columns, engine=None)
