from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clvp import ClvpModelForConditionalGeneration
from clvp.scoring import pad_and_fix_codes, score_candidates
from pipeline.rows.payloads import SPEECH_PAYLOAD
from pipeline.settings import ModelSettings, ScoringSettings
from pipeline.stages.rank import Ranker, Scored, order_candidates
from pipeline.stages.tokens import TextToTokens, load_tokenizer
from tests.pipeline.clips import read_rows, write_jsonl

GENERATOR = np.random.default_rng(0)
SPEECH = [
    [
        {
            "candidate": c,
            "finished": c % 3 != 2,
            "speech_ids": GENERATOR.integers(0, 8192, 8 + 3 * c).tolist(),
        }
        for c in range(count)
    ]
    for count in (6, 1, 40)
]


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> pa.Table:
    rows = [{"id": f"r{i}", "text": "Some words " * (i + 1), "speech_ids": s} for i, s in enumerate(SPEECH)]
    rows += [
        {"id": "long", "text": "x", "speech_ids": [1] * 501},
        {"id": "foreign", "text": "x", "speech_ids": [8193]},
        {"id": "empty", "text": "", "speech_ids": [5]},
        {"id": "none", "text": "x", "speech_ids": [[]]},
    ]
    file = write_jsonl(tmp_path_factory.mktemp("tokens") / "m.jsonl", rows)
    table = read_rows(file, payload=SPEECH_PAYLOAD, rows_per_block=100)
    return TextToTokens(load_tokenizer(str(checkpoint), "tortoise"), 401)(table)


def ranker(checkpoint: Path, settings: ScoringSettings) -> Ranker:
    return Ranker(str(checkpoint), ModelSettings(), settings, torch_threads=1)


def test_scores_are_the_model_s(checkpoint: Path, block: pa.Table) -> None:
    out = ranker(checkpoint, ScoringSettings())(block)
    assert set(out.schema.names) == {*block.schema.names, "candidates"}, "others travel on"
    model = ClvpModelForConditionalGeneration.from_pretrained(checkpoint)
    for row in out.slice(0, 3).to_pylist():
        number = int(row["id"][1:])
        ids = torch.tensor(block["input_ids"][number].as_py())
        by_index = {c["candidate"]: c for c in row["candidates"]}
        assert sorted(by_index) == list(range(len(SPEECH[number])))
        for given in SPEECH[number]:
            stored = by_index[given["candidate"]]
            codes = pad_and_fix_codes([torch.tensor(given["speech_ids"])], [given["finished"]], 500)
            alone = float(score_candidates(*model.encoders, ids, codes)[0])
            assert stored["score"] == pytest.approx(alone, abs=1e-5), (
                "and independent of the other candidates"
            )
            assert stored["speech_ids"] == given["speech_ids"]
            assert stored["finished"] == given["finished"]
            assert stored["num_tokens"] == len(given["speech_ids"])
            assert stored["duration_s"] == pytest.approx(stored["num_tokens"] * 1024 / 22_050)


def test_ranks(checkpoint: Path, block: pa.Table) -> None:
    out = ranker(checkpoint, ScoringSettings())(block)
    for row in out["candidates"].to_pylist()[:3]:
        assert [c["rank"] for c in row] == list(range(1, len(row) + 1))
        assert row == sorted(row, key=lambda c: (not c["finished"], -c["score"]))
    mixed = ranker(checkpoint, ScoringSettings(unfinished_last=False, keep=4))(block)[
        "candidates"
    ].to_pylist()
    assert [len(row) for row in mixed[:3]] == [4, 1, 4]
    full = {c["candidate"]: c["score"] for c in out["candidates"][2].as_py()}
    assert [c["candidate"] for c in mixed[2]] == sorted(full, key=lambda c: -full[c])[:4]
    assert any(not c["finished"] for c in mixed[2] + mixed[0]), "the test must tell the two orders apart"


def test_bad_rows(checkpoint: Path, block: pa.Table) -> None:
    out = ranker(checkpoint, ScoringSettings())(block)
    errors = {row["id"]: row["error"] and row["error"]["type"] for row in out.to_pylist()}
    assert errors == {
        **dict.fromkeys(("r0", "r1", "r2", "none")),
        "long": "TooManySpeechTokens",
        "foreign": "ValueError",
        "empty": "EmptyText",
    }
    assert [row is None for row in out["candidates"].to_pylist()] == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert out["candidates"][6].as_py()[0]["num_tokens"] == 0


def test_scores_do_not_depend_on_the_block(checkpoint: Path, block: pa.Table) -> None:
    stage = ranker(checkpoint, ScoringSettings())
    together = stage(block)["candidates"].to_pylist()
    alone = [stage(block.slice(i, 1))["candidates"][0].as_py() for i in range(len(block))]
    assert together == alone


def test_a_score_that_is_no_number_is_an_error(checkpoint: Path, block: pa.Table) -> None:
    stage = ranker(checkpoint, ScoringSettings())
    with torch.no_grad():
        stage.encoders[2].fill_(float("nan"))
    assert stage(block)["error"][0].as_py()["type"] == "InvalidScore"


def test_order_of_equal_scores_is_fixed() -> None:
    scored = [Scored(c, True, np.zeros(0, np.uint16), 1.0) for c in (3, 1, 2)]
    assert [item.candidate for item in order_candidates(scored, ScoringSettings())] == [1, 2, 3]


def test_what_says_nothing_comes_last() -> None:
    words = np.array([5, 83], np.uint16)
    scored = [
        Scored(0, True, np.full(4, 83, np.uint16), 9.0, silent=True),
        Scored(1, False, words, 1.0),
        Scored(2, True, words, -1.0),
    ]
    assert [item.candidate for item in order_candidates(scored, ScoringSettings())] == [2, 1, 0]
