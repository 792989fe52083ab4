"""How much the best of n candidates gains with n, from the scores of the candidates that are stored.

For a row with N sampled candidates, the best of n is what the row could expect had only n been sampled: the
mean, over all subsets of n of its N candidates, of the best one's score. No subset is drawn. The candidate of
rank r (1 is the best) is the best of C(N - r, n - 1) of the C(N, n) subsets, so the mean is a weighted sum of
the scores in their order; and since the weights depend on n, N and r alone, the mean over rows needs only the
sums of the scores of every rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of rows with as many sampled and as many stored candidates: how many, and by place among these sums over the
# rows: of scores, the highest first (`best`), and of scores and finished ones in the order of ranks.
# A row with a score that is not known is left out.
SUMS = """
with placed as (
        select sampled, count(*) over own as stored, score::double as score, finished::integer as finished,
        row_number() over (own order by rank) as place, row_number() over (own order by score desc) as height
        from candidates join rows using ("row") window own as (partition by "row")
        qualify count(score) over own = count(*) over own),
    highest as (select sampled, stored, height as place, sum(score) as best from placed group by all),
    ranked as (select sampled, stored, place, count(*) as "rows", sum(score) as chosen,
        sum(finished) as finished from placed group by all)
select sampled, stored, "rows", list(best order by place) as best, list(chosen order by place) as chosen,
    list(finished order by place) as finished from ranked join highest using (sampled, stored, place)
    group by all order by sampled, stored"""
GAIN_SHARES = (0.5, 0.9)  # of what the largest N gains over one candidate


def best_weights(sampled: int, n: int) -> np.ndarray:
    """float64 [sampled]: probability that rank r is the best of n drawn without replacement.

    w(1) = n / N and w(r + 1) = w(r) * (N - r - n + 1) / (N - r), which neither overflows nor cancels.
    """
    ranks = np.arange(1, sampled)
    steps = np.maximum(sampled - ranks - n + 1, 0) / (sampled - ranks)
    return np.cumprod(np.append(n / sampled, steps))


def curve(groups: Sequence[Mapping[str, Any]], by_score_alone: bool = False) -> dict[str, Any]:
    """The figures, from what `SUMS` gives: a list of points, how many rows have how many candidates, and the
    smallest n that brings a share of what all candidates gain over one.

    A point averages the rows with at least n sampled candidates. Where a row keeps only its best, n must be
    large enough that one of those is in every subset; smaller n leave the row out. Runs that do not rank
    `by_score_alone` put candidates without a stop token last: there `expected_best_score` (the highest score)
    is null where only the best by rank are known.
    """
    counts = [{name: group[name] for name in ("sampled", "stored", "rows")} for group in groups]
    sums = [np.column_stack([g["best"], g["chosen"], g["finished"]]).astype(float) for g in groups]
    points = []
    for n in range(1, max((group["sampled"] for group in groups), default=0) + 1):
        rows, total, score_known = 0, np.zeros(3), True
        for group, sums_of in zip(counts, sums, strict=True):
            sampled, stored = group["sampled"], group["stored"]
            if sampled - stored < n <= sampled:
                total += best_weights(sampled, n)[:stored] @ sums_of
                rows += group["rows"]
                score_known &= sampled == stored or by_score_alone
        if rows:
            best, chosen, finished = (total / rows).tolist()
            point = {"n": n, "rows": rows, "expected_best_score": best if score_known else None}
            points.append(point | {"expected_chosen_score": chosen, "chosen_finished_share": finished})
    return {"points": points, "rows_by_candidates": counts, "n_for_share_of_gain": _gains(points)}


def _gains(points: list[dict[str, Any]]) -> dict[str, int]:
    # Points of different rows are not comparable; those of n = 1 are usually all.
    same = [point for point in points if point["rows"] == points[0]["rows"] and points[0]["n"] == 1]
    first, last = (same[i]["expected_chosen_score"] if same else 0.0 for i in (0, -1))
    wanted = {f"{part:.0%}": first + part * (last - first) for part in GAIN_SHARES if last > first}
    return {k: next(p["n"] for p in same if p["expected_chosen_score"] >= v) for k, v in wanted.items()}
