from pathlib import Path

import pyarrow as pa
import pytest

from clvp import ClvpTokenizer
from pipeline.rows.memory import MAX_TEXT_CHARS
from pipeline.stages.tokens import TextToTokens, load_tokenizer
from tests.pipeline.clips import read_rows, write_jsonl


def validated(folder: Path, texts: list[object], tokenizer: ClvpTokenizer, limit: int = 401) -> pa.Table:
    rows = [{"id": str(i), "text": text, "audio": "a.wav", "lang": "en"} for i, text in enumerate(texts)]
    table = read_rows(write_jsonl(folder / "m.jsonl", rows), rows_per_block=100)
    return TextToTokens(tokenizer, limit)(table)


def test_tokens_are_the_tokenizer_s(tmp_path: Path, checkpoint: Path) -> None:
    texts = ["Hello world", "In 1984 Dr. Brown paid $3.50.", 'It is "quoted" — café', "$,5", "9" * 3000]
    for normalizer in ("tortoise", "english"):
        tokenizer = ClvpTokenizer.from_pretrained(checkpoint, normalizer=normalizer)
        out = validated(tmp_path, texts[:3], load_tokenizer(str(checkpoint), normalizer))
        assert out["input_ids"].to_pylist() == [list(tokenizer.encode(text)) for text in texts[:3]]
        assert out["error"].null_count == 3
        assert out["extra.lang"].to_pylist() == ["en"] * 3
    assert validated(tmp_path, texts, load_tokenizer(str(checkpoint), "tortoise"))["input_ids"][
        0
    ].as_py() == [*(62, 84, 28, 2, 179, 79)]


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
    out = validated(tmp_path, texts, load_tokenizer(str(checkpoint), "english"))
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


def test_the_limit_is_exact(tmp_path: Path, checkpoint: Path) -> None:
    out = validated(tmp_path, ["xyxyx", "xyxyxy"], load_tokenizer(str(checkpoint), "tortoise"), limit=5)
    assert [error and error["type"] for error in out["error"].to_pylist()] == [None, "TextTooLong"]


def test_a_normalizer_that_raises_is_a_row_error(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ClvpTokenizer.from_pretrained(checkpoint)
    encode = tokenizer.encode

    def faulty(text: str, **options: object) -> list[int]:
        if "bad" in text:
            raise IndexError("pop from empty list")
        return list(encode(text, **options))

    monkeypatch.setattr(tokenizer, "encode", faulty)
    out = validated(tmp_path, ["good", "bad", "good"], tokenizer)
    assert [error and error["type"] for error in out["error"].to_pylist()] == [None, "IndexError", None]
    assert [ids is None for ids in out["input_ids"].to_pylist()] == [False, True, False]


@pytest.mark.parametrize(
    "text", ["@@@", "...", "?!", "[]", "% & @", "* * *", "— —", "<>", "[STOP]", "[UNK]", "[SPACE]"]
)
def test_a_text_without_a_letter_cannot_be_spoken(tmp_path: Path, checkpoint: Path, text: str) -> None:
    """With Tortoise's normalizer "[STOP]" is a word in brackets, else it is a token without sound."""
    words = text.strip("[]").isalpha()
    for normalizer in ("english",) if words else ("english", "tortoise"):
        out = validated(tmp_path, [text], load_tokenizer(str(checkpoint), normalizer))
        (error,) = out["error"].to_pylist()
        assert error["type"] in ("UnspeakableText", "EmptyText")
        assert out["extra.unknown_tokens"].to_pylist() == [None]


def test_unknown_tokens_are_counted(tmp_path: Path, checkpoint: Path) -> None:
    """What the README says of symbols, brackets, markup and addresses."""
    spoken = {  # text: (unknown tokens, what the known ones say)
        "Plain words, and more.": (0, "plain words, and more."),
        "50% & more": (2, "fifty more"),
        "[sad,] hi": (2, "sad, hi"),
        "(laughs) hello": (0, "(laughs) hello"),
        "<b>bold</b>": (4, "bbold/b"),
        "**bold**": (4, "bold"),
        "https://example.org/a_b?x=1": (2, "https://example.org/ab?xone"),
        "\u20ac5": (0, "eurfive"),
        "5\u00b0C": (0, "fivedegc"),
        "\u041f\u0440\u0438\u0432\u0435\u0442": (0, "privet"),
        "hi \U0001f600": (0, "hi "),
    }
    tokenizer = load_tokenizer(str(checkpoint), "tortoise")
    out = validated(tmp_path, list(spoken), tokenizer)
    assert out["error"].null_count == len(spoken)
    ids = out["input_ids"].to_pylist()
    told = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    assert list(zip(out["extra.unknown_tokens"].to_pylist(), told, strict=True)) == list(spoken.values())
