import pickle

import pytest

from pipeline.errors import MAX_MESSAGE_CHARS, ManifestError, RowError, error_record, printable, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\tand\r\n  blanks\u00a0", "two lines and blanks"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x00\x07\x9b", r"\x00\x07\x9b"),
        ("\u202etxt.exe\ufeff", r"\u202etxt.exe\ufeff"),
        ("lone \ud800", r"lone \ud800"),
        ("café “日本” 🙂", "café “日本” 🙂"),
    ],
)
def test_messages_are_one_line_without_controls(text: str, expected: str) -> None:
    message = error_record("read", RowError("Kind", text))["message"]
    assert message == expected
    assert message.isprintable()
    message.encode()


def test_messages_have_a_length() -> None:
    for length in (MAX_MESSAGE_CHARS - 1, MAX_MESSAGE_CHARS, MAX_MESSAGE_CHARS + 1, 10**7):
        message = error_record("read", ValueError("x" * length))["message"]
        assert len(message) == min(length, MAX_MESSAGE_CHARS)
        assert message.endswith("…") == (length > MAX_MESSAGE_CHARS)
    assert len(printable("\x00" * 400, 500)) == 500
    error = pickle.loads(pickle.dumps(ManifestError("a\nb" + "x" * 10_000)))
    assert str(error).startswith("a bxxx")
    assert len(str(error)) == 2_000


def test_any_value_is_shown_in_little_space() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values = [
        deep,
        "x" * 10**7,
        [1] * 10**6,
        10**5_000,
        b"y" * 10**7,
        {"a": ["b"]},
        None,
        float("nan"),
        "\ud800",
    ]
    assert all(0 < len(shown(value)) <= 80 for value in values)
    assert shown({"a": ["b"]}) == "{'a': ['b']}"
    while deep:  # a level at a time: freeing all of them at once is a recursion
        deep = deep.pop()  # type: ignore[assignment]
