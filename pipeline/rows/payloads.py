"""The column a job works on besides `id` and `text`: reference audio, or speech tokens that exist already.

A payload turns one manifest value (as Python sees it, whatever the manifest's format) into one Arrow type.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import RowError, is_unicode, public, shown
from pipeline.rows.memory import (
    MAX_CANDIDATES,
    MAX_CLIPS,
    MAX_EMBEDDED_BYTES,
    MAX_ID_CHARS,
    MAX_PATH_CHARS,
    MAX_TEXT_CHARS,
)

CLIP_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the `Audio` of `datasets`
AUDIO = pa.field("audio", pa.list_(CLIP_TYPE))
RANDOM_CLIP = "random://"  # before a name: the clip that stands for a random voice
SAMPLED_TYPE = pa.struct(
    [("candidate", pa.int16()), ("finished", pa.bool_()), ("speech_ids", pa.list_(pa.uint16()))]
)
SPEECH_IDS = pa.field("speech_ids", pa.list_(SAMPLED_TYPE))
# Candidates that an earlier run has stored; a block of a run that extends another one has this column too.
STORED = SPEECH_IDS.with_name("stored")


_as_json = json.JSONEncoder(default=lambda _: None).encode


@dataclass(frozen=True)
class Payload:
    column: str  # its name in the manifest
    field: pa.Field  # its name and type in the pipeline
    convert: Callable[[Any, str], Any]  # (value, folder of the manifest) -> value of `field`'s type; RowError
    replaced: tuple[str, ...] = ()  # columns of the manifest that the output has anew: they are not read
    named: bool = False  # whether a value names what it stands for, so that another name is another value

    @property
    def required(self) -> tuple[str, str, str]:
        """The columns that every file of a manifest must have."""
        return ("id", "text", self.column)

    def digest(self, text: Any, value: Any) -> int:
        """ROW_DIGEST of a row from its text and this column as the manifest holds them.

        Of audio it sees the names: the bytes of all clips would have to be read to find out what is to do.
        """
        names = [public(name) if isinstance(name, str) else name for name in paths_in(value)]
        seen = _as_json([text, names if self.named else []])
        return int.from_bytes(hashlib.blake2b(seen.encode(), digest_size=8).digest(), "little")


def taken(check: Callable[[Any], Any], value: Any) -> Any:
    """What a check makes of a value; the RowError that it raises or that stands for the value."""
    try:
        return value if isinstance(value, RowError) else check(value)
    except RowError as error:
        return error


def checked_id(value: Any) -> str:
    """A row's id as a string; whole numbers become decimal digits. Raises RowError for anything else."""
    if value is None or value == "":
        raise RowError("MissingId", "id is null or empty")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("InvalidId", f"id must be a string or a whole number, not {shown(value)}")
    text = str(value)  # JSON and Parquet have no whole number of so many digits that this fails
    if len(text) > MAX_ID_CHARS:
        raise RowError("InvalidId", f"id has {len(text):,} characters; at most {MAX_ID_CHARS:,}")
    if not is_unicode(text):
        raise RowError("InvalidId", f"id holds a lone surrogate: {shown(text)}")
    return text


def checked_text(value: Any) -> str:
    if value is None:
        raise RowError("MissingText", "text is null")
    if not isinstance(value, str):
        raise RowError("InvalidText", f"text must be a string, not {shown(value)}")
    if len(value) > MAX_TEXT_CHARS:
        message = f"the text has {len(value):,} characters, at most {MAX_TEXT_CHARS:,}: --split-text cuts it"
        raise RowError("TextTooLong", message)
    if not is_unicode(value):
        raise RowError("InvalidText", "text holds a lone surrogate, which is no Unicode text")
    return value


def paths_in(value: Any) -> list[Any]:
    """Paths of clips as the manifest gives them, in whatever form it gives them."""
    items = value if isinstance(value, list) else [value]
    paths = [item.get("path") if isinstance(item, dict) else item for item in items]
    return [path for path in paths if path is not None]


def audio_clips(value: Any, folder: str) -> list[dict[str, Any]]:
    """Clips of one voice from a path, a `{bytes, path}` struct, or a list of either."""
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
        raise RowError("MissingAudio", "audio is null or an empty list")
    if len(values) > MAX_CLIPS:
        raise RowError("TooManyClips", f"audio lists {len(values):,} clips; at most {MAX_CLIPS} are used")
    return [_audio_clip(item, folder) for item in values]


def _audio_clip(value: Any, folder: str) -> dict[str, Any]:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if data is not None:
        if not isinstance(data, bytes):
            problem = "audio.bytes must be binary (Parquet); JSON can only hold a path"
            raise RowError("InvalidAudioValue", problem)
        if len(data) > MAX_EMBEDDED_BYTES:
            problem = f"audio has {len(data):,} bytes; at most {MAX_EMBEDDED_BYTES:,}"
            raise RowError("ValueTooLarge", problem)
        return {"bytes": data, "path": path if isinstance(path, str) else None}
    if path is None or path == "":
        raise RowError("MissingAudio", "audio holds neither bytes nor a path")
    problem = ""
    if not isinstance(path, str):
        problem = f"audio must be a path, a list of paths or {{bytes, path}}, not {shown(path)}"
    elif len(path) > MAX_PATH_CHARS:
        problem = f"the audio path has {len(path):,} characters; at most {MAX_PATH_CHARS:,}"
    elif path.endswith("|"):
        problem = f"{shown(path)} is a command, and none is run: name a file"
    elif "\0" in path:
        problem = "the audio path holds a NUL character"
    elif not is_unicode(path):
        problem = "the audio path holds a lone surrogate, which is no Unicode text"
    if problem:
        raise RowError("InvalidAudioValue", problem)
    # Credentials and options come from whoever named the host, never from a row (`storage.placed`).
    return {"bytes": None, "path": storage.bare(storage.join(folder, path))}


def speech_candidates(value: Any, folder: str) -> list[dict[str, Any]]:
    """Candidates of one row: a list of tokens, a list of such lists, a list of structs with `speech_ids`,
    `finished` and `candidate` (what a run's output holds), or any of them as JSON text.

    Tokens come without start and stop token. Where `finished` is not given, a candidate counts as finished.
    """
    if value and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("InvalidSpeechIds", f"speech_ids is text but no JSON list: {error}") from error
    if value in (None, "", []):
        raise RowError("MissingSpeechIds", "speech_ids is null or empty")
    if not isinstance(value, list):
        raise RowError("InvalidSpeechIds", f"speech_ids must be a list, not {shown(value)}")
    items = value if all(isinstance(item, list | dict) for item in value) else [value]
    if len(items) > MAX_CANDIDATES:
        raise RowError("InvalidSpeechIds", f"{len(items):,} candidates; at most {MAX_CANDIDATES:,} in a row")
    return [_speech_candidate(index, item) for index, item in enumerate(items)]


def _speech_candidate(index: int, item: Any) -> dict[str, Any]:
    given = item if isinstance(item, dict) else {"speech_ids": item}
    tokens = given.get("speech_ids")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**16 for token in tokens):
        problem = f"candidate {index}: speech_ids must be whole numbers from 0 to 65535"
        raise RowError("InvalidSpeechIds", problem)
    number, finished = given.get("candidate"), given.get("finished")
    return {
        "candidate": index if number is None else number,
        "finished": True if finished is None else finished,
        "speech_ids": tokens,
    }


AUDIO_PAYLOAD = Payload("audio", AUDIO, audio_clips, named=True)
SPEECH_PAYLOAD = Payload("speech_ids", SPEECH_IDS, speech_candidates)

# The `data` files of a finished run, to be ranked again: candidate index and `finished` stay.
STORED_PAYLOAD = Payload(
    "candidates",
    SPEECH_IDS,
    speech_candidates,
    replaced=("seed", "voice_key", "row_digest", "unknown_tokens"),
)
