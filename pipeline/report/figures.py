"""All that a report says of an output, as JSON values: SQL over its rows, candidates and errors.

The files are read once, a batch at a time and only the columns that are needed, into a DuckDB database on the
local disk. Memory does not grow with the rows. Loads neither Ray nor torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter
from pydantic_core import from_json

from pipeline import storage
from pipeline.description import NAME, load
from pipeline.errors import RunError
from pipeline.metrics import read_sessions, share, speed_figures
from pipeline.output.folder import OutputFolder
from pipeline.report.best_of_n import BestOfN
from pipeline.report.words import HEARD, word_curves
from pipeline.rows.columns import CANDIDATE_TYPE, EXTRA_PREFIX
from pipeline.rows.memory import MAX_CANDIDATES
from pipeline.rows.token_measures import count_characters

REPORT_VERSION = 1
MANIFEST_STAGE = "manifest"  # of rows that were rejected because they have no id of their own
BATCH_ROWS = 4096

# Tortoise takes more than 8 silent tokens in a row (0.37 s) for the end of the speech and cuts there.
LONG_RUN = 9
REPEATED_SHARE = 0.2  # a fifth of the speech was heard before
# Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): |z| above 3.5 is an outlier.
OUTLIER_Z = 3.5
MIN_BAND = 50  # candidates; a band of text lengths with fewer borrows from those beside it

VIEWS = {"all": "true", "best": "rank = 1"}
# Which candidates deserve a look, whatever the rest of the run is like.
FLAGS = {
    "unfinished": "not finished",
    "empty": "num_tokens = 0",
    "long_run": f"longest_run >= {LONG_RUN}",
    "repeated": f"repeated_ngrams >= {REPEATED_SHARE}",
}
# Best candidates to look at: which of them, and which first.
LISTS = {
    "unusual_duration": ("unusual_duration", "abs(duration_z) desc, id"),
    "repeated": (FLAGS["repeated"], "repeated_ngrams desc, id desc"),
    "long_runs": (FLAGS["long_run"], "longest_run desc, id desc"),
    "low_scores": ("true", "score, id desc"),
}
LISTED = 10
MAX_TEXT = 160  # characters of a text that is shown
MAX_VALUES = 100  # of a pass-through column that is reported value by value
MAX_FAILURE_GROUPS = 100
EXAMPLES_PER_GROUP = 3
GAIN_SHARES = (0.5, 0.9)  # of what the largest N gains over one candidate
CELLS_PER_OCTAVE = 5  # of the map of duration against text length
BANDS_PER_OCTAVE = 2  # of text length, within which durations are compared
MAX_BARS = 64
ABSURD = 2.0**40  # of a score or a duration; it would leave no bar to the others, and overflow their number
# Columns, and the narrowest bars of each: a few values that hardly differ are no spread.
DISTRIBUTIONS = {
    "score": ("score", 2**-12),
    "tokens": ("num_tokens", 1.0),
    "duration_s": ("duration_s", 2**-4),
    "longest_run": ("longest_run", 1.0),
    "repeated_ngrams": ("repeated_ngrams", 2**-7),
}
QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}

# Fields of the candidate struct that are read.
_FIELDS = [
    field.name for field in CANDIDATE_TYPE if field.name not in ("speech_ids", "seconds_per_character")
]
_PATHS = {f"candidates.list.element.{name}" for name in _FIELDS}
_ERROR_COLUMNS = ("id", "source", "stage", "type", "message")
_UNUSED = {"seed", "voice_key", "row_digest", "engine"}
_SOUND = "audio_measures"  # of the best candidate, where it became sound
_MEASURED = "measures"  # of candidates that became sound, where they were measured
_OWN = {"id", "text", "source", "candidates", _SOUND, _MEASURED, *_UNUSED}

TABLES = """
create table rows ("row" bigint, id varchar, text varchar, characters bigint, published boolean,
    sampled bigint, sound_s float, rms_dbfs float, clipped_share float);
create table candidates ("row" bigint, characters bigint, rank smallint, candidate smallint, score float,
    num_tokens integer, finished boolean, duration_s float, longest_run integer, repeated_ngrams float);
create table measures ("row" bigint, candidate smallint, name varchar, "value" double);
create table passed ("row" bigint, name varchar, "value" varchar);
create table errors (id varchar, source varchar, stage varchar, type varchar, message varchar);
"""
SOUND_MEASURES = {"sound_s": "duration_s", "rms_dbfs": "rms_dbfs", "clipped_share": "clipped_share"}
SOUND = """select count(sound_s) as "count", coalesce(sum(sound_s), 0) / 3600 as hours,
    quantile_disc(rms_dbfs, 0.5) as rms_dbfs, count(*) filter (clipped_share > 0) as clipped from rows"""
MEASURES = """select name, count("value") as "count", avg("value") as mean,
    avg("value") filter (rank = 1) as best_mean, quantile_disc("value", 0.5) filter (rank = 1) as best_p50
    from measures join candidates using ("row", candidate) where isfinite("value")
    group by name order by name"""
# `pace` is log2 of the seconds per character, so that half and twice the usual rate are equally far off; null
# where a candidate is unfinished or empty: such a one is flagged anyway, and a duration that the length limit
# has cut says nothing of what is usual. That is the median among texts about as long: band b holds those of
# 2**(b / 2) up to 2**((b + 1) / 2) characters. The deviation is the median distance from it, scaled as for
# normal data, or the mean distance where over half are equal.
JUDGED = f"""
create view measured as select *, floor({BANDS_PER_OCTAVE} * log2(characters))::integer as band,
    if(finished and duration_s > 0, log2(duration_s::double / characters), null) as pace from candidates;
create table usual as
    with bands as (select band, count(*) as n from measured where pace is not null group by band),
    reach as (select a.band, min(radius) as radius from (select a.band, radius, sum(b.n) as n
        from bands a, range(64) r(radius), bands b where abs(a.band - b.band) <= radius group by all) a
        where n >= {MIN_BAND} or radius = 63 group by a.band),
    paces as (select reach.band, pace from reach join bands on abs(reach.band - bands.band) <= radius
        join measured on measured.band = bands.band where pace is not null),
    centers as (select band, median(pace) as center, mad(pace) as distance from paces group by band),
    means as (select band, avg(abs(pace - center)) as mean from paces join centers using (band) group by band)
    select band, center, if(distance > 0, distance / 0.674490, mean * 1.253314) as deviation, n as candidates
    from centers join means using (band) join bands using (band);
create view judged as select *, {" or ".join(FLAGS.values())} as flagged,
    coalesce(abs(duration_z) > {OUTLIER_Z}, false) as unusual_duration
    from (select *, if(deviation > 0, (pace - center) / deviation, 0 * pace) as duration_z
        from measured left join usual using (band));
"""


class Stored:
    """A run's rows, candidates and errors in a database, each row once.

    Rows that are finished but not yet published into `data` and `errors` are read too: a report of a run that
    goes on, or was killed, misses nothing that the run itself would count as done. Raises RunError when the
    folder holds no run or a file in it cannot be read.
    """

    def __init__(self, output: str, database: duckdb.DuckDBPyConnection) -> None:
        self.uri, self.database = storage.absolute(output), database
        files = {folder: self._files(folder) for folder in ("_parts", "data", "errors")}
        if not any(files.values()) and not storage.exists(storage.join(self.uri, NAME)):
            raise RunError(f"{self.uri} holds no run: no {NAME}, data or errors are in it")
        self.description = _description(self.uri)
        self.told = _settings(self.uri)
        self.best_of_n = BestOfN(by_score_alone=not self.told.scoring.unfinished_last)
        self._rows = 0
        self._values: dict[str, set[Any]] = {}  # of pass-through columns
        database.execute(TABLES)
        self._read(files["_parts"])
        database.execute(JUDGED)
        database.execute(HEARD)

    def query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """The rows of a result, as objects."""
        result = self.database.execute(sql, parameters)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a result, a batch at a time."""
        yield from self.database.sql(sql).to_arrow_reader(BATCH_ROWS)

    def _read(self, parts: Sequence[str]) -> None:
        # `parts` were listed before the published files: what is published meanwhile is then seen twice, not
        # missed, and the second time is recognised by its id.
        waiting = {i for file in parts for batch in self._batches(file, True) for i in _ids(batch, file)}
        for file in self._files("data"):
            for batch in self._batches(file):
                waiting.difference_update(_ids(batch, file))
                self._add_rows(batch, file, published=True)
        for file in self._files("errors"):
            for batch in self._batches(file):
                # A row that the manifest repeats is in the error table under the id of the row that counts.
                own = pc.not_equal(_column(batch, "stage", file), MANIFEST_STAGE)
                waiting.difference_update(_ids(batch.filter(own), file))
                self._add_errors({name: _column(batch, name, file) for name in _ERROR_COLUMNS})
        for file in parts:
            for batch in self._batches(file, True):
                ids = _ids(batch, file)
                batch = batch.filter(pa.array([name in waiting for name in ids]))
                waiting.difference_update(ids)
                error = _column(batch, "error", file)
                self._add_rows(batch.filter(error.is_null()), file, published=False)
                bad = batch.filter(error.is_valid())
                places = {name: bad.column(name) for name in ("id", "source")}
                facts = {name: pc.struct_field(bad.column("error"), name) for name in _ERROR_COLUMNS[2:]}
                self._add_errors({**places, **facts})

    def _files(self, folder: str) -> list[str]:
        folder = storage.join(self.uri, folder)
        return [storage.join(folder, name) for name in storage.list_names(folder, ".parquet")]

    def _batches(self, file: str, may_be_gone: bool = False) -> Iterator[pa.RecordBatch]:
        """Record batches of a file; none when it is gone and may be: its rows were published."""
        source, path = storage.resolve(file)
        try:
            with source.open_input_file(path) as stream:
                parquet = pq.ParquetFile(stream)
                yield from parquet.iter_batches(BATCH_ROWS, columns=_wanted_columns(parquet))
        except FileNotFoundError as error:
            if not may_be_gone:
                raise RunError(f"{file} disappeared while it was read; try again") from error
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file} cannot be read: {error}") from error

    def _add_rows(self, batch: pa.RecordBatch, file: str, published: bool) -> None:
        texts = [text or "" for text in _column(batch, "text", file).to_pylist()]
        lists = _column(batch, "candidates", file)
        fields = _fields(lists.flatten(), file)
        number = np.arange(self._rows, self._rows + len(batch))
        self._rows += len(batch)
        characters = np.array([count_characters(text) for text in texts], np.int64)
        shown = [text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…" for text in texts]
        rows = {"row": number, "id": batch.column("id"), "text": pa.array(shown, pa.string())}
        column = _SOUND if published else EXTRA_PREFIX + _SOUND
        if column in batch.schema.names:
            rows |= {
                name: pc.struct_field(batch.column(column), field) for name, field in SOUND_MEASURES.items()
            }
        stored = _numbers(lists.value_lengths()).astype(np.int64)
        owners = np.repeat(np.arange(len(batch)), stored)
        columns = {name: pa.array(values, from_pandas=True) for name, values in fields.items()}
        self._insert("candidates", {"row": number[owners], "characters": characters[owners], **columns})
        sampled = stored.copy()  # of which only the best may be stored
        np.maximum.at(sampled, owners, fields["candidate"].astype(np.int64) + 1)
        if self.told.num_candidates and self.told.scoring.keep:
            cut = stored >= self.told.scoring.keep
            sampled[cut] = np.maximum(sampled[cut], self.told.num_candidates)
        known = {"characters": characters, "published": [published] * len(batch), "sampled": sampled}
        self._insert("rows", {**rows, **known})
        measured = _MEASURED if published else EXTRA_PREFIX + _MEASURED
        if measured in batch.schema.names:
            self._add_measures(number, batch.column(measured))
        scored = np.isin(np.arange(len(batch)), owners[~np.isfinite(fields["score"])], invert=True)
        items = [fields[name][scored[owners]] for name in ("score", "rank", "finished")]
        self.best_of_n.add(sampled[scored], stored[scored], *items)
        for name in batch.schema.names:
            if name not in (column, measured) and (
                name.startswith(EXTRA_PREFIX) or (published and name not in _OWN)
            ):
                self._add_values(name.removeprefix(EXTRA_PREFIX), number, batch.column(name))

    def _add_values(self, name: str, number: np.ndarray, values: pa.Array) -> None:
        """Values of a pass-through column, which is forgotten when it has too many different ones."""
        values, seen = values.cast(pa.string()), self._values.setdefault(name, set())
        if len(seen) <= MAX_VALUES:
            seen.update(pc.unique(values).to_pylist())
            self._insert("passed", {"row": number, "name": [name] * len(values), "value": values})
            if len(seen) > MAX_VALUES:
                self.database.execute("delete from passed where name = ?", [name])

    def _add_measures(self, number: np.ndarray, lists: pa.Array) -> None:
        """The numbers among what was measured of each candidate."""
        owners = np.repeat(number, _numbers(lists.value_lengths()).astype(np.int64))
        values = lists.flatten()
        candidates = pc.struct_field(values, "candidate")
        for field in values.type:
            if field.name not in ("rank", "candidate"):
                column = pc.struct_field(values, field.name)
                names = [field.name] * len(column)
                self._insert(
                    "measures", {"row": owners, "candidate": candidates, "name": names, "value": column}
                )

    def _add_errors(self, columns: dict[str, pa.Array]) -> None:
        groups = {name: columns[name].fill_null("") for name in _ERROR_COLUMNS[2:]}
        self._insert("errors", {**columns, **groups})

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self.database.register("batch", pa.table(dict(columns)))
        self.database.execute(f"insert into {table} by name select * from batch")
        self.database.unregister("batch")


def build_figures(stored: Stored, created: str) -> dict[str, Any]:
    """All figures of a report as JSON values without NaN or infinity."""
    (rows,) = stored.query("select count(*) done, count(*) filter (not published) unpublished from rows")
    failed = stored.query("select count(*) n from errors")[0]["n"]
    figures = {
        "report_version": REPORT_VERSION,
        "output": storage.public(stored.uri),
        "created": created,
        "rows": {
            **rows,
            "failed": failed,
            "failed_share": share(failed, rows["done"] + failed),
            "text_characters": _distributions(stored, "rows", "characters", {"all": "true"}, 1.0)["all"],
        },
        "candidates": _candidates(stored),
        "sound": stored.query(SOUND)[0],
        "best_of_n": _best_of_n(stored.best_of_n),
        "measures": stored.query(MEASURES),
        "words": word_curves(stored.batches, stored.told.scoring.unfinished_last),
        "pace": _pace(stored),
        "look_at": {name: _list(stored, name) for name in LISTS},
        "by_column": _by_column(stored),
        "failures": _failures(stored, failed),
        "speed": speed_figures(read_sessions(stored.uri)),
        "run": stored.description,
    }
    # JSON has no NaN and no infinity: null stands for them.
    return dict(json.loads(json.dumps(figures), parse_constant=lambda _: None))


def _candidates(stored: Stored) -> dict[str, dict[str, Any]]:
    found = {
        name: _distributions(stored, "candidates", column, VIEWS, least)
        for name, (column, least) in DISTRIBUTIONS.items()
    }
    sums = ", ".join(f"count(*) filter ({condition}) as {name}" for name, condition in FLAGS.items())
    views = {}
    for view, where in VIEWS.items():
        hours = "sum(duration_s::double) / 3600 as hours"
        (of,) = stored.query(f"select count(*) as n, {hours}, {sums} from candidates where {where}")
        flags = {name: {"count": of[name], "share": share(of[name], of["n"])} for name in FLAGS}
        distributions = {name: item[view] for name, item in found.items()}
        views[view] = {"count": of["n"], "audio_hours": of["hours"] or 0.0, **distributions, "flags": flags}
    return views


def _distributions(
    stored: Stored, table: str, column: str, views: Mapping[str, str], least: float
) -> dict[str, dict[str, Any] | None]:
    """Figures of each view of a column without values that are not finite; None where it is empty.

    All views have the same bars, at most MAX_BARS of at least the width `least`: `low` edge of the first,
    `width` of all, `counts`, and what lies outside. Where few far values would squeeze the rest into a
    corner, they are counted as `below` and `above`.
    """
    value, finite = f"{column}::double", f"isfinite({column}::double)"
    shares = [*QUANTILES.values(), 0.001, 0.999]
    known = {}
    for view, where in views.items():
        (known[view],) = stored.query(
            f"""select count(*) as "count", avg({value}) as mean, min({value}) as "min",
            max({value}) as "max", quantile_disc({column}, {shares}) as quantiles
            from {table} where {where} and {finite}"""
        )
    known = {view: figures for view, figures in known.items() if figures["count"]}
    if not known:
        return dict.fromkeys(views)
    quantiles = [figures.pop("quantiles") for figures in known.values()]
    low, high = min(q[-2] for q in quantiles), max(q[-1] for q in quantiles)
    low, high = low - (high - low) / 8, high + (high - low) / 8
    ends = [pick(figures[name] for figures in known.values()) for pick, name in ((min, "min"), (max, "max"))]
    if 2 * (high - low) >= ends[1] - ends[0]:
        low, high = ends
    width = least
    while high // width - low // width >= MAX_BARS:
        width *= 2
    first, last = int(low // width), int(high // width)
    # One more bar on either side takes what lies outside.
    grid = np.zeros((last - first + 3, len(known)), int)
    counts = ", ".join(f"count(*) filter ({views[view]})" for view in known)
    bar = f"greatest(least(floor({value} / {width!r}), {last + 1}), {first - 1})::bigint - {first - 1}"
    for row in stored.query(f"select {bar} as bar, [{counts}] as n from {table} where {finite} group by bar"):
        grid[row["bar"]] = row["n"]
    for figures, quantile, bars in zip(known.values(), quantiles, grid.T.tolist(), strict=True):
        figures |= dict(zip(QUANTILES, map(float, quantile), strict=False))
        figures["histogram"] = {"low": first * width, "width": width, "counts": bars[1:-1]}
        figures["histogram"] |= {"below": bars[0], "above": bars[-1]}
    return {view: known.get(view) for view in views}


def _pace(stored: Stored) -> dict[str, Any]:
    """The map of duration against text length, the usual rates, and the outliers."""
    bands = stored.query(
        f"""select 2 ** (band / {BANDS_PER_OCTAVE}) as characters_from,
        2 ** ((band + 1) / {BANDS_PER_OCTAVE}) as characters_below, candidates,
        2 ** center as seconds_per_character, 2 ** (center - {OUTLIER_Z} * deviation) as usual_from,
        2 ** (center + {OUTLIER_Z} * deviation) as usual_to from usual order by band"""
    )
    outliers = {}
    for view, where in VIEWS.items():
        sides = f"count(*) filter (duration_z > {OUTLIER_Z}), count(*) filter (duration_z < -{OUTLIER_Z})"
        (of,) = stored.query(f"select count(*) as n, [{sides}] as outside from judged where {where}")
        counts = zip(("long", "short"), of["outside"], strict=True)
        outliers[view] = {kind: {"count": n, "share": share(n, of["n"])} for kind, n in counts}
    x, y = (f"floor({CELLS_PER_OCTAVE} * log2({c}))::integer" for c in ("characters", "duration_s::double"))
    cells = f"""select {x} as characters_log2, {y} as duration_log2, count(*) as candidates
        from candidates where duration_s > 0 group by all order by all"""
    return {
        "outlier_z": OUTLIER_Z,
        "outliers": outliers,
        "bands": bands,
        "cells_per_octave": CELLS_PER_OCTAVE,
        "cells": stored.query(cells),
    }


def _list(stored: Stored, name: str) -> list[dict[str, Any]]:
    which, order = LISTS[name]
    z = ", duration_z" if name == "unusual_duration" else ""
    return stored.query(
        f"""select id, text, rows.characters, candidate, score, num_tokens as tokens, duration_s, finished,
        longest_run, repeated_ngrams{z} from judged join rows using ("row")
        where rank = 1 and {which} order by {order} limit {LISTED}"""
    )


def _by_column(stored: Stored) -> dict[str, list[dict[str, Any]]]:
    """Figures of the best candidates for each value of each pass-through column that has a few of them."""
    groups = stored.query(
        """select name, "value", count(*) as "rows", sum(duration_s::double) / 3600 as audio_hours,
        avg(score::double) as mean_score, avg(duration_s::double / characters) as seconds_per_character,
        avg((not finished)::integer) as unfinished_share,
        avg((flagged or unusual_duration)::integer) as flagged_share
        from passed join judged using ("row") where rank = 1
        group by all order by name, "rows" desc, "value" """
    )
    columns: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        columns.setdefault(group.pop("name"), []).append(group)
    return {name: values for name, values in columns.items() if len(values) > 1}


def _failures(stored: Stored, failed: int) -> list[dict[str, Any]]:
    """Failed rows by stage and type, the largest group first, with the first examples of each."""
    groups = stored.query(
        f"""with largest as (select stage, type, true as own from errors group by all
            order by count(*) desc, stage, type limit {MAX_FAILURE_GROUPS})
        select if(own, stage, 'other stages') as stage, if(own, type, 'other types') as type,
            count(*) as "rows", arg_min({{id: id, source: source, message: message}}, errors.rowid,
            {EXAMPLES_PER_GROUP}) as examples
        from errors left join largest using (stage, type) group by 1, 2 order by "rows" desc, 1, 2"""
    )
    return [{**group, "share": share(group["rows"], failed)} for group in groups]


def _best_of_n(best: BestOfN) -> dict[str, Any]:
    """The curve, and the smallest n that brings a share of what all candidates gain over one."""
    curve = best.curve()
    points = curve["points"]
    # Points of different rows are not comparable; those of n = 1 are usually all.
    same = [point for point in points if point["rows"] == points[0]["rows"] and points[0]["n"] == 1]
    gains = {}
    if len(same) > 1:
        first, last = (same[i]["expected_chosen_score"] for i in (0, -1))
        for part in GAIN_SHARES if last > first else ():
            wanted = first + part * (last - first)
            gains[f"{part:.0%}"] = next(p["n"] for p in same if p["expected_chosen_score"] >= wanted)
    return {**curve, "n_for_share_of_gain": gains}


def _description(output: str) -> Any:
    """What `run.json` holds; None where there is none or it is no JSON."""
    uri = storage.join(output, NAME)
    try:
        return from_json(storage.read_bytes(uri)) if storage.exists(uri) else None
    except ValueError:
        return None


@dataclass(frozen=True)
class _Scoring:
    keep: Annotated[int, Field(ge=1)] | None = None
    unfinished_last: bool = True


@dataclass(frozen=True)
class _Told:
    """What the figures need of the settings in `run.json`."""

    num_candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    scoring: _Scoring = _Scoring()


def _settings(output: str) -> _Told:
    """What the run was told; the defaults where there is no `run.json` that this version reads."""
    try:
        description = load(OutputFolder(output))
        return TypeAdapter(_Told).validate_python(description.settings if description else {})
    except (RunError, ValueError):
        return _Told()


def _wanted_columns(parquet: pq.ParquetFile) -> list[str]:
    """Names of the leaves that are needed: all but the speech tokens."""
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    tests = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_dictionary)
    plain = {f.name for f in parquet.schema_arrow if f.name not in _UNUSED and any(t(f.type) for t in tests)}
    sound = (f"{_SOUND}.", f"{EXTRA_PREFIX}{_SOUND}.")
    known = plain | _PATHS | _measured_paths(parquet)
    return [p for p in leaves if p in known or p.startswith(("error.", *sound))]


def _measured_paths(parquet: pq.ParquetFile) -> set[str]:
    """Leaves of the column `measures` that are numbers."""
    found = set()
    for column in (_MEASURED, EXTRA_PREFIX + _MEASURED):
        if column in parquet.schema_arrow.names:
            fields = parquet.schema_arrow.field(column).type.value_type
            found |= {f"{column}.list.element.{f.name}" for f in fields if not pa.types.is_string(f.type)}
    return found


def _fields(values: pa.Array, file: str) -> dict[str, np.ndarray]:
    """The fields of candidates [k]."""
    stored = {field.name for field in values.type}
    if missing := [name for name in _FIELDS if name not in stored]:
        raise RunError(f"{file}: the candidates lack {', '.join(missing)}; was it written by a run?")
    return {name: _numbers(pc.struct_field(values, name)) for name in _FIELDS}


def _numbers(array: pa.Array) -> np.ndarray:
    """A numpy array [k] with zero (False) for null, and NaN, null in the database, for an absurd number."""
    known = array.fill_null(False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)
    if known.dtype.kind == "f":
        known = np.where(np.abs(known) < ABSURD, known, known.dtype.type(np.nan))
    return known


def _column(batch: pa.RecordBatch, name: str, file: str) -> pa.Array:
    if name not in batch.schema.names:
        raise RunError(f"{file} has no column {name!r}; was it written by a run?")
    return batch.column(name)


def _ids(batch: pa.RecordBatch, file: str) -> list[Any]:
    return list(_column(batch, "id", file).to_pylist())
