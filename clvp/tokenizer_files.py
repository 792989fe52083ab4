"""`tokenizer_config.json` and the smaller files beside it, as `transformers` old and new write them."""

from pathlib import Path
from typing import Any

from clvp.checkpoint import CheckpointSource

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# The entries of tokenizer_config.json that are arguments of ClvpTokenizer; others belong to other tools.
CONFIG_KEYS = (
    *("errors", *SPECIAL_ROLES, "add_prefix_space", "add_bos_token", "add_eos_token"),
    *("additional_special_tokens", "clean_up_tokenization_spaces", "model_max_length"),
    *("padding_side", "truncation_side", "added_tokens_decoder"),
)
# Tokenizers of `transformers` have a property named normalizer and fail on an entry of that name.
NORMALIZER_KEY = "text_normalizer"


def required_file(source: CheckpointSource, name: str) -> Path:
    """Local path of a file of a checkpoint; FileNotFoundError when there is no such file."""
    path = source.file(name)
    if path is None:
        raise FileNotFoundError(f"{source.location} holds no {name}: is it a CLVP checkpoint?")
    return path


def read_tokenizer_arguments(source: CheckpointSource) -> dict[str, Any]:
    """Constructor arguments that a checkpoint's files hold; empty when it has the vocabulary alone."""
    config = (source.json("special_tokens_map.json") or {}) | (source.json("tokenizer_config.json") or {})
    arguments = {key: config[key] for key in CONFIG_KEYS if config.get(key) is not None}
    if NORMALIZER_KEY in config:
        arguments["normalizer"] = config[NORMALIZER_KEY]
    # Since transformers 5 the additional special tokens go by another name.
    extra = config.get("extra_special_tokens") or []
    if extra and not arguments.get("additional_special_tokens"):
        arguments["additional_special_tokens"] = list(extra.values() if isinstance(extra, dict) else extra)
    if "added_tokens_decoder" not in arguments:  # before transformers 4.34
        tokens = source.json("added_tokens.json") or {}
        arguments["added_tokens_decoder"] = {token_id: token for token, token_id in tokens.items()}
    return arguments
