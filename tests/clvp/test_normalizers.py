"""Both normalizers: known readings, agreement with independent readers of numbers, and hostile texts."""

import pickle
import random

import inflect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.clvp.number_normalizer import EnglishNormalizer

from clvp.text.normalizers import TextNormalizationError, english_normalize, tortoise_normalize


@pytest.mark.parametrize(
    ("text", "english", "tortoise"),
    [
        ("Hello,  World\n", "hello, world ", "hello, world "),
        ("1st 2nd 11th", "onest twond eleventh", "first second eleventh"),
        ("101st", "one hundred onest", "one hundred and first"),
        ("1984", "one thousand, nine hundred eighty-four", "nineteen eighty-four"),
        ("1905", "one thousand, nine hundred five", "nineteen oh five"),
        ("1900 2000 2007", *["nineteen hundred two thousand two thousand seven"] * 2),
        ("café “many” £5", "caf many five", "cafe many psfive"),
        ("$1 $2.50 $0.01 $0", *["one dollar two dollars, fifty cents one cent zero dollars"] * 2),
        ("$1.2.3", "one point two.three dollars", "one point two.three dollars"),
        ("1,234.5", "one thousand, two hundred thirty-four point five", "twelve thirty-four point five"),
        ("007", "seven", "seven"),
        ("Mr. and Mrs. St. Co.", *["mister and misess saint company"] * 2),
        ("Mr.St. St.Mr.", *["misterst. saintmister"] * 2),
        (f"{10**18}", "number out of range", "one quintillion"),
    ],
)  # fmt: skip
def test_readings(text: str, english: str, tortoise: str) -> None:
    assert english_normalize(text) == english
    assert tortoise_normalize(text) == tortoise


@pytest.mark.parametrize(
    ("text", "piece"),
    [("it costs $,5 today", "$,5"), ("$1.,5", "$1.,5"), ("a $1,.5 b", "$1,.5")],
)
def test_stray_commas_are_an_error_in_english_and_dropped_in_tortoise(text: str, piece: str) -> None:
    with pytest.raises(TextNormalizationError, match="stray comma") as caught:
        english_normalize(text)
    assert caught.value.piece == piece
    assert "dollar" in tortoise_normalize(text)
    assert "," not in tortoise_normalize(text).replace("dollar,", "")


def test_stray_commas_in_tortoise_read_as_the_amount_without_them() -> None:
    assert tortoise_normalize("$,5") == "five dollars"
    assert tortoise_normalize("$1.,5") == "one dollar, five cents"


@pytest.mark.parametrize("shape", ["{}", "${}", "${}.50", "{}th", "1.{}", "{}.5"])
def test_long_numbers(shape: str) -> None:
    fits, too_long = "7" * 4300, "7" * 4301
    assert "seven" not in english_normalize(shape.format(fits)).replace("point seven", "")
    with pytest.raises(TextNormalizationError, match="4301 digits") as caught:
        english_normalize(shape.format(too_long))
    assert len(str(caught.value)) < 200
    assert tortoise_normalize(shape.format(too_long)).count("seven") == 4301


def test_tortoise_names_numbers_to_decillions_and_reads_longer_ones_by_digits() -> None:
    assert tortoise_normalize("9" * 36).startswith("nine hundred ninety-nine decillion")
    assert tortoise_normalize("12" + "0" * 35) == "one two" + " zero" * 35
    assert tortoise_normalize("0" * 5000 + "12") == "twelve"
    assert tortoise_normalize("1" * 36 + "2nd") == "one " * 36 + "second"


def test_error_pickles_and_names_the_text() -> None:
    error = TextNormalizationError("$,5", "a stray comma").at(3)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert str(error).startswith("text 3: cannot normalize '$,5'")
    assert isinstance(error, ValueError)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**19) | st.integers(0, 3500))
def test_numbers_agree_with_the_reference_and_with_inflect(number: int) -> None:
    reference, engine = EnglishNormalizer(), inflect.engine()
    assert english_normalize(f"{number}") == reference(f"{number}")
    assert english_normalize(f"{number}th") == reference(f"{number}th")
    assert tortoise_normalize(f"{number}th") == engine.number_to_words(f"{number}th")
    if not 1000 < number < 3000:
        assert tortoise_normalize(f"{number}") == engine.number_to_words(number, andword="")
    elif number % 100 >= 10:
        pairs = engine.number_to_words(number // 100), engine.number_to_words(number % 100)
        assert tortoise_normalize(f"{number}") == " ".join(pairs)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("0123456789.,$£ stndrh\"'\n", max_size=60))
def test_tortoise_reads_anything_into_words(text: str) -> None:
    words = tortoise_normalize(text)
    assert words.isascii()
    assert not any(char.isdigit() or char.isupper() or char == '"' for char in words)
    assert not set(words) & set("\t\n\r\f\v")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("0123456789.,$£ stndrh\"'\n", max_size=60))
def test_english_does_as_the_reference(text: str) -> None:
    try:
        expected = EnglishNormalizer()(text)
    except ValueError:
        with pytest.raises(TextNormalizationError):
            english_normalize(text)
    else:
        assert english_normalize(text) == expected


def test_lone_surrogates_do_not_matter(recwarn: pytest.WarningsRecorder) -> None:
    assert tortoise_normalize("a\ud800b\udfff") == "ab"
    assert english_normalize("a\ud800b\udfff") == "ab"
    assert not recwarn.list


# With the patterns of the references, each of these takes hours.
@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", ["7", "1.", "1,", ",", "$,", "$1,,", "st.", "1st", "é", " ", '" ', "7 "])
def test_long_hostile_texts_take_linear_time(unit: str) -> None:
    text = "9" + unit * (500_000 // len(unit))
    assert tortoise_normalize(text)
    if unit in ("7", "1,"):
        with pytest.raises(TextNormalizationError):
            english_normalize(text)
    else:
        assert english_normalize(text)


def test_many_different_numbers_keep_no_memory() -> None:
    # The cache of readings holds short numbers alone.
    from clvp.text.normalizers import MAX_INFLECT_DIGITS, _inflect_words

    random_digits = random.Random(0)
    for _ in range(100):
        tortoise_normalize(str(random_digits.getrandbits(4000)))
    before = _inflect_words.cache_info().currsize
    tortoise_normalize("1" * (MAX_INFLECT_DIGITS + 1))
    assert _inflect_words.cache_info().currsize == before
