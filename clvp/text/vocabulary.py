"""What a CLVP tokenizer is made of: its files, its added tokens, byte-level byte-pair encoding."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from clvp.checkpoint import CheckpointSource, read_json

FILES = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}

SPACE_TOKEN = "[SPACE]"
_BYTE_SPACE = "\u0120"  # how byte-level BPE writes a space

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# The entries of tokenizer_config.json that are arguments of ClvpTokenizer; others belong to other tools.
CONFIG_KEYS = (
    *("errors", *SPECIAL_ROLES, "add_prefix_space", "add_bos_token", "add_eos_token"),
    *("additional_special_tokens", "clean_up_tokenization_spaces", "model_max_length"),
    *("padding_side", "truncation_side", "added_tokens_decoder"),
)
# Tokenizers of `transformers` have a property named normalizer and fail on an entry of that name.
NORMALIZER_KEY = "text_normalizer"

TokenDescription = str | AddedToken | Mapping[str, Any]
Merge = tuple[str, str]
WordSplit = Literal["gpt2", "words"]

_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def stored_arguments(source: CheckpointSource) -> dict[str, Any]:
    """Constructor arguments that a checkpoint's files hold, as `transformers` old and new write them.

    Raises FileNotFoundError when it has no vocabulary; all else may be absent.
    """
    files = {argument: source.file(name) for argument, name in FILES.items()}
    for argument, path in files.items():
        if path is None:
            raise FileNotFoundError(f"{source.location} holds no {FILES[argument]}: is it a CLVP checkpoint?")
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
    return files | arguments


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token to id; ValueError when the file holds anything else."""
    vocabulary = read_json(path)
    if not all(isinstance(i, int) for i in vocabulary.values()):
        raise ValueError(f"{path} should hold one JSON object of token to id")
    return vocabulary


def read_merges(path: Path) -> list[Merge]:
    """Byte-pair merges, first the most important; ValueError naming a line that is none."""
    lines = path.read_text(encoding="utf-8").split("\n")
    merges = []
    # The first line is a version header, in files that have one.
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number}: a merge is two tokens, got {line!r}")
        merges.append((parts[0], parts[1]))
    return merges


def prefixed(name: str, prefix: str | None) -> str:
    """The name of a file that is saved under a prefix."""
    return f"{prefix}-{name}" if prefix else name


def write_files(
    folder: Path, prefix: str | None, vocabulary: Mapping[str, int], merges: Sequence[Merge]
) -> tuple[str, str]:
    """Write what the two functions above read; returns the paths."""
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    contents = (json.dumps(vocabulary, indent=2, ensure_ascii=False), "\n".join(lines))
    vocab_file, merges_file = (folder / prefixed(name, prefix) for name in FILES.values())
    for path, content in zip((vocab_file, merges_file), contents, strict=True):
        path.write_text(f"{content}\n", encoding="utf-8")
    return str(vocab_file), str(merges_file)


def added_tokens(
    vocabulary: Mapping[str, int],
    declared: Mapping[int | str, TokenDescription],
    special_tokens: Sequence[str],
) -> dict[int, AddedToken]:
    """Id to added token: those declared, and special ones besides, unknown ones with new ids."""
    added = {int(token_id): added_token(token) for token_id, token in declared.items()}
    known = {**vocabulary, **{token.content: token_id for token_id, token in added.items()}}
    for token in special_tokens:
        token_id = known.setdefault(token, len(known))
        added.setdefault(token_id, AddedToken(token, special=True, normalized=False))
    return dict(sorted(added.items()))


def added_token(token: TokenDescription) -> AddedToken:
    """A token given as a string or by its description in a JSON file; ValueError for one not supported."""
    if isinstance(token, str):
        token = AddedToken(token, normalized=False)
    elif isinstance(token, Mapping):
        token = AddedToken(**{flag: token[flag] for flag in _FLAGS if flag in token})
    if token.lstrip or token.rstrip or token.single_word:
        raise ValueError(f"added token {token.content!r}: lstrip, rstrip and single_word are not supported")
    return token


def describe(token: AddedToken) -> dict[str, Any]:
    """An added token as `tokenizer_config.json` holds it."""
    return {flag: getattr(token, flag) for flag in _FLAGS}


def byte_pair_encoder(
    vocabulary: Mapping[str, int], merges: list[Merge], unk_token: str, word_split: WordSplit
) -> Tokenizer:
    """The encoder of normalized ASCII text.

    `word_split` says what merges may not cross: "gpt2" is the regular expression of GPT-2, which takes a
    space and the word after it, and contractions ('m, 'll), as one; "words" takes runs of word characters
    and runs of punctuation, as Tortoise does.

    Raises ValueError for a merge that makes a token that the vocabulary lacks.
    """
    vocab = dict(vocabulary)
    if SPACE_TOKEN in vocab:  # the id that a lone space gets
        vocab[_BYTE_SPACE] = vocab.pop(SPACE_TOKEN)
    for left, right in merges:
        missing = [token for token in (left, right, left + right) if token not in vocab]
        if missing:
            raise ValueError(
                f"the merge '{left} {right}' needs {missing[0]!r}, which the vocabulary lacks: "
                "the vocabulary and merges files do not belong together"
            )
    encoder = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token=unk_token, fuse_unk=False))
    encoder.pre_tokenizer = _pre_tokenizer(word_split)
    return encoder


def _pre_tokenizer(word_split: WordSplit) -> PreTokenizer:
    if word_split == "gpt2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    words = Split(Regex(r"\w+|[^\w\s]+"), behavior="isolated")
    return PreTokenizerSequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


@lru_cache(maxsize=1)
def byte_to_char() -> dict[int, str]:
    """The printable character with which GPT-2's byte-level BPE writes each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def spell_bytes(text: str) -> str:
    """A text as byte-level BPE writes it."""
    return "".join(byte_to_char()[byte] for byte in text.encode())


def join_tokens(tokens: Sequence[str], errors: str) -> str:
    """The text that byte-level tokens spell; characters outside the byte map stand for themselves."""
    char_to_byte = {char: bytes([byte]) for byte, char in byte_to_char().items()}
    data = b"".join(
        char_to_byte.get(char) or char.encode("utf-8", "surrogatepass") for token in tokens for char in token
    )
    return data.decode("utf-8", errors=errors)
