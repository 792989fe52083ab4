"""What can go wrong, and whom it concerns.

A *row* that is bad never stops the run: the stage that notices fills the row's `error` column, later stages
leave the row alone, and the writer puts it into the error table. An error that concerns the *run* (no such
column, no space left, a broken checkpoint) is raised and ends it with one clear message.
"""

from collections.abc import Sequence

import pyarrow as pa

ERROR_TYPE = pa.struct([("stage", pa.string()), ("type", pa.string()), ("message", pa.string())])
ERROR = pa.field("error", ERROR_TYPE)  # null: the row is good so far

MAX_MESSAGE_CHARS = 500

# The accelerator is lost for the process: every later row would fail as well, so none is to blame.
_FATAL_MARKS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")


class ManifestError(ValueError):
    """The manifest as a whole cannot be used: no such file or column, unreadable, clashing column names."""


class RunError(RuntimeError):
    """The run cannot start or go on, and says what to do about it."""


class RowError(Exception):
    """One row cannot be processed; `kind` is the stable name that error tables are grouped by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def error_record(stage: str, error: BaseException) -> dict[str, str]:
    """The value of the `error` column for a row that failed in `stage`."""
    kind = error.kind if isinstance(error, RowError) else type(error).__name__
    message = " ".join((str(error) or repr(error)).split())
    message = message.encode("utf-8", "replace").decode("utf-8")
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[: MAX_MESSAGE_CHARS - 1] + "…"
    return {"stage": stage, "type": kind, "message": message}


def error_array(records: Sequence[dict[str, str] | None]) -> pa.Array:
    return pa.array(records, type=ERROR_TYPE)


def is_fatal(error: BaseException) -> bool:
    """Whether an exception means that this process cannot go on, rather than that one row is bad."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(mark in text for mark in _FATAL_MARKS)
