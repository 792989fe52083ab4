from pathlib import Path

import pyarrow as pa

from clvp import ClvpTokenizer
from pipeline.rows.memory import MAX_TEXT_CHARS
from pipeline.stages.tokens import TextToTokens, load_encoder
from tests.pipeline.clips import read_rows, write_jsonl


def validated(folder: Path, texts: list[object], encode: object, limit: int = 401) -> pa.Table:
    rows = [{"id": str(i), "text": text, "audio": "a.wav", "lang": "en"} for i, text in enumerate(texts)]
    table = read_rows(write_jsonl(folder / "m.jsonl", rows), rows_per_block=100)
    return TextToTokens(encode, limit)(table)  # type: ignore[arg-type]


def test_tokens_are_the_tokenizer_s(tmp_path: Path, checkpoint: Path) -> None:
    texts = ["Hello world", "In 1984 Dr. Brown paid $3.50.", 'It is "quoted" — café', "$,5", "9" * 3000]
    for normalizer in ("tortoise", "english"):
        tokenizer = ClvpTokenizer.from_pretrained(checkpoint, normalizer=normalizer)
        out = validated(tmp_path, texts[:3], load_encoder(str(checkpoint), normalizer))
        assert out["input_ids"].to_pylist() == [list(tokenizer.encode(text)) for text in texts[:3]]
        assert out["error"].null_count == 3
        assert out["extra.lang"].to_pylist() == ["en"] * 3
    assert validated(tmp_path, texts, load_encoder(str(checkpoint), "tortoise"))["input_ids"][0].as_py() == [
        *(62, 84, 28, 2, 179, 79)
    ]


def test_bad_texts_are_row_errors(tmp_path: Path, checkpoint: Path) -> None:
    texts = [
        "fine",
        "",
        "  \n\t ",
        "word " * 300,
        "x" * (MAX_TEXT_CHARS + 1),
        None,
        "\x00\x07",
        "$,5",
        "7" * 4500,
    ]
    out = validated(tmp_path, texts, load_encoder(str(checkpoint), "english"))
    kinds = [error and (error["stage"], error["type"]) for error in out["error"].to_pylist()]
    assert kinds[:7] == [
        None,
        ("validate", "EmptyText"),
        ("validate", "EmptyText"),
        ("validate", "TextTooLong"),
        ("read", "TextTooLong"),
        ("read", "MissingText"),
        ("validate", "EmptyText"),
    ]
    assert [ids is None for ids in out["input_ids"].to_pylist()] == [kind is not None for kind in kinds]
    messages = [error["message"] for error in out["error"].to_pylist() if error]
    assert all(len(message) <= 500 and message for message in messages)


def test_the_limit_is_exact(tmp_path: Path) -> None:
    out = validated(tmp_path, ["a" * 5, "a" * 6], lambda text: [1] * len(text), limit=5)
    assert [error and error["type"] for error in out["error"].to_pylist()] == [None, "TextTooLong"]


def test_a_normalizer_that_raises_is_a_row_error(tmp_path: Path) -> None:
    def encode(text: str) -> list[int]:
        if "bad" in text:
            raise IndexError("pop from empty list")
        return [1]

    out = validated(tmp_path, ["good", "bad", "good"], encode)
    assert [error and error["type"] for error in out["error"].to_pylist()] == [None, "IndexError", None]
    assert out["input_ids"].to_pylist() == [[1], None, [1]]
