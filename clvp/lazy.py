"""Names of a package that are imported when they are first used: options and messages need no torch."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def imported_late(file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that carries out, one by one, the imports that stand in its
    `file` for type checkers alone.
    """
    imports = [
        node for node in ast.walk(ast.parse(Path(file).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    homes = {name.name: node.module for node in imports for name in node.names if node.module}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"no name {name!r} in {file}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
