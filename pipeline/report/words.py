"""What the best of n candidates buys in words: expected word error rates, by what does the choosing.

As for scores (`best_of_n`) no subset is drawn: with candidates in the order that a selector prefers, the one
of rank r is chosen from n of N with a known probability. Rates are of all words of all rows; an interval
takes rows as what is drawn at random (a ratio's variance by the delta method, 1.96 deviations each way).
"""

import math
from typing import Any

import duckdb
import numpy as np

from pipeline.report.best_of_n import best_weights

Z = 1.96  # 95%
BATCH_ROWS = 4096
MOST = 1024  # candidates of a row; the moments of more would take gigabytes

# Candidates with a word error rate, of rows in which all that were sampled have one. Where somebody's own
# measure gives no number of words, a row counts as one.
HEARD = """
create view heard as
    with wide as (select "row", candidate, max("value") filter (name = 'wer') as wer,
            coalesce(nullif(max("value") filter (name = 'words'), 0), 1) as words,
            max("value") filter (name = 'mean_log_probability') as known from measures group by all)
    select "row", rank, candidate, words, wer * words as errors,
        score::double as score, known, finished
    from wide join candidates using ("row", candidate) join rows using ("row")
    where wer is not null
    qualify count(*) over (partition by "row") = any_value(sampled) over (partition by "row");
"""
# Both in units of their deviation within a row, over all rows.
SPREAD = """(select sqrt(avg(v)) from (select var_pop({0}) v from heard group by "row"))"""
BOTH = " + ".join(f"{name} / nullif({SPREAD.format(name)}, 0)" for name in ("score", "known"))
# What each selector sorts by; chance by nothing.
ORDERS = {
    "clvp": "{late} score desc, candidate",
    "log_probability": "{late} known desc, candidate",
    "both": f"{{late}} {BOTH} desc, candidate",
    "ranked": "rank",
    "oracle": "errors, candidate",
}


def moments(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """[N + 2, N + 2] of rows with N candidates each: sums over them of the products of errors [rows, N], by
    place in the order, words [rows] and one. The last line has the sums themselves, and the number of rows.
    """
    values = np.column_stack([errors, words, np.ones(len(words))])
    return values.T @ values


def word_curves(database: duckdb.DuckDBPyConnection, unfinished_last: bool) -> list[dict[str, Any]]:
    """For every n: rows that have so many, and each selector's rate and half the width of its interval."""
    late = "not finished," if unfinished_last else ""
    found = {name: moments_of(database, order.format(late=late)) for name, order in ORDERS.items()}
    known = found["oracle"]
    points = []
    for n in range(1, max(known, default=0) + 1):
        rates = {"chance": rate_of(known, n, by_chance=True)}
        rates |= {name: rate_of(by_size, n) for name, by_size in found.items()}
        rows = sum(int(m[-1, -1]) for size, m in known.items() if size >= n)
        points.append({"n": n, "rows": rows, **rates})
    return points


def moments_of(database: duckdb.DuckDBPyConnection, order: str) -> dict[int, np.ndarray]:
    """By the number of candidates."""
    found: dict[int, np.ndarray] = {}
    rows = f'select any_value(words) words, list(errors order by {order}) errors from heard group by "row"'
    for batch in database.sql(rows).to_arrow_reader(BATCH_ROWS):
        lists, words = batch.column("errors"), batch.column("words").to_numpy()
        sampled = lists.value_lengths().to_numpy()
        begins = np.cumsum(sampled) - sampled
        flat = lists.flatten().to_numpy()
        for size in np.unique(sampled[sampled <= MOST]).tolist():
            rows_of = np.flatnonzero(sampled == size)
            errors = flat[begins[rows_of][:, None] + np.arange(size)]
            found[size] = found.get(size, 0) + moments(errors, words[rows_of])
    return found


def rate_of(found: dict[int, np.ndarray], n: int, by_chance: bool = False) -> dict[str, float]:
    """Errors a word where the first of n is taken, or any."""
    weighted = [
        (np.append(np.full(size, 1 / size) if by_chance else best_weights(size, n), (0.0, 0.0)), m)
        for size, m in found.items()
        if size >= n
    ]
    words, rows = (sum(float(m[-1, place]) for _, m in weighted) for place in (-2, -1))
    rate = sum(float(weights @ m[-1]) for weights, m in weighted) / words
    squares = 0.0
    for weights, m in weighted:
        weights[-2] = -rate
        squares += float(weights @ m @ weights)
    width = Z * math.sqrt(max(squares, 0.0) * rows / (rows - 1)) / words if rows > 1 else math.inf
    return {"rate": rate, "within": width}
