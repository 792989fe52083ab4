"""Names of a package that are imported when they are first used: options and messages need no torch."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def imported_late(file: str) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` (PEP 562) of the package in `file`, which carries out, one by one, the
    imports that stand there for type checkers alone.
    """
    blocks = [node.body for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    homes = {name.name: node.module for node in imports for name in node.names if node.module}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"no name {name!r} in {file}")
        return getattr(importlib.import_module(homes[name]), name)

    return list(homes), get
