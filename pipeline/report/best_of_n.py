"""How much the best of n candidates gains with n, from the scores of the candidates that are stored.

For a row with N sampled candidates, the best of n is what the row could expect had only n been sampled: the
mean, over all subsets of n of its N candidates, of the best one's score. No subset is drawn. The candidate of
rank r (1 is the best) is the best of C(N - r, n - 1) of the C(N, n) subsets, so the mean is a weighted sum of
the scores in their order; and since the weights depend on n, N and r alone, the mean over rows needs only the
mean score of every rank.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def best_weights(sampled: int, n_values: Sequence[int]) -> np.ndarray:
    """float64 [len(n_values), sampled]: probability that rank r is the best of n drawn without replacement.

    w(1) = n / N and w(r + 1) = w(r) * (N - r - n + 1) / (N - r), which neither overflows nor cancels.
    """
    ranks = np.arange(1, sampled)
    n = np.asarray(n_values, np.float64)[:, None]
    steps = np.maximum(sampled - ranks - n + 1, 0) / (sampled - ranks)
    return np.cumprod(np.concatenate([n / sampled, steps], axis=1), axis=1)


class BestOfN:
    """Collects rows and computes the curve; memory grows with the number of different candidate counts only.

    With `by_score_alone` the run ranks by score; otherwise candidates without a stop token come last.
    """

    def __init__(self, by_score_alone: bool = False) -> None:
        self.by_score_alone = by_score_alone
        # By the numbers of sampled and of stored candidates: how many rows, and sums over them [3, stored] of
        # scores, the highest first, of scores in the order of ranks, and of finished (0 or 1) in that order.
        self._rows: Counter[tuple[int, int]] = Counter()
        self._sums: dict[tuple[int, int], np.ndarray] = {}

    def add(
        self,
        sampled: np.ndarray,
        stored: np.ndarray,
        scores: np.ndarray,
        ranks: np.ndarray,
        finished: np.ndarray,
    ) -> None:
        """Add rows: `sampled` and `stored` [n] count the candidates that the others hold row by row."""
        ends = np.cumsum(stored)
        keys = np.stack([sampled, stored], axis=1)
        for key in np.unique(keys[stored > 0], axis=0).tolist():
            rows = np.flatnonzero((keys == key).all(axis=1))
            index = (ends - stored)[rows, None] + np.arange(key[1])  # [rows, stored]
            index = np.take_along_axis(index, np.argsort(ranks[index], axis=1, kind="stable"), axis=1)
            columns = (-np.sort(-scores[index], axis=1), scores[index], finished[index])
            self._rows[key[0], key[1]] += len(rows)
            sums = np.stack([column.sum(axis=0, dtype=np.float64) for column in columns])
            self._sums[key[0], key[1]] = self._sums.get((key[0], key[1]), 0) + sums

    def curve(self) -> dict[str, Any]:
        """The figures: a list of points and how many rows have how many candidates.

        A point averages the rows with at least n sampled candidates. Where a row keeps only its best, n must
        be large enough that one of those is in every subset; smaller n leave the row out.
        `expected_best_score` (the highest score) is null where only the best by rank are known.
        """
        most = max((sampled for sampled, _ in self._rows), default=0)
        points = [self._point(n) for n in range(1, most + 1)]
        counts = [
            {"sampled": sampled, "stored": stored, "rows": rows}
            for (sampled, stored), rows in sorted(self._rows.items())
        ]
        return {"points": [point for point in points if point], "rows_by_candidates": counts}

    def _point(self, n: int) -> dict[str, Any] | None:
        rows, total, score_known = 0, np.zeros(3), True
        for (sampled, stored), sums in self._sums.items():
            if not sampled - stored < n <= sampled:
                continue
            total += sums @ best_weights(sampled, [n])[0, :stored]
            rows += self._rows[sampled, stored]
            score_known &= sampled == stored or self.by_score_alone
        if not rows:
            return None
        best, chosen, finished = (total / rows).tolist()
        return {
            "n": n,
            "rows": rows,
            "expected_best_score": best if score_known else None,
            "expected_chosen_score": chosen,
            "chosen_finished_share": finished,
        }
