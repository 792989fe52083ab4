"""Manifests that are text or tars: for each format a generator of its rows, and the bytes that each took.

A row is a dict of columns, or the `RowError` that says why it is none. CSV has no types: every value is the
text as it is written, so ids keep their leading zeros.
"""

import csv
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, TextIO

from pipeline import storage
from pipeline.errors import ManifestError, RowError, is_unicode, shown
from pipeline.rows.memory import MAX_COLUMNS, MAX_JSON_CONTAINERS, MAX_JSON_DEPTH, MAX_RECORD_BYTES

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}  # by first bytes
COMPRESSED = ("", ".gz", ".zst", ".bz2")
SUFFIXES = {  # of files, by the reader of their rows
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow",),
    "jsonl": tuple(name + more for name in (".jsonl", ".ndjson", ".json") for more in COMPRESSED),
    "csv": tuple(name + more for name in (".csv", ".tsv") for more in COMPRESSED),
    "kaldi": ("wav.scp",),
    "webdataset": (".tar",),
    "txt": tuple(".txt" + more for more in COMPRESSED),
}
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".mp4", ".wma", ".aiff", ".sph")

Row = dict[str, Any] | RowError
Rows = Iterator[tuple[Row, int]]


@contextmanager
def open_text(uri: str) -> Iterator[TextIO]:
    """A file's lines, which end in a line feed; its first bytes tell compression and UTF-16.

    Bytes that are no UTF-8 become lone surrogates, which mark a row as malformed.
    """
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        head = stream.read(4)
    compression = next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)
    with filesystem.open_input_stream(path, compression=compression) as stream:
        reader = io.BufferedReader(stream, buffer_size=1 << 20)
        wide = reader.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        yield io.TextIOWrapper(reader, "utf-16" if wide else "utf-8-sig", "surrogateescape", newline="\n")


def _lines(stream: TextIO) -> Iterator[str]:
    """Of a line over MAX_RECORD_BYTES the beginning, one character over the limit."""
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        yield line
        while len(line) > MAX_RECORD_BYTES and not line.endswith("\n"):
            line = stream.readline(MAX_RECORD_BYTES + 1)


def _not_blank(stream: TextIO) -> Iterator[str]:
    return (line for line in _lines(stream) if not line.isspace())


def _problem(line: str) -> RowError | None:
    if len(line) > MAX_RECORD_BYTES:
        return RowError("RecordTooLong", f"the line has more than {MAX_RECORD_BYTES:,} characters")
    if not line.isascii() and not is_unicode(line):
        return RowError("MalformedRow", "the line is not valid UTF-8; `iconv` turns a file into it")
    return None


# ---- JSON lines: our own columns, those of NeMo, cuts of lhotse ----


def jsonl_rows(uri: str) -> Rows:
    with open_text(uri) as stream:
        for line in _not_blank(stream):
            yield _problem(line) or _parse_json(line), len(line)


def _parse_json(line: str) -> Row:
    # Every list and object takes 30 times its characters, every level a frame of native code later on.
    brackets = line.count("[") + line.count("{")
    try:
        if brackets > MAX_JSON_CONTAINERS:
            raise ValueError(f"it has more than {MAX_JSON_CONTAINERS:,} lists and objects")
        value = json.loads(line)
        if brackets > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    except (ValueError, RecursionError) as error:
        return RowError("MalformedRow", f"the line is not valid JSON: {error}")
    if not isinstance(value, dict) or not value:
        return RowError("MalformedRow", f"the line holds no JSON object with columns: {shown(value)}")
    if len(value) > MAX_COLUMNS:
        return RowError("MalformedRow", f"the line has {len(value):,} columns; at most {MAX_COLUMNS:,}")
    if not is_unicode("".join(value)):
        return RowError("MalformedRow", "the name of a column holds a lone surrogate")
    if "supervisions" in value and "recording" in value:
        return _lhotse_cut(value)
    if "audio_filepath" in value and value.get("offset"):
        return _from_the_middle(value["offset"])
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _lhotse_cut(cut: dict[str, Any]) -> Row:
    if cut.get("start"):
        return _from_the_middle(cut["start"])
    try:
        spoken = cut["supervisions"]
        return {
            "id": cut["id"],
            "text": " ".join(part["text"] for part in spoken),
            "audio": [source["source"] for source in cut["recording"]["sources"]],
            "speaker": spoken[0].get("speaker"),
            "duration": cut.get("duration"),
        }
    except (LookupError, TypeError, AttributeError) as error:
        return RowError("MalformedRow", f"the cut has no text or no recording: {error!r}")


def _from_the_middle(seconds: Any) -> RowError:
    message = f"the utterance begins {shown(seconds)} s into its recording: store it as a file of its own"
    return RowError("UnsupportedAudio", message)


# ---- tables ----


def csv_rows(uri: str, separator: str | None, names: Collection[str]) -> Rows:
    """Rows of a table whose first line names the columns.

    Where lines have bars, and none of `names` is in the first one, they are of LJSpeech: `id|text|normalized
    text` or `path|text|speaker`. Raises ManifestError for a header that cannot be used.
    """
    with open_text(uri) as stream:
        lines = _lines(stream)
        first = next((line for line in lines if not line.isspace()), "")
        separator = separator or max(",\t;|", key=first.count)
        header, _ = next(_records(iter([first]), separator, 0), ([], 0))
        if isinstance(header, RowError):
            raise ManifestError(f"manifest file {uri}: the header cannot be read: {header}")
        make = _ljspeech
        if separator != "|" or set(names) & set(header):
            if len(set(header)) < len(header):
                problem = f"column names must be unique, they are {shown(header)}"
                raise ManifestError(f"manifest file {uri}: {problem}")
            # Without a name: the index that pandas writes.
            header = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
            make, first = partial(_named, header), ""
        for fields, size in _records(chain([first] if first else [], lines), separator, len(header)):
            yield fields if isinstance(fields, RowError) else make(fields), size


def _records(lines: Iterator[str], separator: str, width: int) -> Iterator[tuple[list[str] | RowError, int]]:
    """Fields and size of each record but blank ones. Fields in quotes may hold separators and line breaks.

    Where quotes are not CSV's, a line is a record as it stands. Where tabs or bars part them, one of `width`
    fields is a record whatever quotes it has.
    """
    again: deque[str] = deque()  # lines that were taken for parts of a record
    csv.field_size_limit(2 * MAX_RECORD_BYTES)

    def next_line() -> str:
        return again.popleft() if again else next(lines, "")

    def quoted(line: str, alone: bool) -> tuple[list[str] | RowError, int] | None:
        size, behind = len(line), []

        def parts() -> Iterator[str]:
            nonlocal size
            yield line
            while not alone and size <= MAX_RECORD_BYTES and (more := next_line()):
                behind.append(more)
                size += len(more)
                yield more

        try:
            fields = next(csv.reader(parts(), delimiter=separator, strict=True))
        except csv.Error:
            again.extendleft(reversed(behind))
            return None
        return next(filter(None, map(_problem, behind)), fields), size

    while line := next_line():
        if line.isspace():
            continue
        fields = line.rstrip("\r\n").split(separator)
        record: tuple[list[str] | RowError, int] | None = None
        if problem := _problem(line):
            record = problem, len(line)
        elif '"' in line:
            alone = separator in "\t|" and len(fields) == width
            found = quoted(line, alone)
            if found and (not alone or (isinstance(found[0], list) and len(found[0]) == width)):
                record = found
        if record is None and "\r" in "".join(fields):
            text = "a carriage return stands in a field without quotes; lines must end in a line feed"
            record = RowError("MalformedRow", text), len(line)
        yield record or (fields, len(line))


def _named(header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        text = f"the record has {len(fields):,} fields, the header names {len(header):,}"
        return RowError("MalformedRow", text)
    return dict(zip(header, fields, strict=True))


def _ljspeech(fields: list[str]) -> Row:
    if len(fields) not in (2, 3):
        return RowError("MalformedRow", f"the line has {len(fields):,} fields, not id|text or id|text|text")
    if fields[0].lower().endswith(AUDIO):
        row = {"id": os.path.splitext(fields[0])[0], "text": fields[1], "audio": fields[0]}
        return row | ({"speaker": fields[2]} if len(fields) == 3 else {})
    return {"id": fields[0], "text": fields[-1], "audio": f"wavs/{fields[0]}.wav"}


# ---- folders and archives ----


def kaldi_rows(uri: str) -> Rows:
    """Of a `wav.scp`, with the `text` and, if there is one, the `utt2spk` beside it."""
    folder = storage.parent(uri)
    if storage.exists(storage.join(folder, "segments")):
        raise ManifestError(f"manifest {folder} has `segments`: store each utterance as a file of its own")
    clips, texts = _kaldi_table(uri), _kaldi_table(storage.join(folder, "text"))
    known = storage.exists(storage.join(folder, "utt2spk"))
    speakers = _kaldi_table(storage.join(folder, "utt2spk")) if known else {}
    for name, text in texts.items():
        row = {"id": name, "text": text, "audio": clips.get(name)}
        yield row | ({"speaker": speakers.get(name)} if known else {}), len(text)


def _kaldi_table(uri: str) -> dict[str, str]:
    with open_text(uri) as stream:
        pairs = ([*line.split(maxsplit=1), ""] for line in _not_blank(stream))
        return {name: value.strip() for name, value, *_ in pairs}


def webdataset_rows(uri: str) -> Rows:
    """Of members `KEY.wav`, `KEY.txt`, `KEY.json`: text and columns, and where in the tar the clip lies."""
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        samples = groupby((member for member in tar if member.isreg()), key=lambda m: _stem(m.name))
        for key, members in samples:
            row: Row = {"id": key}
            size = 0
            for member in members:
                suffix = member.name[len(key) :].lower()
                if isinstance(row, RowError):
                    break
                if suffix.endswith(AUDIO):
                    row["audio"] = {"path": member.name, "offset": member.offset_data, "size": member.size}
                elif suffix in (".txt", ".json"):
                    data = tar.extractfile(member).read(MAX_RECORD_BYTES + 1)  # type: ignore[union-attr]
                    text = data.decode(errors="surrogateescape").strip()
                    size += len(text)
                    found = _problem(text) or (_parse_json(text) if suffix == ".json" else {"text": text})
                    # Where a clip lies is said by the tar alone.
                    row = found if isinstance(found, RowError) else {**found, "audio": None, **row}
            yield row, size


def _stem(path: str) -> str:
    """A path without what follows the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def text_rows(uri: str, whole: bool, voiced: bool) -> Rows:
    """The lines of a text, or of all texts below a folder, in the voices of the clips that have their names.
    With `whole` a text is one row; where rows are `voiced` by other clips, none is needed.

    A clip lies beside its text or in another folder of the same name (VCTK); the first folder that texts
    differ in is the speaker. Lines of a `.trans.txt` (LibriSpeech) begin with the name of their clip. Texts
    without a clip are left out where others have one; raises ManifestError where none has.
    """
    single = uri.lower().endswith(SUFFIXES["txt"])
    root = storage.parent(uri) if single else uri
    head = storage.split_query(root)[0].rstrip("/") + "/"
    names = storage.list_names(root, "") if single else storage.expand(root)
    paths = [storage.split_query(name)[0].removeprefix(head) for name in names]
    clips: dict[str, str] = {}
    for path in paths:
        if path.lower().endswith(AUDIO):
            stem = _stem(path).removesuffix("_mic1")
            for name in (stem, "/".join(stem.split("/")[-2:])):
                clips.setdefault(name, path)
    texts = [storage.name_of(uri)] if single else [p for p in paths if p.lower().endswith(SUFFIXES["txt"])]
    by_stem = {_stem(path): path for path in reversed(texts)}  # of LibriTTS the normalized, not the original
    common = os.path.commonpath([os.path.dirname(stem) for stem in by_stem] or [""])
    any_clip = False
    for stem, path in sorted(by_stem.items()):
        folder = os.path.dirname(stem)
        differing = folder.removeprefix(common).strip("/").partition("/")[0] or os.path.basename(folder)
        speaker = {"speaker": differing} if differing else {}
        with open_text(storage.join(root, path)) as stream:
            transcribed = path.lower().endswith(".trans.txt")
            one = whole and not transcribed
            found = iter([stream.read(MAX_RECORD_BYTES + 1)]) if one else _not_blank(stream)
            lines = filter(None, map(str.strip, found))
            first = list(islice(lines, 2))
            for number, line in enumerate(chain(first, lines), 1):
                name, text = (f"{stem}/{number:04}" if len(first) > 1 else stem), line
                clip = clips.get(stem) or clips.get("/".join(stem.split("/")[-2:]))
                if transcribed:
                    name, _, text = line.partition(" ")
                    clip = clips.get(os.path.join(folder, name))
                if clip is None and not voiced:
                    break
                any_clip = True
                yield _problem(line) or {"id": name, "text": text, "audio": clip, **speaker}, len(line)
    if not any_clip:
        raise ManifestError(
            f"manifest {uri}: a text is spoken in the voice of the clip that has its name (book.txt and "
            "book.wav), or in one of --voices; here none has a clip"
        )


# Of those that need nothing but the file.
READERS = {"jsonl": jsonl_rows, "kaldi": kaldi_rows, "webdataset": webdataset_rows}
