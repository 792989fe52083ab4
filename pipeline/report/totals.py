"""What a report adds up over the rows of a run, in memory that does not grow with their number."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.report import unusual
from pipeline.report.best_of_n import BestOfN
from pipeline.report.histogram import Histogram
from pipeline.report.stored import Failures, Rows
from pipeline.rows import token_measures

MAX_BARS = 64
QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
CELLS_PER_OCTAVE = 5  # of the map of duration against text length
MAX_FAILURE_GROUPS = 100
EXAMPLES_PER_GROUP = 3
OTHER_FAILURES = ("other stages", "other types")
LISTED = 10  # candidates of each list to look at
MAX_TEXT = 160  # characters of a text that is shown


@dataclass
class CandidateTotals:
    """Distributions and flags over candidates: all of them, or the best of every row."""

    flags: Counter[str] = field(default_factory=Counter)
    score: Histogram = field(default_factory=Histogram)
    tokens: Histogram = field(default_factory=lambda: Histogram(integers=True))
    duration_s: Histogram = field(default_factory=Histogram)
    longest_run: Histogram = field(default_factory=lambda: Histogram(integers=True))
    repeated_ngrams: Histogram = field(default_factory=Histogram)
    pace: dict[int, Histogram] = field(default_factory=dict)  # of `pace`, by length band

    def add(self, rows: Rows, characters: np.ndarray, chosen: np.ndarray) -> None:
        """Add the candidates that `chosen` (bool [k]) picks; `characters` [k] are those of their texts."""
        tokens = rows.num_tokens[chosen]
        self.score.add(rows.score[chosen])
        self.tokens.add(tokens)
        self.duration_s.add(rows.duration_s[chosen])
        self.longest_run.add(rows.longest_run[chosen])
        self.repeated_ngrams.add(rows.repeated_ngrams[chosen])
        flags = unusual.token_flags(
            rows.finished[chosen], tokens, rows.longest_run[chosen], rows.repeated_ngrams[chosen]
        )
        self.flags.update({name: int(mask.sum()) for name, mask in flags.items()})
        paces, bands = pace(rows, characters), unusual.length_bands(characters)
        for band in np.unique(bands[chosen]).tolist():
            self.pace.setdefault(band, Histogram()).add(paces[chosen & (bands == band)])

    @property
    def count(self) -> int:
        return self.tokens.count

    def figures(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "audio_hours": self.duration_s.sum / 3600,
            "score": distribution(self.score),
            "tokens": distribution(self.tokens),
            "duration_s": distribution(self.duration_s),
            "longest_run": distribution(self.longest_run),
            "repeated_ngrams": distribution(self.repeated_ngrams),
            "flags": {
                name: {"count": self.flags[name], "share": share(self.flags[name], self.count)}
                for name in ("unfinished", "empty", "long_run", "repeated")
            },
        }


def pace(rows: Rows, characters: np.ndarray) -> np.ndarray:
    """float64 [k]: log2 of the seconds per character; NaN for a candidate that is unfinished or empty.

    Those are flagged anyway, and a duration that the length limit has cut says nothing of what is usual.
    """
    known = rows.finished & (rows.duration_s > 0)
    return np.log2(np.where(known, rows.duration_s, np.nan) / characters)


class TopRows:
    """The rows with the largest keys; ties are broken by id, so that the order of files does not matter."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, str, int, dict[str, Any]]] = []

    def add(self, rows: Rows, index: np.ndarray, row_of: np.ndarray, keys: np.ndarray) -> None:
        """Offer the candidates at `index` [m] with keys [m]; `row_of` [k] is the row of every candidate."""
        for i in np.flatnonzero(keys >= self._least(keys)).tolist():
            at = int(index[i])
            row = int(row_of[at])
            if len(self._heap) < self.size or (keys[i], rows.ids[row]) > self._heap[0][:2]:
                entry = (float(keys[i]), rows.ids[row], int(rows.candidate[at]), _record(rows, row, at))
                push = heapq.heappush if len(self._heap) < self.size else heapq.heappushpop
                push(self._heap, entry)

    def records(self) -> list[dict[str, Any]]:
        """Largest key first."""
        return [record for _, record in self.entries()]

    def entries(self) -> list[tuple[float, dict[str, Any]]]:
        """Keys with their records, largest first."""
        ordered = sorted(self._heap, key=lambda entry: entry[:3], reverse=True)
        return [(entry[0], entry[3]) for entry in ordered]

    def _least(self, keys: np.ndarray) -> float:
        """A key below which no row of this batch can get in."""
        least = self._heap[0][0] if len(self._heap) == self.size else -np.inf
        if len(keys) > self.size:
            least = max(least, float(np.partition(keys, -self.size)[-self.size]))
        return least


def _record(rows: Rows, row: int, at: int) -> dict[str, Any]:
    text = rows.texts[row]
    return {
        "id": rows.ids[row],
        "text": text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…",
        "characters": token_measures.count_characters(text),
        "candidate": int(rows.candidate[at]),
        "score": float(rows.score[at]),
        "tokens": int(rows.num_tokens[at]),
        "duration_s": float(rows.duration_s[at]),
        "finished": bool(rows.finished[at]),
        "longest_run": int(rows.longest_run[at]),
        "repeated_ngrams": float(rows.repeated_ngrams[at]),
    }


class RunTotals:
    """Everything a report needs of the finished rows."""

    def __init__(self, num_candidates: int | None, keep: int | None, by_score_alone: bool) -> None:
        """Candidates sampled per row, kept per row, and how they are ranked, as the run description says."""
        self.num_candidates = num_candidates
        self.keep = keep
        self.rows = 0
        self.unpublished = 0
        self.text_characters = Histogram(integers=True)
        self.all = CandidateTotals()
        self.best = CandidateTotals()
        self.best_of_n = BestOfN(by_score_alone)
        self.cells: Counter[tuple[int, int]] = Counter()  # (characters, duration), both in 1/5 octaves
        self.low_scores, self.repeated, self.long_runs = TopRows(LISTED), TopRows(LISTED), TopRows(LISTED)
        self.slow: dict[int, TopRows] = {}  # by length band
        self.fast: dict[int, TopRows] = {}

    def add(self, rows: Rows) -> None:
        """Add a batch of finished rows."""
        self.rows += len(rows.ids)
        self.unpublished += len(rows.ids) if rows.unpublished else 0
        per_row = np.array([token_measures.count_characters(text) for text in rows.texts], np.int64)
        self.text_characters.add(per_row)
        owners = rows.owners
        characters = per_row[owners]
        is_best = rows.rank == 1
        self.all.add(rows, characters, np.ones(len(owners), bool))
        self.best.add(rows, characters, is_best)
        self.best_of_n.add(self._sampled(rows, owners), rows.stored, rows.score, rows.rank, rows.finished)
        self._add_cells(characters, rows.duration_s)
        self._add_lists(rows, owners, characters, np.flatnonzero(is_best))

    def _sampled(self, rows: Rows, owners: np.ndarray) -> np.ndarray:
        """int64 [n]: candidates sampled for each row, of which only the best may be stored."""
        sampled = rows.stored.copy()
        np.maximum.at(sampled, owners, rows.candidate.astype(np.int64) + 1)
        if self.num_candidates and self.keep:
            cut = rows.stored >= self.keep
            sampled[cut] = np.maximum(sampled[cut], self.num_candidates)
        return sampled

    def _add_cells(self, characters: np.ndarray, durations: np.ndarray) -> None:
        spoken = durations > 0
        pairs = np.log2(np.stack([characters[spoken], durations[spoken]]).astype(np.float64))
        x, y = np.floor(pairs * CELLS_PER_OCTAVE).astype(np.int64)
        # One number for both: durations lie far within 2**200 seconds.
        cells, counts = np.unique(x * 2048 + y + 1024, return_counts=True)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            self.cells[cell // 2048, cell % 2048 - 1024] += count

    def _add_lists(self, rows: Rows, owners: np.ndarray, characters: np.ndarray, best: np.ndarray) -> None:
        self.low_scores.add(rows, best, owners, -rows.score[best].astype(np.float64))
        repeats = best[rows.repeated_ngrams[best] >= unusual.REPEATED_SHARE]
        self.repeated.add(rows, repeats, owners, rows.repeated_ngrams[repeats].astype(np.float64))
        runs = best[rows.longest_run[best] >= unusual.LONG_RUN]
        self.long_runs.add(rows, runs, owners, rows.longest_run[runs].astype(np.float64))
        paces, bands = pace(rows, characters), unusual.length_bands(characters)
        known = best[np.isfinite(paces[best])]
        for band in np.unique(bands[known]).tolist():
            index = known[bands[known] == band]
            self.slow.setdefault(band, TopRows(LISTED)).add(rows, index, owners, paces[index])
            self.fast.setdefault(band, TopRows(LISTED)).add(rows, index, owners, -paces[index])


class FailureTotals:
    """Failed rows by stage and type, with a few examples of each."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def add(self, failures: Failures) -> None:
        self.rows += len(failures.ids)
        groups: Sequence[tuple[str, str]] = list(zip(failures.stages, failures.types, strict=True))
        for i, group in enumerate(groups):
            if group not in self._counts and len(self._counts) >= MAX_FAILURE_GROUPS:
                group = OTHER_FAILURES
            self._counts[group] += 1
            examples = self._examples.setdefault(group, [])
            if len(examples) < EXAMPLES_PER_GROUP:
                examples.append(
                    {
                        "id": failures.ids[i],
                        "source": failures.sources[i],
                        "message": failures.messages[i],
                    }
                )

    def figures(self) -> list[dict[str, Any]]:
        """The largest group first."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [
            {
                "stage": stage,
                "type": kind,
                "rows": count,
                "share": share(count, self.rows),
                "examples": self._examples[stage, kind],
            }
            for (stage, kind), count in ordered
        ]


def distribution(histogram: Histogram) -> dict[str, Any] | None:
    """Figures of a histogram, None where it is empty."""
    if not histogram.count:
        return None
    names, shares = list(QUANTILES), list(QUANTILES.values())
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        "min": histogram.low,
        "max": histogram.high,
        **dict(zip(names, histogram.quantiles(shares), strict=True)),
        "histogram": histogram.bars(MAX_BARS),
    }


def share(part: float, whole: float) -> float | None:
    """part / whole, None where there is nothing to divide."""
    return part / whole if whole else None
