"""Text to the lower-case ASCII words that the CLVP vocabulary can spell.

Two normalizers, which agree on plain words and differ on almost everything else:

- `english_normalize` gives what the CLVP tokenizer of `transformers` gives, for identical token ids;
- `tortoise_normalize` gives what the cleaner of Tortoise TTS gives, with which the weights were trained.

Both read a text of any length in linear time: every pattern below starts only where a run of digits starts,
and no decimal string is converted to an integer before its length is known.
"""

import re
from collections.abc import Callable
from functools import lru_cache

# CPython refuses to convert longer decimal strings by default; the reference fails where CPython does.
MAX_ENGLISH_DIGITS = 4300
# inflect knows names up to decillions.
MAX_INFLECT_DIGITS = 36

# In the references' order.
_ABBREVIATIONS = (
    "mrs=misess mr=mister dr=doctor st=saint co=company jr=junior maj=major gen=general drs=doctors "
    "rev=reverend lt=lieutenant hon=honorable sgt=sergeant capt=captain esq=esquire ltd=limited "
    "col=colonel ft=fort"
)
_ABBREVIATION_PATTERNS = tuple(
    (f"{short}.", re.compile(rf"\b{short}\."), full)
    for short, full in (pair.split("=") for pair in _ABBREVIATIONS.split())
)

_COMMA_NUMBER = re.compile(r"[0-9][0-9,]+[0-9]")
_DOLLARS = re.compile(r"\$([0-9.,]*[0-9])")
_DECIMAL = re.compile(r"(?<![0-9])([0-9]++)\.([0-9]+)")
_ORDINAL = re.compile(r"(?<![0-9])([0-9]++)(?:st|nd|rd|th)")
_DIGITS = re.compile(r"[0-9]+")
_WHITESPACE = re.compile(r"\s+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")

_SCALES = ("", " thousand", " million", " billion", " trillion", " quadrillion")


class TextNormalizationError(ValueError):
    """(The start of) a `piece` of a text that the reference's normalizer cannot read, and the `reason`.

    `index` is the position of the text in a batch, None for a single text.
    """

    def __init__(self, piece: str, reason: str, index: int | None = None) -> None:
        super().__init__(piece, reason, index)  # so that it pickles
        self.piece = piece if len(piece) <= 40 else f"{piece[:40]}..."
        self.reason = reason
        self.index = index

    def at(self, index: int) -> "TextNormalizationError":
        """The same error, of the text at this position of a batch."""
        return TextNormalizationError(self.piece, self.reason, index)

    def __str__(self) -> str:
        where = "" if self.index is None else f"text {self.index}: "
        return f"{where}cannot normalize {self.piece!r}: {self.reason}. normalizer='tortoise' reads any text."


def english_normalize(text: str) -> str:
    """Normalize as the CLVP tokenizer of `transformers` does.

    Drops every non-ASCII character, lower-cases, spells numbers out, expands abbreviations, collapses white
    space and removes double quotes.

    Raises TextNormalizationError for a dollar amount with a stray comma ("$,5", "$1.,5"), and for a number of
    more than 4300 digits; the reference raises a bare ValueError there.
    """
    text = text.encode("ascii", "ignore").decode("ascii").lower()
    return _normalize_ascii(text, _strict_integer, _english_ordinal, _english_number)


def tortoise_normalize(text: str) -> str:
    """Normalize as Tortoise TTS does: with `unidecode` for non-ASCII characters and `inflect` for numbers.

    Where Tortoise raises, the text is still read: stray commas in a dollar amount are dropped ("$1.,5" is one
    dollar, five cents), and a number beyond decillions (37 digits or more) is read digit by digit.
    """
    from unidecode import unidecode  # late, like inflect below: many texts need neither

    if not text.isascii():
        text = unidecode(_SURROGATES.sub("", text))
    return _normalize_ascii(text.lower(), _lenient_integer, _tortoise_ordinal, _tortoise_number)


def _normalize_ascii(
    text: str, integer: Callable[[str, str], str], ordinal: Callable[[str], str], number: Callable[[str], str]
) -> str:
    """The steps common to both, in their order; `text` is ASCII and lower-case.

    The references have a rule for pounds sterling too, but no pound sign survives the way to ASCII.
    """
    text = _COMMA_NUMBER.sub(lambda match: match[0].replace(",", ""), text)
    text = _DOLLARS.sub(lambda match: _dollar_phrase(match[1], integer), text)
    text = _DECIMAL.sub(r"\1 point \2", text)
    text = _ORDINAL.sub(lambda match: ordinal(match[0]), text)
    text = _DIGITS.sub(lambda match: number(match[0]), text)
    for literal, pattern, full in _ABBREVIATION_PATTERNS:
        if literal in text:
            text = pattern.sub(full, text)
    return _WHITESPACE.sub(" ", text).replace('"', "")


def _dollar_phrase(amount: str, integer: Callable[[str, str], str]) -> str:
    """ "1.50" to "1 dollar, 50 cents"; a later step spells the digits out."""
    parts = amount.split(".")
    if len(parts) > 2:  # e.g. a version number
        return f"{amount} dollars"
    dollars, cents = (integer(part, f"${amount}") if part else "0" for part in (*parts, "")[:2])
    counted = ((dollars, "dollar"), (cents, "cent"))
    words = [f"{n} {unit}" if n == "1" else f"{n} {unit}s" for n, unit in counted if n != "0"]
    return ", ".join(words) or "zero dollars"


def _without_leading_zeros(digits: str) -> str:
    return digits.lstrip("0") or "0"


# ---- the reference's reading of numbers ----


def _strict_integer(part: str, amount: str) -> str:
    if "," in part:
        raise TextNormalizationError(amount, "a dollar amount with a stray comma")
    return _english_digits(part)


def _english_digits(digits: str) -> str:
    if len(digits) > MAX_ENGLISH_DIGITS:
        reason = f"a number of {len(digits)} digits (the limit is {MAX_ENGLISH_DIGITS})"
        raise TextNormalizationError(digits, reason)
    return _without_leading_zeros(digits)


def _english_number(digits: str) -> str:
    digits = _english_digits(digits)
    if len(digits) == 4 and digits < "3000" and digits != "2000":
        century, rest = divmod(int(digits), 100)
        if rest == 0 and century > 10:
            return f"{_inflect_words(digits[:2])} hundred"
        if century == 20 and rest < 10:
            return f"two thousand {_inflect_words(digits[3])}"
    return _english_cardinal(digits)


def _english_ordinal(ordinal: str) -> str:
    """ "21st" to "twenty-onest": the reference appends the suffix to the cardinal."""
    digits = _english_digits(ordinal[:-2])
    suffix = {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th")
    if 10 <= int(digits[-2:]) <= 20:
        suffix = "th"
    return _english_cardinal(digits) + suffix


def _english_cardinal(digits: str) -> str:
    """Digits without leading zeros to words, "one thousand, five"; the reference ends at quadrillions."""
    if digits == "0":
        return "zero"
    if len(digits) > 3 * len(_SCALES):
        return "number out of range"
    groups = [digits[max(end - 3, 0) : end].lstrip("0") for end in range(len(digits), 0, -3)]
    pairs = zip(groups, _SCALES, strict=False)
    named = [_inflect_words(group, andword="") + scale for group, scale in pairs if group]
    return ", ".join(reversed(named))


# ---- Tortoise's reading of numbers ----


def _lenient_integer(part: str, amount: str) -> str:
    return _without_leading_zeros(part.replace(",", ""))


def _tortoise_number(digits: str) -> str:
    digits = _without_leading_zeros(digits)
    if len(digits) > MAX_INFLECT_DIGITS:
        return " ".join(map(_inflect_words, digits))
    if len(digits) == 4 and "1000" < digits < "3000":
        return _tortoise_year(digits)
    return _inflect_words(digits, andword="")


def _tortoise_year(digits: str) -> str:
    """ "1984" to "nineteen eighty-four", "1905" to "nineteen oh five"; all numbers from 1001 to 2999."""
    if digits == "2000":
        return "two thousand"
    if digits[2:] == "00":
        return f"{_inflect_words(digits[:2])} hundred"
    if digits[:3] == "200":
        return f"two thousand {_inflect_words(digits[3])}"
    return _inflect_words(digits, andword="", zero="oh", group=2).replace(", ", " ")


def _tortoise_ordinal(ordinal: str) -> str:
    digits, suffix = _without_leading_zeros(ordinal[:-2]), ordinal[-2:]
    if len(digits) > MAX_INFLECT_DIGITS:
        return " ".join(map(_inflect_words, [*digits[:-1], digits[-1] + suffix]))
    return _inflect_words(digits + suffix)


@lru_cache(maxsize=10_000)
def _inflect_words(number: str, andword: str = "and", zero: str = "zero", group: int = 0) -> str:
    words = _inflect_engine().number_to_words(number, andword=andword, zero=zero, group=group)
    assert isinstance(words, str)  # a list only when asked for
    return words


@lru_cache(maxsize=1)
def _inflect_engine():  # type: ignore[no-untyped-def]  # inflect is imported late
    import inflect

    return inflect.engine()
