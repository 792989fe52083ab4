"""Rows that are made of a manifest's rows: each in voices that a folder holds, long texts as utterances."""

import fnmatch
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from clvp.text.split import DESIRED_CHARACTERS, split_text
from pipeline import storage
from pipeline.errors import ManifestError, RowError, shown
from pipeline.rows.formats import AUDIO, Row
from pipeline.rows.manifest import RANDOM, ManifestFile, Reading
from pipeline.rows.payloads import RANDOM_CLIP, checked_id, taken

Voices = Mapping[str, Sequence[str]]  # the clips of each, relative to the folder of all


def find_voices(reading: Reading) -> Voices:
    """The voices of `reading.voices`: folders with clips, and clips; none where it names no folder.

    Raises ManifestError where there are none, or not all of those that every row is to be made in.
    """
    if reading.voices is None:
        return {}
    folder = storage.absolute(reading.voices)
    try:
        found = storage.expand(folder)
    except Exception as error:  # filesystems of fsspec raise their own kinds
        raise ManifestError(f"voices {folder}: {error}") from error
    head = storage.split_query(folder)[0].rstrip("/") + "/"
    voices: dict[str, list[str]] = {}
    for uri in found:
        path = storage.split_query(uri)[0].removeprefix(head)
        if path.lower().endswith(AUDIO):
            name, inside, _ = path.partition("/")
            voices.setdefault(name if inside else os.path.splitext(name)[0], []).append(path)
    if not voices:
        raise ManifestError(f"voices {folder}: no folder in it has a clip ({' '.join(AUDIO)})")
    if RANDOM in voices:
        problem = f"{RANDOM} is the voice that belongs to nobody; rename its clips"
        raise ManifestError(f"voices {folder}: {problem}")
    voices_of_all(reading, voices)
    return voices


def voices_of_all(reading: Reading, voices: Voices) -> list[str]:
    """The voices that every row is made in; none where the rows say it. Raises ManifestError for one without
    clips.
    """
    names: list[str] = []
    for name in reading.told:
        matching = fnmatch.filter(sorted(voices), name) if "*" in name else []
        names += matching or [name]
        try:
            clips_of(names[-1], voices)
        except RowError as error:
            raise ManifestError(f"--voice {reading.voice}: {error}") from error
    return [*dict.fromkeys(names)]


def clips_of(voice: Any, voices: Voices, name_of_random: str = "") -> list[str]:
    """The clips of a voice, or of several with & between them; what stands for those of a random one.

    Raises RowError.
    """
    if voice is None or voice == "":
        raise RowError("MissingVoice", "voice is null or empty")
    if voice == RANDOM:  # the digest of a name is never too long, and has no wildcards
        return [RANDOM_CLIP + hashlib.blake2b(name_of_random.encode(), digest_size=16).hexdigest()]
    parts = [str(voice)] if str(voice) in voices else [name.strip() for name in str(voice).split("&")]
    for name in parts:
        if name not in voices:
            known = ", ".join(sorted(voices)[:20]) + (" …" if len(voices) > 20 else "")
            problem = f"the voice {shown(name)} has no clips; those with clips are {known}"
            raise RowError("UnknownVoice", problem)
    return [clip for name in dict.fromkeys(parts) for clip in voices[name]]


def rows_made_of(
    row: Mapping[str, Any], size: int, file: ManifestFile, voices: Voices, of_all: Sequence[str]
) -> Iterator[tuple[Row, int]]:
    """What a row of a manifest becomes, in columns of our own names, and the bytes of each.

    A row without a usable id becomes the RowError that says so; where there is no such voice, its clips do.
    """
    names, reading, clips_column = file.names, file.reading, file.payload.column
    row_id = taken(checked_id, file.ids([row.get(names["id"])])[0])
    if isinstance(row_id, RowError):
        yield row_id, size
        return
    made = {name: row.get(name, file.hive.get(name)) for name in file.passing}
    made |= {"text": row.get(names["text"]), clips_column: row.get(names.get(clips_column, ""))}
    is_text, length = isinstance(made["text"], str), reading.split_text
    length = DESIRED_CHARACTERS if length is True else length
    utterances = split_text(made["text"], length, length * 3 // 2) if length and is_text else []
    told: Sequence[Any] = of_all or [row.get(names.get("voice", ""))]
    for voice in told:
        made["id"] = f"{row_id}/{voice}" if reading.crosses else row_id
        if reading.voiced:
            # The parts of a text have one voice, also a random one.
            clips = taken(partial(clips_of, voices=voices, name_of_random=made["id"]), voice)
            made |= {"voice": voice, clips_column: clips}
        if not length:
            yield made.copy(), size
            continue
        texts: list[Any] = [part.text for part in utterances] or [made["text"]]
        pauses = [*(part.pause_s for part in utterances[:-1]), None]
        for number, (text, pause) in enumerate(zip(texts, pauses, strict=True), 1):
            part = {"text": text, "id": f"{made['id']}/{number:04}", "part_of": made["id"], "part": number}
            rest = max(size - len(made["text"]), 0) + len(text) if is_text else size
            yield {**made, **part, "pause_s": pause}, rest
