"""Long texts as utterances."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvp.text.split import split_text

ALICE = """
CHAPTER I.
Down the Rabbit-Hole

Alice was beginning to get very tired of sitting by her sister on the
bank, and of having nothing to do: once or twice she had peeped into
the book her sister was reading, but it had no pictures or
conversations in it, “and what is the use of a book,” thought Alice
“without pictures or conversations?”

So she was considering in her own mind (as well as she could, for the
hot day made her feel very sleepy and stupid), whether the pleasure of
making a daisy-chain would be worth the trouble of getting up and
picking the daisies, when suddenly a White Rabbit with pink eyes ran
close by her.

There was nothing so _very_ remarkable in that; nor did Alice think it
so _very_ much out of the way to hear the Rabbit say to itself, “Oh
dear! Oh dear! I shall be late!” (when she thought it over afterwards,
it occurred to her that she ought to have wondered at this, but at the
time it all seemed quite natural); but when the Rabbit actually _took a
watch out of its waistcoat-pocket_, and looked at it, and then hurried
on, Alice started to her feet.
"""


def texts(text: str, **lengths: int) -> list[str]:
    return [utterance.text for utterance in split_text(text, **lengths)]


def test_a_book() -> None:
    found = split_text(ALICE)
    assert found[0].text == "CHAPTER I. Down the Rabbit-Hole"
    assert " ".join(utterance.text for utterance in found).split() == ALICE.split()
    assert all(len(utterance.text) <= 300 for utterance in found)
    assert all(len(utterance.text) >= 100 for utterance in found[1:]), "no crumbs"
    assert found[0].pause_s > 0.5, "a paragraph's end"
    assert found[-1].pause_s == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        ("J. R. R. Tolkien wrote it. I read it all.", ["J. R. R. Tolkien wrote it.", "I read it all."]),
        ("It costs 3.50 dollars or so. Pay them now.", ["It costs 3.50 dollars or so.", "Pay them now."]),
        (
            "“Is it you?” she asked him. “It is I.” And so.",
            ["“Is it you?” she asked him.", "“It is I.” And so."],
        ),
        (
            "He lives in the U.S. Army barracks. We do not.",
            ["He lives in the U.S. Army barracks.", "We do not."],
        ),
        ("Wait ... what is that there? Nothing at all!", ["Wait ... what is that there?", "Nothing at all!"]),
        ("A first verse is here\n\nA second verse is", ["A first verse is here", "A second verse is"]),
        (
            "¿Qué hora es en la casa? ¡Es la una ya, hombre!",
            ["¿Qué hora es en la casa?", "¡Es la una ya, hombre!"],
        ),
        (
            "今日はとても天気がいいですから外に出ましょう。川まで散歩に行きましょうね、あの橋までですよ。",
            [
                "今日はとても天気がいいですから外に出ましょう。",
                "川まで散歩に行きましょうね、あの橋までですよ。",
            ],
        ),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Wanted so short that each sentence is a piece, and allowed so long that none is cut."""
    assert texts(text, length=20, limit=40) == expected


def test_a_sentence_that_is_too_long_is_cut_at_its_clauses() -> None:
    text = "The rain fell on the hills all night long; the river rose, slowly at first, and took the bridge"
    assert texts(text, length=45, limit=70) == [
        "The rain fell on the hills all night long;",
        "the river rose, slowly at first, and took the bridge",
    ]


def test_quotation_marks_stay_with_their_words_at_a_dash() -> None:
    text = (
        "“It would be four thousand miles down, I think—” (she had learnt it) “—yes, that is the distance—but"
    )
    first = "“It would be four thousand miles down, I think—”"
    assert texts(text, length=40, limit=60) == [first, text.removeprefix(first).strip()]


def test_short_sentences_share_an_utterance_and_long_words_are_cut() -> None:
    assert texts("Yes. No. Perhaps. Who knows?") == ["Yes. No. Perhaps. Who knows?"]
    pieces = texts("x" * 1000, length=100, limit=150)
    assert "".join(pieces) == "x" * 1000
    assert max(len(piece) for piece in pieces) <= 150


def test_pauses_follow_what_stands_at_the_cut() -> None:
    text = (
        "One sentence stands here. Another, which is longer than that, is here; and so on.\n\nThe end of it."
    )
    pauses = [u.pause_s for u in split_text(text, length=25, limit=40)]
    assert len(set(pauses)) >= 3
    assert pauses[-1] == 0.0


@given(st.text(alphabet="ab .,;!?\n—“”。x\t", max_size=400), st.integers(20, 60), st.integers(0, 60))
def test_nothing_is_lost_and_nothing_too_long(text: str, length: int, more: int) -> None:
    found = split_text(text, length=length, limit=length + more)
    spoken = "".join(filter(str.isalnum, text))
    assert "".join(filter(str.isalnum, "".join(u.text for u in found))) == spoken
    assert all(0 < len(u.text) <= length + more for u in found)


def test_styles_of_books() -> None:
    """Paragraphs are parted by blank lines, or are lines; scene breaks are not spoken."""
    first, second = "He went out of the house and down to the river. " * 3, "She stayed. " * 12
    long_lines = f"{first}\n{second}\n* * *\nThe end.\n"
    wrapped = "\r\n\r\n".join([first.replace(" and ", "\r\nand "), second[:60], "* * *", "The end."])
    assert [u.pause_s for u in split_text(long_lines)] == [0.8, 0.8, 0.0]
    assert texts(long_lines) == [first.strip(), second.strip(), "The end."]
    assert texts(wrapped) == [first.strip(), second[:60].strip(), "The end."]
    assert texts(" \n\n * * * \n\n") == []


def test_long_paragraphs_take_no_time_that_grows_with_their_square() -> None:
    """Places that may follow each other are few, however long the paragraph: seconds, not hours."""
    found = split_text("It was a day like any other, and it went by. " * 20_000 + "word " * 20_000)
    assert len(found) > 3_000
