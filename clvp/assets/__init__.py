"""The small files of the published checkpoint: tokenizer vocabulary and mel normalisation."""

import json
from importlib import resources
from pathlib import Path
from typing import Literal

_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)


def write_processor_files(folder: Path, normalizer: Literal["english", "tortoise"] = "english") -> None:
    """Put the files that a `ClvpProcessor` loads into a checkpoint folder, and say which normalizer."""
    for name in _FILES:
        content = resources.files("clvp.assets").joinpath(name).read_text(encoding="utf-8")
        if name == "tokenizer_config.json" and normalizer != "english":
            content = json.dumps({**json.loads(content), "normalizer": normalizer}, indent=2) + "\n"
        (folder / name).write_text(content, encoding="utf-8")
