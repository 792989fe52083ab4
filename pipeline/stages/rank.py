"""Stage 5, `rank`: CLVP scores of the candidates, ordered best first.

Candidates are padded to one constant length before they are scored, so that a score depends on its text and
tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from clvp import ClvpModelForConditionalGeneration
from clvp.scoring import pad_and_fix_codes, score_candidates
from clvp.waveform.latents import says_nothing
from pipeline.errors import RowError
from pipeline.rows.columns import (
    CANDIDATE_TYPE,
    CANDIDATES,
    TOKENS_PER_SECOND,
    map_rows,
    set_columns,
    struct_lists,
    token_lists,
)
from pipeline.rows.token_measures import quality_columns
from pipeline.settings import ModelSettings, ScoringSettings
from pipeline.stages.device import pick_device

PARTS = ("text_encoder_model", "speech_encoder_model", "logit_scale")  # a quarter of the weights


@dataclass(frozen=True)
class Scored:
    candidate: int
    finished: bool
    tokens: np.ndarray  # [T] uint16
    score: float
    silent: bool = False  # none of its tokens is speech


class Ranker:
    """Callable on a block; holds the two CLVP encoders."""

    def __init__(
        self, model: str, loading: ModelSettings, settings: ScoringSettings, torch_threads: int | None = None
    ) -> None:
        self.settings = settings
        clvp = ClvpModelForConditionalGeneration.from_pretrained(
            model, dtype=loading.dtype, device=pick_device(torch_threads), parts=PARTS
        )
        self.encoders = clvp.encoders
        self.fixing_codes = clvp.config.decoder_config.decoder_fixing_codes

    @torch.inference_mode()
    def __call__(self, table: pa.Table) -> pa.Table:
        ids, sampled = table["input_ids"], table["speech_ids"]
        ranked, table = map_rows(
            table, "rank", lambda i: order_candidates(self._score(ids[i].as_py(), sampled[i]), self.settings)
        )
        return set_columns(table, {CANDIDATES: _candidate_column(ranked, table["text"].to_pylist())})

    def _score(self, input_ids: list[int], sampled: pa.ListScalar) -> list[Scored]:
        # In the order of their indices: the last bit of a score depends on the place in the batch.
        values = sampled.values
        values = values.take(pc.sort_indices(values.field("candidate")))
        tokens = [item.values.to_numpy() for item in values.field("speech_ids")]
        finished = values.field("finished").to_pylist()
        limit = self.settings.scoring_length
        longest = max(map(len, tokens))
        if longest > limit:
            problem = f"a candidate has {longest:,} tokens; scored are at most {limit}"
            raise RowError("TooManySpeechTokens", problem)
        codes_KL = pad_and_fix_codes(
            [torch.from_numpy(row.astype(np.int64)) for row in tokens], finished, limit, self.fixing_codes
        )
        scores = score_candidates(*self.encoders, torch.tensor(input_ids), codes_KL).tolist()
        if not np.isfinite(scores).all():
            raise RowError("InvalidScore", "a candidate's score is not finite; try dtype float32")
        numbers = values.field("candidate").to_pylist()
        silent = [says_nothing(row, self.fixing_codes[0]) for row in tokens]
        return [Scored(*fields) for fields in zip(numbers, finished, tokens, scores, silent, strict=True)]


def order_candidates(scored: Sequence[Scored], settings: ScoringSettings) -> list[Scored]:
    """Best first, those that say nothing last, and only as many as are kept. Equal scores are ordered by
    candidate index.
    """

    def key(item: Scored) -> tuple[bool, bool, float, int]:
        return item.silent, settings.unfinished_last and not item.finished, -item.score, item.candidate

    return sorted(scored, key=key)[: settings.keep]


def _candidate_column(rows: Sequence[Sequence[Scored] | None], texts: Sequence[str | None]) -> pa.ListArray:
    """The `candidates` column [n]; null where a row has none."""
    items = [item for row in rows if row is not None for item in row]
    ranks = [rank for row in rows if row is not None for rank in range(1, len(row) + 1)]
    lengths = np.array([len(item.tokens) for item in items], np.int32)
    return struct_lists(
        rows,
        [
            pa.array(ranks, pa.int16()),
            pa.array([item.candidate for item in items], pa.int16()),
            pa.array([item.score for item in items], pa.float32()),
            token_lists(item.tokens for item in items),
            pa.array(lengths),
            pa.array([item.finished for item in items], pa.bool_()),
            pa.array((lengths / TOKENS_PER_SECOND).astype(np.float32)),
            *quality_columns(texts, [[item.tokens for item in row or ()] for row in rows]),
        ],
        CANDIDATE_TYPE,
    )
