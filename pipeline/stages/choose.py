"""Stage 8, `choose`: candidates in another order than their scores', by what was measured.

Among the candidates that have sound (all, in a run without), those that meet `keep_if` come before those
that do not, and the rest is the order of `rank_by`. A row of which no candidate meets `keep_if` fails; in the
others the candidates that do not stay, behind, so that nothing is lost and the report can still compare.
"""

import math
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from pipeline.errors import ERROR, RowError, RunError, shown
from pipeline.rows.columns import CANDIDATE_TYPE, CANDIDATES, map_rows, set_columns
from pipeline.settings import ResultSettings, Run
from pipeline.stages.formula import Formula
from pipeline.stages.measure import measured_field
from pipeline.stages.sound import (
    BEST,
    BEST_MEASURES,
    MEASURED,
    MEASURES,
    OTHERS,
    sound_columns,
    sound_fields,
)

TOKEN_FIELDS = [field for field in CANDIDATE_TYPE if field.name != "speech_ids"]
SOUND_FIELDS = [field for field in MEASURES if field.name != "duration_s"]  # candidates have one


def formula_columns(settings: ResultSettings) -> pa.Schema:
    """What formulas may name. Raises ImportError or ValueError as `measured_field` does."""
    measured = list(measured_field(settings.measuring.measure).type.value_type)[2:]
    names = {field.name.lower() for field in (*TOKEN_FIELDS, *SOUND_FIELDS)}
    if clash := [field.name for field in measured if field.name.lower() in names]:
        raise ValueError(f"a measure gives {clash[0]!r}, which candidates have already")
    sound = SOUND_FIELDS if settings.audio.most else []
    return pa.schema([*TOKEN_FIELDS, *sound, *(measured if settings.measuring.measure else [])])


def choice_columns(settings: ResultSettings) -> pa.Schema:
    """What the stage needs and gives again, in another order."""
    sound = sound_fields(settings.audio) if settings.audio.most else []
    measured = [measured_field(settings.measuring.measure)] if settings.measuring.measure else []
    return pa.schema([CANDIDATES, *sound, *measured, ERROR])


def check_formulas(run: Run) -> None:
    """Raise RunError for measures whose columns clash, and formulas that cannot be evaluated."""
    if isinstance(run.results, ResultSettings):
        try:
            Chooser(run.results)
        except ValueError as error:
            raise RunError(str(error)) from error


class Chooser:
    """Callable on a block. Raises ValueError for a formula that cannot be evaluated."""

    def __init__(self, settings: ResultSettings) -> None:
        self.settings, self.columns = settings, formula_columns(settings)
        self.fields = choice_columns(settings)
        rank_by, keep_if = settings.measuring.rank_by, settings.measuring.keep_if
        self.rank_by = Formula(rank_by, self.columns, pa.float64()) if rank_by else None
        self.keep_if = Formula(keep_if, self.columns, pa.bool_()) if keep_if else None
        self.refuses = True  # rows of which no candidate meets `keep_if`

    def __call__(self, table: pa.Table) -> pa.Table:
        chosen, table = map_rows(table, "choose", lambda i: self._chosen(table, i))
        columns = sound_columns([None if row is None else row["sounds"] for row in chosen])
        columns |= {name: [row and row[name] for row in chosen] for name in (CANDIDATES.name, MEASURED.name)}
        return set_columns(table, {field: columns[field.name] for field in self.fields if field != ERROR})

    def _chosen(self, table: pa.Table, i: int) -> dict[str, list[dict[str, Any]]]:
        row = {name: table[name][i].as_py() for name in self.fields.names}
        candidates, sounds = row[CANDIDATES.name], _sounds(row)
        measured = row.get(MEASURED.name) or []
        nothing: dict[str, Any] = {}
        facts = [
            {**sound, **measures, **candidate}
            for candidate, sound, measures in zip_longest(candidates, sounds, measured, fillvalue=nothing)
        ]
        order = self._order(candidates, len(sounds) or len(candidates), facts)
        return {
            CANDIDATES.name: [{**candidates[k], "rank": rank} for rank, k in enumerate(order, 1)],
            "sounds": [sounds[k] for k in order[: len(sounds)]],
            MEASURED.name: [
                {**measured[k], "rank": rank} for rank, k in enumerate(order[: len(measured)], 1)
            ],
        }

    def _order(self, candidates: list[dict[str, Any]], most: int, facts: list[dict[str, Any]]) -> list[int]:
        """Indices of the candidates, of which the first `most` compete."""
        table = pa.Table.from_pylist(facts[:most], self.columns)
        values: list[float | None] = self.rank_by(table) if self.rank_by else [None] * most
        good = [bool(value) for value in self.keep_if(table)] if self.keep_if else [True] * most
        if self.keep_if and self.refuses and not any(good):
            condition = self.keep_if.text
            first = {name: value for name, value in facts[0].items() if name in condition}
            raise RowError("NotKept", f"no candidate meets {condition!r}; the first has {shown(first, 300)}")

        def key(k: int) -> tuple[Any, ...]:
            value = values[k]
            value = -math.inf if value is None or math.isnan(value) else value
            unfinished = self.settings.scoring.unfinished_last and not candidates[k]["finished"]
            return (not good[k], unfinished, -value, k)

        return [*sorted(range(most), key=key), *range(most, len(candidates))]


def _sounds(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What is stored of each candidate that has sound, the best first."""
    if not row.get(BEST.name):
        return []
    candidate = row[CANDIDATES.name][0]["candidate"]
    best = {"audio": row[BEST.name], "candidate": candidate, **row[BEST_MEASURES.name]}
    return [best, *(row.get(OTHERS.name) or [])]
