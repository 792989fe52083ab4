"""The page: nothing foreign in it is markup, and nothing in it needs the network or a script."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.readable import hours, number, percent, seconds
from pipeline.report import write_report
from pipeline.report.page import visible
from tests.pipeline.synthetic_output import (
    error,
    make_rows,
    write_data,
    write_description,
    write_errors,
    write_metrics,
    write_run,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</td></table></main><h1>owned</h1>",
    "</title><script>1</script>",
    "<!-- -->]]>",
    "&lt;b&gt; &amp;",
    "javascript:alert(1)",
    "\u202eright to left\u0000\u0007\x1b[31m",
    "</style><style>*{display:none}</style>",
]


class Page(HTMLParser):
    """Tags in use, attributes by tag, the text, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def page_of(output: Path) -> tuple[str, Page]:
    write_report(str(output))
    text = (output / "report.html").read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    output = tmp_path_factory.mktemp("run")
    write_run(output, count=60, candidates=4)
    return page_of(output)


def test_the_page_needs_nothing_else(honest: tuple[str, Page]) -> None:
    text, page = honest
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form", "a", "base"})
    assert not page.attributes & {"src", "href", "srcset", "action"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_section_is_there(honest: tuple[str, Page]) -> None:
    _, page = honest
    for words in (
        "Expected score of the best of n",
        "Distribution of scores",
        "Duration against text length",
        "Failures by stage and type",
        "AudioNotFound",
        "Speech tokens per second over time",
        "Work by stage",
        '"sampling": {',
        '"repetition_penalty": 2.0',
    ):
        assert words in page.text
    assert "svg" in page.tags


def test_coordinates_are_numbers_within_the_drawing(honest: tuple[str, Page]) -> None:
    text, _ = honest
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        (right, bottom) = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0])
        drawn = re.findall(r' d="([^"]*)"', drawing)
        assert len(drawn) > 5
        for path in drawn:
            assert re.fullmatch(r"[MLQCz0-9 \n.-]*", path), path[:80]
            numbers = [float(value) for value in re.findall(r"-?[\d.]+", path)]
            assert all(-1 <= x <= right + 1 for x in numbers[::2]), path[:80]
            assert all(-1 <= y <= bottom + 1 for y in numbers[1::2]), path[:80]
        assert "<use" not in drawing
        assert "<!--" not in drawing
        assert not re.search(r"#[0-9a-f]{6}", drawing)  # colours are the style sheet's
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r">[^<]*<", "><", text))


def test_hostile_text_stays_text(tmp_path: Path, honest: tuple[str, Page]) -> None:
    rows = make_rows(len(HOSTILE), 3)
    for row, bad in zip(rows, HOSTILE, strict=True):
        row.update(id=f"{bad} id", text=f"{bad} text")
        row["candidates"][0]["score"] = -100.0
    write_data(tmp_path, rows)
    write_errors(
        tmp_path,
        [
            {**error(i, bad, f"{bad} type", f"{bad} message"), "id": None, "source": bad}
            for i, bad in enumerate(HOSTILE)
        ],
    )
    write_description(tmp_path, **{bad: [bad, {bad: bad}] for bad in HOSTILE})
    write_metrics(tmp_path, 1e9, [100.0, 200.0])
    text, page = page_of(tmp_path)
    assert page.tags <= honest[1].tags
    assert page.attributes <= honest[1].attributes
    for bad in HOSTILE[:-2]:
        for end in ("id", "text", "type", "message"):
            assert f"{bad} {end}" in page.text
    assert "owned" in page.text
    assert not set(text) & {"\u202e", "\u0000", "\u0007", "\x1b"}
    assert "⟨U+202E⟩right to left⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31m" in page.text


def test_very_long_texts_are_cut(tmp_path: Path) -> None:
    rows = make_rows(3, 2)
    for row in rows:
        row["text"] = "z" * 100_000
    write_data(tmp_path, rows)
    assert len(page_of(tmp_path)[0]) < 100_000


def test_pages_of_nothing(tmp_path: Path) -> None:
    write_description(tmp_path)
    _, page = page_of(tmp_path)
    assert "No data." in page.text
    assert "This run has recorded no metrics." in page.text
    assert "No row has failed." in page.text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(None), "–"),
        (percent(0), "0 %"),
        (percent(1), "100 %"),
        (percent(1e-9), "< 0.01 %"),
        (percent(0.99999), "> 99.99 %"),
        (percent(0.1234), "12 %"),
        (percent(0.01234), "1.2 %"),
        (percent(0.001234), "0.12 %"),
        (percent(0.9967), "99.67 %"),
        (number(0), "0"),
        (number(-12345.6), "−12,346"),
        (number(0.012346), "0.01235"),
        (number(1e-300), "0.00000000"),
        (seconds(0.0464), "0.0464 s"),
        (seconds(75), "1:15 min"),
        (seconds(7384), "2:03:04 h"),
        (hours(0.5), "30.0 min"),
        (hours(0.001), "3.60 s"),
        (hours(1234.5), "1,234 h"),
        (visible("👩\u200d🚀 née"), "👩\u200d🚀 née"),
        (visible("a\u202eb\n\x00"), "a⟨U+202E⟩b\n⟨U+0000⟩"),
    ],
)
def test_numbers_and_text(shown: str, expected: str) -> None:
    assert shown == expected
