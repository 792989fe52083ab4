"""What the best of n candidates buys in words: expected word error rates, by what does the choosing.

As for scores (`best_of_n`) no subset is drawn: with candidates in the order that a selector prefers, the one
of rank r is chosen from n of N with a known probability. Rates are of all words of all rows; an interval
takes rows as what is drawn at random (a ratio's variance by the delta method, 1.96 deviations each way).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report.best_of_n import best_weights

Z = 1.96  # 95%
MOST = 1024  # candidates of a row; the moments of more would take gigabytes

# Candidates with a word error rate, of rows in which all that were sampled have one. Where somebody's own
# measure gives no number of words, a row counts as one.
HEARD = """
create view heard as
    with wide as (select "row", candidate, max("value") filter (name = 'wer') as wer,
            max("value") filter (name = 'words') as words,
            max("value") filter (name = 'mean_log_probability') as known from measures group by all)
    select "row", rank, candidate, coalesce(words, 1) as words, wer * coalesce(words, 1) as errors,
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

Query = Callable[[str], Iterator[pa.RecordBatch]]


class Moments:
    """Sums over rows with as many candidates: of errors by place in the order and words, and products."""

    def __init__(self, sampled: int) -> None:
        self.rows = 0
        self.sums = np.zeros(sampled + 1)
        self.products = np.zeros((sampled + 1, sampled + 1))

    def add(self, errors: np.ndarray, words: np.ndarray) -> None:
        """[rows, N] and [rows]."""
        values = np.concatenate([errors, words[:, None]], axis=1)
        self.rows += len(values)
        self.sums += values.sum(axis=0)
        self.products += values.T @ values


def word_curves(query: Query, unfinished_last: bool) -> list[dict[str, Any]]:
    """For every n: rows that have so many, and each selector's rate and half the width of its interval."""
    late = "not finished," if unfinished_last else ""
    moments = {name: moments_of(query, order.format(late=late)) for name, order in ORDERS.items()}
    known = moments["oracle"]
    points = []
    for n in range(1, max(known, default=0) + 1):
        rates = {"chance": rate_of(known, n, by_chance=True)}
        rates |= {name: rate_of(found, n) for name, found in moments.items()}
        points.append({"n": n, "rows": sum(m.rows for sampled, m in known.items() if sampled >= n), **rates})
    return points


def moments_of(query: Query, order: str) -> dict[int, Moments]:
    """By the number of candidates."""
    found: dict[int, Moments] = {}
    rows = f'select any_value(words) words, list(errors order by {order}) errors from heard group by "row"'
    for batch in query(rows):
        lists, words = batch.column("errors"), batch.column("words").to_numpy()
        sampled = lists.value_lengths().to_numpy()
        begins = np.cumsum(sampled) - sampled
        flat = lists.flatten().to_numpy()
        for size in np.unique(sampled[sampled <= MOST]).tolist():
            rows_of = np.flatnonzero(sampled == size)
            errors = flat[begins[rows_of][:, None] + np.arange(size)]
            found.setdefault(size, Moments(size)).add(errors, words[rows_of])
    return found


def rate_of(moments: dict[int, Moments], n: int, by_chance: bool = False) -> dict[str, float] | None:
    """Errors a word where the first of n is taken, or any."""
    weighted = [
        (np.append(np.full(size, 1 / size) if by_chance else best_weights(size, [n])[0], 0.0), m)
        for size, m in moments.items()
        if size >= n
    ]
    rows, words = sum(m.rows for _, m in weighted), float(sum(m.sums[-1] for _, m in weighted))
    if not words:
        return None
    rate = float(sum(weights @ m.sums for weights, m in weighted)) / words
    squares = 0.0
    for weights, m in weighted:
        weights[-1] = -rate
        squares += float(weights @ m.products @ weights)
    width = Z * math.sqrt(max(squares, 0.0) * rows / (rows - 1)) / words if rows > 1 else math.inf
    return {"rate": rate, "within": width}
