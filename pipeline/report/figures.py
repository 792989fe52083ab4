"""All that a report says of an output, as JSON values: SQL over its rows, candidates and errors.

The files are read once, a batch at a time and only the columns that are needed, into a DuckDB database on the
local disk. Memory does not grow with the rows. Loads neither Ray nor torch.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from pipeline import storage
from pipeline.description import NAME, load
from pipeline.errors import ERROR_TYPE, RunError
from pipeline.metrics import read_sessions, share, speed_figures
from pipeline.output.folder import OutputFolder
from pipeline.report.best_of_n import SUMS, curve
from pipeline.report.words import BATCH_ROWS, HEARD, word_curves
from pipeline.rows.columns import CANDIDATE_TYPE, EXTRA_PREFIX
from pipeline.rows.token_measures import count_characters
from pipeline.settings import RankingSettings, ResultSettings

REPORT_VERSION = 1

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
OUTLIERS = {"long": f"duration_z > {OUTLIER_Z}", "short": f"duration_z < -{OUTLIER_Z}"}
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

# Columns of each folder's files that are the run's own; others were passed through.
_OWN = {"data": ("id", "text", "candidates"), "errors": ("id", "source", *ERROR_TYPE.names)}
_OWN["_parts"] = (*_OWN["data"], "source", "error")
_UNUSED = {"seed", "voice_key", "row_digest", "engine"}
_SOUND = "audio_measures"  # of the best candidate, where it became sound
_MEASURED = "measures"  # of candidates that became sound, where they were measured
_FIELDS = [f for f in CANDIDATE_TYPE if f.name not in ("speech_ids", "seconds_per_character")]
_LABELS = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_dictionary)
# What is made of the files of all folders alike.
_BATCH = dict.fromkeys(("id", "text", "source"), pa.string()) | {
    "candidates": pa.list_(pa.struct(_FIELDS)),
    "error": ERROR_TYPE,
    _SOUND: pa.struct(dict.fromkeys(("duration_s", "rms_dbfs", "clipped_share"), pa.float64())),
}

TABLES = f"""
create table rows ("row" bigint, id varchar, text varchar, characters bigint, published boolean,
    sampled bigint, sound_s float, rms_dbfs float, clipped_share float);
create table candidates ("row" bigint, characters bigint, rank smallint, candidate smallint, score float,
    num_tokens integer, finished boolean, duration_s float, longest_run integer, repeated_ngrams float);
create table measures ("row" bigint, candidate smallint, name varchar, "value" double);
create table passed ("row" bigint, name varchar, "value" varchar);
create table errors ("row" bigint, published boolean, id varchar, source varchar, stage varchar,
    type varchar, message varchar);
create macro sane(x) as if(abs(x) < {ABSURD}, x, null);
"""
# `sampled` is the number of candidates before only the best were kept.
INSERT = f"""
insert into rows by name select "row", published, id, characters,
    if(length(text) > {MAX_TEXT}, left(text, {MAX_TEXT - 1}) || '…', coalesce(text, '')) as text,
    greatest(0, len(candidates), 1 + list_max([c.candidate for c in candidates]),
        if(len(candidates) >= getvariable('keep'), getvariable('num_candidates'), 0)) as sampled,
    {_SOUND}.duration_s as sound_s, {_SOUND}.rms_dbfs as rms_dbfs, {_SOUND}.clipped_share as clipped_share
    from batch where error is null;
insert into candidates by name select "row", characters, c.* replace (sane(c.score) as score,
    sane(c.duration_s) as duration_s, sane(c.repeated_ngrams) as repeated_ngrams)
    from (select "row", characters, unnest(candidates) as c from batch where error is null);
insert into errors by name select "row", published, id, source, unnest(error) from batch
    where error is not null"""
# The numbers among what was measured of each candidate.
MEASURED = f"""
insert into measures by name unpivot (
    select "row", candidate, columns(* exclude ("row", rank, candidate))::double
    from (select "row", unnest(c) from (select "row", unnest({_MEASURED}) as c from batch)))
    on columns(* exclude ("row", candidate)) into name name value "value" """
# Rows of parts that are published already, or stand in two parts. A row that the manifest repeats is in the
# error table under the id of the row that counts.
TWICE = """
create table twice as select "row" from (select "row", id, published from rows
    union all select "row", id, published from errors where stage <> 'manifest')
    qualify not published and row_number() over (partition by id order by published desc, "row") > 1"""
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
# One list of `LISTS`.
LIST = f"""select id, text, rows.characters, candidate, score, num_tokens as tokens, duration_s, finished,
    longest_run, repeated_ngrams, duration_z from judged join rows using ("row")
    where rank = 1 and {{}} order by {{}} limit {LISTED}"""
BANDS = f"""select 2 ** (band / {BANDS_PER_OCTAVE}) as characters_from,
    2 ** ((band + 1) / {BANDS_PER_OCTAVE}) as characters_below, candidates,
    2 ** center as seconds_per_character, 2 ** (center - {OUTLIER_Z} * deviation) as usual_from,
    2 ** (center + {OUTLIER_Z} * deviation) as usual_to from usual order by band"""
CELLS = f"""select floor({CELLS_PER_OCTAVE} * log2(characters))::integer as characters_log2,
    floor({CELLS_PER_OCTAVE} * log2(duration_s::double))::integer as duration_log2, count(*) as candidates
    from candidates where duration_s > 0 group by all order by all"""
# Failed rows by stage and type, the largest group first, with the first examples of each.
FAILURES = f"""
with largest as (select stage, type, true as own from errors group by all
    order by count(*) desc, stage, type limit {MAX_FAILURE_GROUPS})
select if(own, stage, 'other stages') as stage, if(own, type, 'other types') as type, count(*) as "rows",
    arg_min({{id: id, source: source, message: message}}, errors.rowid, {EXAMPLES_PER_GROUP}) as examples,
    count(*) / sum(count(*)) over () as share
    from errors left join largest using (stage, type) group by 1, 2 order by "rows" desc, 1, 2"""


class Stored:
    """A run's rows, candidates and errors in a database, each row once.

    Rows that are finished but not yet published into `data` and `errors` are read too: a report of a run that
    goes on, or was killed, misses nothing that the run itself would count as done. Raises RunError when the
    folder holds no run or a file in it cannot be read.
    """

    def __init__(self, output: str, database: duckdb.DuckDBPyConnection) -> None:
        self.folder, self.database = OutputFolder(storage.absolute(output)), database
        self.description, self.told = _description(self.folder)
        self._rows = 0
        self._values: dict[str, set[Any]] = {}  # of pass-through columns
        database.execute(TABLES)
        keep, sampled = self.told.scoring.keep, getattr(self.told, "num_candidates", None)
        database.execute(f"set variable keep = {keep or 'null'}")
        database.execute(f"set variable num_candidates = {sampled or 'null'}")
        # Parts come first: what is published meanwhile is then seen twice, not missed.
        parts, data, errors = (self._read(folder) for folder in ("_parts", "data", "errors"))
        if not parts + data + errors and not storage.exists(self.folder.file("", NAME)):
            raise RunError(f"{self.folder.uri} holds no run: no {NAME}, data or errors are in it")
        if parts:
            database.execute(TWICE)
            for table in ("rows", "candidates", "measures", "passed", "errors"):
                database.execute(f'delete from {table} where "row" in (from twice)')
        database.execute(JUDGED + HEARD)

    def query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """The rows of a result, as objects."""
        result = self.database.execute(sql, parameters)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def _read(self, folder: str) -> list[str]:
        """Add what the files of a folder hold; their names."""
        names = self.folder.parquet_files(folder)
        for name in names:
            uri = self.folder.file(folder, name)
            try:
                with self.folder.open_table(folder, name) as parquet:
                    leaves = _leaves(parquet.schema_arrow, folder, uri)
                    for batch in parquet.iter_batches(BATCH_ROWS, columns=leaves):
                        self._add(folder, dict(zip(batch.schema.names, batch.columns, strict=True)))
            except (OSError, pa.ArrowException) as error:
                if folder != "_parts" or not isinstance(error, FileNotFoundError):  # else it was published
                    raise RunError(f"{uri} cannot be read: {error}") from error
        return names

    def _add(self, folder: str, columns: dict[str, pa.Array]) -> None:
        count, prefix = len(columns["id"]), EXTRA_PREFIX if folder == "_parts" else ""
        rows = np.arange(self._rows, self._rows + count)
        self._rows += count
        own = {name: columns.pop(name) for name in _OWN[folder]}
        if folder == "errors":
            parts = [own.pop(name) for name in ERROR_TYPE.names]
            own["error"] = pa.StructArray.from_arrays(parts, fields=ERROR_TYPE)
        own |= {name: columns.pop(prefix + name) for name in (_SOUND, _MEASURED) if prefix + name in columns}
        batch = {name: own.get(name, pa.nulls(count, kind)) for name, kind in _BATCH.items()}
        batch["characters"] = [count_characters(text or "") for text in batch["text"].to_pylist()]
        self._execute(INSERT, {**batch, "row": rows, "published": [folder != "_parts"] * count})
        if _MEASURED in own and own[_MEASURED].type.value_type.num_fields > 2:  # rank and candidate
            self._execute(MEASURED, {"row": rows, _MEASURED: own[_MEASURED]})
        for name, values in columns.items():
            if name.startswith(prefix):
                self._add_values(name.removeprefix(prefix), rows, values.cast(pa.string()))

    def _add_values(self, name: str, rows: np.ndarray, values: pa.Array) -> None:
        """Values of a pass-through column, which is forgotten when it has too many different ones."""
        seen = self._values.setdefault(name, set())
        if len(seen) <= MAX_VALUES:
            seen.update(values.unique().to_pylist())
            batch = {"row": rows, "name": [name] * len(values), "value": values}
            self._execute("insert into passed by name from batch", batch)
            if len(seen) > MAX_VALUES:
                self.database.execute("delete from passed where name = ?", [name])

    def _execute(self, sql: str, batch: Mapping[str, Any]) -> None:
        self.database.register("batch", pa.table(dict(batch)))
        self.database.execute(sql)
        self.database.unregister("batch")


def build_figures(stored: Stored, created: str) -> dict[str, Any]:
    """All figures of a report as JSON values without NaN or infinity."""
    done = "count(*) as done, count(*) filter (not published) as unpublished"
    (rows,) = stored.query(f"select {done}, (select count(*) from errors) as failed from rows")
    rows["failed_share"] = share(rows["failed"], rows["done"] + rows["failed"])
    rows["text_characters"] = _distributions(stored, "rows", "characters", {"all": "true"}, 1.0)["all"]
    unfinished_last = stored.told.scoring.unfinished_last
    figures = {
        "report_version": REPORT_VERSION,
        "output": storage.public(stored.folder.uri),
        "created": created,
        "rows": rows,
        "candidates": _candidates(stored),
        "sound": stored.query(SOUND)[0],
        "best_of_n": curve(stored.query(SUMS), not unfinished_last),
        "measures": stored.query(MEASURES),
        "words": word_curves(stored.database, unfinished_last),
        "pace": {
            "outlier_z": OUTLIER_Z,
            "bands": stored.query(BANDS),
            "cells_per_octave": CELLS_PER_OCTAVE,
            "cells": stored.query(CELLS),
        },
        "look_at": {name: stored.query(LIST.format(*which)) for name, which in LISTS.items()},
        "by_column": _by_column(stored),
        "failures": stored.query(FAILURES),
        "speed": speed_figures(read_sessions(stored.folder.uri)),
        "run": stored.description,
    }
    # JSON has no NaN and no infinity: null stands for them.
    return dict(json.loads(json.dumps(figures), parse_constant=lambda _: None))


def _candidates(stored: Stored) -> dict[str, dict[str, Any]]:
    """Of all and of the best ones."""
    found = {
        name: _distributions(stored, "candidates", column, VIEWS, least)
        for name, (column, least) in DISTRIBUTIONS.items()
    }
    flagged = [f"count(*) filter ({condition}) as {name}" for name, condition in (FLAGS | OUTLIERS).items()]
    sums = f"count(*) as n, coalesce(sum(duration_s::double), 0) / 3600 as hours, {', '.join(flagged)}"
    views = {}
    for view, where in VIEWS.items():
        (counts,) = stored.query(f"select {sums} from judged where {where}")
        count, hours = counts.pop("n"), counts.pop("hours")
        flags = {name: {"count": n, "share": share(n, count)} for name, n in counts.items()}
        distributions = {name: item[view] for name, item in found.items()}
        views[view] = {"count": count, "audio_hours": hours, **distributions, "flags": flags}
    return views


def _distributions(
    stored: Stored, table: str, column: str, views: Mapping[str, str], least: float
) -> dict[str, dict[str, Any] | None]:
    """Figures of each view of a column without values that are not finite; None where it is empty.

    All views have the same bars, at most MAX_BARS of at least the width `least`: `low` edge of the first,
    `width` of all, and `counts`. The first view, which has all values, says where; where its far ends,
    a thousandth each, would squeeze the rest into a corner, they are counted as `below` and `above`.
    """
    value, finite = f"{column}::double", f"isfinite({column}::double)"
    shares = [*QUANTILES.values(), 0.001, 0.999]
    sums = f"""count(*) as "count", avg({value}) as mean, min({value}) as "min", max({value}) as "max",
        quantile_disc({column}, {shares}) as quantiles"""
    known = {
        view: stored.query(f"select {sums} from {table} where {where} and {finite}")[0]
        for view, where in views.items()
    }
    whole = next(iter(known.values()))
    if not whole["count"]:
        return dict.fromkeys(views)
    quantiles = [figures.pop("quantiles") for figures in known.values()]
    width, (low, high) = least, quantiles[0][-2:]
    if 2.5 * (high - low) >= whole["max"] - whole["min"]:
        low, high = whole["min"], whole["max"]
    while high // width - low // width >= MAX_BARS:
        width *= 2
    first, last = int(low // width), int(high // width)
    # One more bar on either side takes what lies outside.
    grid = np.zeros((last - first + 3, len(known)), int)
    counts = ", ".join(f"count(*) filter ({where})" for where in views.values())
    bar = f"greatest(least(floor({value} / {width!r}), {last + 1}), {first - 1})::bigint - {first - 1}"
    for row in stored.query(f"select {bar} as bar, [{counts}] as n from {table} where {finite} group by bar"):
        grid[row["bar"]] = row["n"]
    for figures, quantile, bars in zip(known.values(), quantiles, grid.T.tolist(), strict=True):
        figures |= dict(zip(QUANTILES, map(float, quantile or ()), strict=False))
        figures["histogram"] = {"low": first * width, "width": width, "counts": bars[1:-1]}
        figures["histogram"] |= {"below": bars[0], "above": bars[-1]}
    return {view: figures if figures["count"] else None for view, figures in known.items()}


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


def _description(folder: OutputFolder) -> tuple[Any, ResultSettings | RankingSettings]:
    """What `run.json` holds, and what the run was told; None and the defaults where that cannot be read."""
    found = None
    with suppress(FileNotFoundError, ValueError, RunError):
        found = from_json(storage.read_bytes(folder.file("", NAME)))
        if (description := load(folder)) is not None:
            return found, description.results
    return found, RankingSettings()


def _leaves(schema: pa.Schema, folder: str, uri: str) -> list[str]:
    """Names of the leaves that are needed: all but speech tokens and sound."""
    if lacking := [name for name in _OWN[folder] if name not in schema.names]:
        raise RunError(f"{uri} has no column {lacking[0]!r}; was it written by a run?")
    leaves = [name for name in _OWN[folder] if name != "candidates"]
    if folder == "errors":
        return leaves
    stored = {field.name for field in schema.field("candidates").type.value_type}
    if missing := [field.name for field in _FIELDS if field.name not in stored]:
        raise RunError(f"{uri}: the candidates lack {', '.join(missing)}; was it written by a run?")
    leaves += [f"candidates.list.element.{field.name}" for field in _FIELDS]
    for field in schema:
        name, kind = field.name.removeprefix(EXTRA_PREFIX), field.type
        if name == _MEASURED:
            numbers = [inner.name for inner in kind.value_type if not pa.types.is_string(inner.type)]
            leaves += [f"{field.name}.list.element.{inner}" for inner in numbers]
        elif name == _SOUND or (name not in _UNUSED and any(test(kind) for test in _LABELS)):
            leaves += [field.name] if field.name not in leaves else []
    return leaves
