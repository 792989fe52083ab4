"""What several stages say of voices and of sound: columns, and how they are made. Loads no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.rows.columns import ENGINE, EXTRA_PREFIX
from pipeline.rows.payloads import CLIP_TYPE
from pipeline.settings import AudioSettings, ResultSettings

Value = TypeVar("Value")

# The log-mels of a voice: float32 [clips, 80, frames] as bytes, null where the row has an error.
VOICE = pa.field("voice", pa.dictionary(pa.int32(), pa.large_binary()))

# The same at 24 kHz, float32 [pieces, 100, 401], for what makes sound.
SPOKEN_VOICE = VOICE.with_name("spoken_voice")

RANDOM_KEY = "random-"  # before the digest of latents

MEASURES = pa.schema(
    [
        ("duration_s", pa.float32()),
        ("peak", pa.float32()),  # the largest sample; 1: full scale
        ("rms_dbfs", pa.float32()),
        ("clipped_share", pa.float32()),  # of samples at full scale
    ]
)
BEST = pa.field(f"{EXTRA_PREFIX}audio", CLIP_TYPE)
BEST_MEASURES = pa.field(f"{EXTRA_PREFIX}audio_measures", pa.struct(MEASURES))
# Of the candidates after the best that were asked for.
OTHERS_TYPE = pa.struct([("rank", pa.int16()), ("candidate", pa.int16()), ("audio", CLIP_TYPE), *MEASURES])
OTHERS = pa.field(f"{EXTRA_PREFIX}more_audio", pa.list_(OTHERS_TYPE))

# Of all candidates with sound, by rank; every measure adds its columns.
MEASURED_TYPE = pa.struct(
    [
        ("rank", pa.int16()),
        ("candidate", pa.int16()),
        ("mean_log_probability", pa.float64()),  # of its tokens under the speech decoder, in nats
    ]
)
MEASURED = pa.field(f"{EXTRA_PREFIX}measures", pa.list_(MEASURED_TYPE))

SOUND_COLUMNS = tuple(f.name.removeprefix(EXTRA_PREFIX) for f in (BEST, BEST_MEASURES, OTHERS, MEASURED))


def output_of(settings: ResultSettings) -> pa.Schema:
    """What the stage `waveform` gives."""
    measured = [MEASURED] if settings.measuring.measure else []
    return pa.schema([*sound_fields(settings.audio), *measured, ENGINE])


def sound_fields(settings: AudioSettings) -> list[pa.Field]:
    """The columns of a row's sound: the best candidate's, and where more are asked for, the others'."""
    return [BEST, BEST_MEASURES, *([OTHERS] if settings.most > 1 else [])]


def sound_columns(made: Sequence[Sequence[dict[str, Any]] | None]) -> dict[str, list[Any]]:
    """The columns [n] of the rows' sounds by name, best first; null where a row has none."""
    best = [row[0] if row else None for row in made]
    ranked = [row and [{**item, "rank": rank} for rank, item in enumerate(row, 1)] for row in made]
    return {
        BEST.name: [item and item["audio"] for item in best],
        BEST_MEASURES.name: [item and {name: item[name] for name in MEASURES.names} for item in best],
        OTHERS.name: [row and row[1:] for row in ranked],
        MEASURED.name: ranked,
    }


def with_facts(engines: pa.ChunkedArray, facts: Mapping[str, Any]) -> list[str]:
    """The column ENGINE with more facts in each row."""
    known = [json.loads(engine or "{}") for engine in engines.to_pylist()]
    return [json.dumps({**engine, **facts}, sort_keys=True) for engine in known]


def kept(cache: dict[str, Value], key: str, most: int, make: Callable[[], Value]) -> Value:
    """What belongs to a voice, made once and kept in `cache` among the `most` that were used last."""
    value = cache.pop(key, None)
    cache[key] = value = make() if value is None else value
    if len(cache) > most:
        del cache[next(iter(cache))]
    return value
