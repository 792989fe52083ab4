"""Long texts as utterances: cut at sentences, and within a sentence that is too long at its clauses.

The cuts of a paragraph are those of the least cost: what each place costs, and how far each piece is from the
length that is wanted, by dynamic programming.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

# Tortoise was trained on utterances of about ten seconds.
DESIRED_CHARACTERS, MOST_CHARACTERS = 200, 300
# Where most of a text stands in lines longer than this, they are paragraphs; else blank lines part those.
WRAPPED_CHARACTERS = 100

_CLOSING = r"[\"'”’»)\]}]*"
# A break is behind what matches, and in front of a space. Weaker ones count where stronger ones are too far
# apart: the kinds of breaks, from the strong to the weak.
_BREAKS = {
    "sentence": re.compile(rf"[.!?…]+{_CLOSING}(?=\s)|[。！？][”’」』]*"),
    "clause": re.compile(rf"[.!?…;:]+{_CLOSING}(?=\s)|\s[–—-]+(?=\s)|(?<=[\w.,!?])—{_CLOSING}|[，；：、]"),
    "comma": re.compile(rf",{_CLOSING}(?=\s)"),
    "space": re.compile(r"(?=\s)"),
}
_COSTS = {"paragraph": 0.0, "sentence": 0.0, "clause": 0.5, "comma": 0.8, "space": 2.0, "inside": 10.0}
_PAUSES = {"paragraph": 0.8, "sentence": 0.4, "clause": 0.2, "comma": 0.1, "space": 0.0, "inside": 0.0}
# Words with a full stop that ends no sentence: titles, and what stands before a number.
_ABBREVIATION = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|rev|hon|gen|col|capt|lt|sgt|maj|messrs|mme|mlle|sr|jr|vs|viz|cf|e\.g|i\.e"
    r"|approx|dept|est|inc|ltd|co|corp)\."
    r"|(?:nos?|vols?|ch|chap|pp?|figs?|eds?|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.\s*\d",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"(?:[A-Z]\.)+[A-Z]|[A-HJ-Z]")  # I is a word
_LAST_WORD = re.compile(r"(?:^|[\s\"'“‘(\[—])([\w.]+)\.$")
_FIRST_LETTER = re.compile(r"[\s\"'“‘«(\[]*+(\S)")


@dataclass(frozen=True)
class Utterance:
    """A piece of a text."""

    text: str  # without line breaks or white space around it
    pause_s: float  # of silence behind it when the pieces are put together again; 0 after the last


def split_text(text: str, length: int = DESIRED_CHARACTERS, limit: int = MOST_CHARACTERS) -> list[Utterance]:
    """The utterances of a text, in order, of about `length` characters and at most `limit`.

    They have all of its letters and digits; what has none, such as a line of stars, is left out.
    """
    found = [piece for paragraph in _paragraphs(text) for piece in _utterances(paragraph, length, limit)]
    return [*found[:-1], Utterance(found[-1].text, 0.0)] if found else []


def _paragraphs(text: str) -> Iterator[str]:
    lines = [" ".join(line.split()) for line in re.sub("[\u2029\f]", "\n\n", text).split("\n")]
    if 2 * sum(len(line) for line in lines if len(line) > WRAPPED_CHARACTERS) > sum(map(len, lines)):
        yield from lines
    else:
        yield from (" ".join(group) for _, group in groupby(lines, bool))


def _utterances(paragraph: str, length: int, limit: int) -> list[Utterance]:
    """The pieces of a paragraph that has no line breaks."""
    places = _places(paragraph, limit)
    ends = [0, *sorted(places)]
    best = [(0.0, 0)]  # up to each end: the cost, and which end is before it
    for i, end in enumerate(ends[1:], 1):
        options = []
        for j in range(i - 1, -1, -1):
            size = len(paragraph[ends[j] : end].strip())
            if size > limit:
                break
            options.append((best[j][0] + (size / length - 1) ** 2, j))
        cost, before = min(options)
        best.append((cost + _COSTS[places[end]], before))
    pieces: list[Utterance] = []
    i = len(ends) - 1
    while i:
        begin, end = ends[best[i][1]], ends[i]
        pieces.append(Utterance(paragraph[begin:end].strip(), _PAUSES[places[end]]))
        i = best[i][1]
    return [piece for piece in reversed(pieces) if any(map(str.isalnum, piece.text))]


def _places(paragraph: str, limit: int) -> dict[int, str]:
    """Where a paragraph may be cut, once in each `limit` characters at least, and what that place is."""
    places = {len(paragraph): "paragraph"} if paragraph else {}
    for kind in (*_BREAKS, "inside"):
        begin = 0
        for end in sorted(places):
            if kind == "sentence" or end - begin > limit:
                for place in _breaks(kind, paragraph, begin, end, limit):
                    places.setdefault(place, kind)
            begin = end
    return places


def _breaks(kind: str, paragraph: str, begin: int, end: int, limit: int) -> Iterator[int]:
    if kind == "inside":  # of a word without end
        yield from range(begin + limit, end, limit)
        return
    for match in _BREAKS[kind].finditer(paragraph, begin, end):
        place = match.end()
        if place > begin and not (match[0] == "." and _is_abbreviation(paragraph, place)):
            first = _FIRST_LETTER.match(paragraph, place)
            if kind != "sentence" or first is None or not first[1].islower():
                yield place


def _is_abbreviation(paragraph: str, end: int) -> bool:
    """Whether the full stop before `end` belongs to the word before it."""
    word = _LAST_WORD.search(paragraph, max(end - 21, 0), end)
    if word is None:
        return False
    return bool(_INITIALS.fullmatch(word[1]) or _ABBREVIATION.match(paragraph, word.start(1)))
