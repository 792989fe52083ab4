"""What can go wrong, and whom it concerns.

A *row* that is bad never stops the run: the stage that notices fills the row's `error` column, later stages
leave the row alone, and the writer puts it into the error table. An error that concerns the *run* (no such
column, no space left, a broken checkpoint) is raised and ends it with one clear message.
"""

import re
import reprlib
from typing import Any

import pyarrow as pa

ERROR_TYPE = pa.struct([("stage", pa.string()), ("type", pa.string()), ("message", pa.string())])
ERROR = pa.field("error", ERROR_TYPE)  # null: the row is good so far

MAX_MESSAGE_CHARS = 500
MAX_RUN_MESSAGE_CHARS = 2_000  # of an error that ends the run

# The accelerator is lost for the process: every later row would fail as well, so none is to blame.
_FATAL_MARKS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")

# What stands before the host of a URI. A secret may hold slashes, but what follows `HOST:PORT/` is none.
_USER = re.compile(r"(abfss?)?://((?:[^\s/:@[]*:(?!\d{1,5}/)[^\s@]{0,2000}@)?(?:[^\s/]*@)?)")
_QUERY = re.compile(r"\?[^\s?=]*=\S*?(?=['\"):;,.\]]{0,3}(?:\s|$))")


class ManifestError(ValueError):
    """The manifest as a whole cannot be used: no such file or column, unreadable, clashing column names."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, MAX_RUN_MESSAGE_CHARS))


class RunError(RuntimeError):
    """The run cannot start or go on, and says what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


class Terminated(BaseException):
    """The process was asked to end (SIGTERM). Like KeyboardInterrupt, none handles it by mistake."""


class RowError(Exception):
    """One row cannot be processed; `kind` is the stable name that error tables are grouped by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


ErrorRecord = dict[str, str]  # a value of ERROR_TYPE


def error_record(stage: str, error: BaseException, max_chars: int = MAX_MESSAGE_CHARS) -> ErrorRecord:
    """What is kept of an error: the `error` column of a row that failed in `stage`, or why a run must end."""
    kind = error.kind if isinstance(error, RowError) else type(error).__name__
    return {"stage": stage, "type": kind, "message": printable(str(error) or repr(error), max_chars)}


def printable(text: str, max_chars: int) -> str:
    """One line of at most `max_chars` of a text, `safe`."""
    text = public(text)
    line = safe(" ".join(text[: 4 * max_chars].split()))
    if len(line) > max_chars or len(text) > 4 * max_chars:
        line = line[: max_chars - 1] + "…"
    return line


def safe(text: str) -> str:
    """A text that may be printed: `public`, with control characters other than line breaks, direction marks
    and lone surrogates as escapes.
    """
    text = public(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def public(text: str) -> str:
    """A URI, or a text with URIs, without what may hold credentials: `USER:SECRET@` and queries."""
    return _QUERY.sub("", _USER.sub(_without_secret, text)) if "://" in text else text


def _without_secret(found: re.Match[str]) -> str:
    """On Azure the user's place holds the name of the container."""
    scheme, user = found[1] or "", found[2].partition("@")[0].partition(":")[0]
    return f"{scheme}://{user}@" if scheme and user else f"{scheme}://"


def shown(value: Any, max_chars: int = 80) -> str:
    """A value as Python writes it, for a message; the cost does not depend on the value's size."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: JSON and file names may bring lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def is_fatal(error: BaseException) -> bool:
    """Whether an exception means that this process cannot go on, rather than that one row is bad."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(mark in text for mark in _FATAL_MARKS)
