"""Stage 7, one for each measure: numbers and words that other models give to the sound of a row.

What is measured is what is stored: the encoded waveforms, each alone. A measure is a class of `clvp.quality`
or one of the user's own; its columns join those of the measures before it.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import soxr

from clvp.quality import Measure, Value, find_measure
from pipeline.description import check_alike
from pipeline.errors import ERROR, RowError
from pipeline.rows.columns import CANDIDATES, ENGINE, TEXT, VOICE_KEY, map_rows, set_columns
from pipeline.rows.memory import SAMPLE_RATE
from pipeline.rows.payloads import AUDIO
from pipeline.settings import AudioSettings
from pipeline.stages.sound import (
    BEST,
    MEASURED,
    MEASURED_TYPE,
    OTHERS,
    RANDOM_KEY,
    kept,
    sound_fields,
    with_facts,
)

ARROW_TYPES = {float: pa.float64(), int: pa.int64(), str: pa.string()}
VOICES_CACHED = 64  # reference clips, half a megabyte each
MEMORY = 1 << 30  # bytes of a process: torch, and what all named measures listen with

Decode = Callable[[dict[str, Any]], Any]  # a clip to float32 [N] of SAMPLE_RATE


def measured_field(names: Sequence[str]) -> pa.Field:
    """The column `measures` once these measures were taken.

    Raises ImportError or ValueError for a measure that cannot be used, or a column that two of them have.
    """
    fields = list(MEASURED_TYPE)
    for name in names:
        for column, kind in find_measure(name).columns.items():
            if column.lower() in {field.name.lower() for field in fields}:
                raise ValueError(f"measure {name}: its column {column!r} exists already")
            fields.append(pa.field(column, ARROW_TYPES[kind]))
    return MEASURED.with_type(pa.list_(pa.struct(fields)))


def measure_input(names: Sequence[str], settings: AudioSettings) -> pa.Schema:
    """What the last of these measures needs."""
    clips = [AUDIO, VOICE_KEY] if _needs_reference(find_measure(names[-1])) else []
    sounds = [field for field in sound_fields(settings) if field in (BEST, OTHERS)]
    return pa.schema([TEXT, *clips, CANDIDATES, *sounds, measured_field(names[:-1]), ENGINE, ERROR])


class Measurer:
    """Callable on a block; holds what the last of the measures `names` listens with.

    Raises RunError when its facts are not `expected_facts`.
    """

    def __init__(
        self, names: Sequence[str], measure: Measure, decode: Decode, expected_facts: Mapping[str, Any] | None
    ) -> None:
        self.name, self.measure, self.decode = names[-1], measure, decode
        self.field = measured_field(names)
        self.facts = dict(measure.facts()) if hasattr(measure, "facts") else {}
        problem = f"what {self.name} measures here may differ from what the output holds"
        check_alike(expected_facts, self.facts, self.name, problem, same="files and versions")
        self.references: dict[str, np.ndarray] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        measured, table = map_rows(table, self.name, lambda i: self._measured(table, i))
        before = json.loads(table["engine"][0].as_py() or "{}").get("measures", {})  # in all rows alike
        facts = {"measures": {**before, self.name: self.facts}}
        return set_columns(table, {self.field: measured, ENGINE: with_facts(table["engine"], facts)})

    def _measured(self, table: pa.Table, i: int) -> list[dict[str, Any]]:
        text, known = table["text"][i].as_py(), table[self.field.name][i].as_py()
        items = []
        for item, sound in zip(known, stored_sounds(table, i), strict=True):
            waveform_N, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
            found = self.measure(waveform_N, rate, text, self._reference(table, i, rate))
            if missing := self.measure.columns.keys() - found.keys():
                raise RowError("MissingMeasure", f"the measure gave no {', '.join(sorted(missing))}")
            items.append(item | {n: _value(found[n], kind) for n, kind in self.measure.columns.items()})
        return items

    def _reference(self, table: pa.Table, i: int, rate: int) -> np.ndarray:
        """The clips of the row's voice one after the other, float32 [N]; empty without any, or need."""
        if not _needs_reference(self.measure) or table["voice_key"][i].as_py().startswith(RANDOM_KEY):
            return np.zeros(0, np.float32)

        def make() -> np.ndarray:
            clips = [np.asarray(self.decode(clip)) for clip in table["audio"][i].as_py()]
            return np.asarray(soxr.resample(np.concatenate(clips), SAMPLE_RATE, rate), np.float32)

        return kept(self.references, table["voice_key"][i].as_py(), VOICES_CACHED, make)


def stored_sounds(table: pa.Table, i: int) -> list[bytes]:
    """The files of the row's candidates that have sound, the best first."""
    others = table[OTHERS.name][i].as_py() if OTHERS.name in table.column_names else []
    return [table[BEST.name][i].as_py()["bytes"], *(item["audio"]["bytes"] for item in others)]


def _needs_reference(measure: Any) -> bool:
    return bool(getattr(measure, "needs_reference", True))


def _value(value: Value, kind: type) -> Value:
    """As it is stored: null for a number that is not finite."""
    if value is None or (kind is float and not math.isfinite(float(value))):
        return None
    return kind(value)
