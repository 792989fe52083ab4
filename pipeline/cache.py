"""What a node keeps between runs: files that were downloaded, and answers that take seconds to find."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from clvp.checkpoint import write_json

T = TypeVar("T")


def cache_folder() -> Path:
    """The folder for what is found once for all processes of a node; it may be deleted between runs.

    `CLVP_CACHE` names it, else it is `clvp` in `XDG_CACHE_HOME` or `~/.cache`, or where a home cannot be
    written one among the temporary files that is this user's alone. Raises OSError where there is none.
    """
    named = os.environ.get("CLVP_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clvp"
    spare = Path(tempfile.gettempdir()) / f"clvp-{os.getuid()}"
    problem = ""
    for folder in [Path(named).expanduser()] if named else [home, spare]:
        try:
            folder.mkdir(0o700 if folder == spare else 0o777, parents=True, exist_ok=True)
            found = folder.lstat()
            if folder == spare and (found.st_uid, found.st_mode & 0o170077) != (os.getuid(), stat.S_IFDIR):
                raise OSError(f"{folder} is a link, or others than you own it or may enter it")
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            problem = f"{folder} cannot be written"
        except OSError as error:
            problem = str(error)
    raise OSError(f"no folder to keep model files in: {problem}; name another in CLVP_CACHE")


def remembered(question: Any, find: Callable[[], T], kind: type[T]) -> T:
    """`find()`, an answer of a kind that JSON can hold, or what it was when the same question came up on this
    node before.

    `question` is whatever decides the answer. Where nothing can be kept, the answer is found each time.
    """
    name = blake2b(repr(question).encode(), digest_size=16).hexdigest()
    adapter = TypeAdapter(kind)
    with suppress(OSError, ValueError):
        return adapter.validate_json((cache_folder() / "answers" / f"{name}.json").read_bytes())
    answer = find()
    with suppress(OSError):
        write_json(cache_folder() / "answers" / f"{name}.json", adapter.dump_python(answer, mode="json"))
    return answer
