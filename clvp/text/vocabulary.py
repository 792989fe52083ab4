"""What a CLVP tokenizer is made of: its files, its added tokens, byte-level byte-pair encoding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from clvp.checkpoint import CheckpointSource
from clvp.fields import Index

_FILES = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}

SPACE_TOKEN = "[SPACE]"
_BYTES = ByteLevel(add_prefix_space=False, use_regex=False)

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# The entries of tokenizer_config.json that are arguments of ClvpTokenizer, added_tokens_decoder and the
# normalizer aside; others belong to other tools.
CONFIG_KEYS = (
    *(*SPECIAL_ROLES, "add_bos_token", "add_eos_token", "additional_special_tokens"),
    *("clean_up_tokenization_spaces", "model_max_length", "padding_side", "truncation_side"),
)
# Tokenizers of `transformers` have a property named normalizer and fail on an entry of that name.
NORMALIZER_KEY = "text_normalizer"

TokenDescription = str | AddedToken | Mapping[str, Any]
Merge = tuple[str, str]

_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def stored_arguments(source: CheckpointSource) -> dict[str, Any]:
    """Constructor arguments that a checkpoint's files hold, as `transformers` old and new write them.

    Raises FileNotFoundError when it has no vocabulary; all else may be absent.
    """
    files = {argument: source.file(name) for argument, name in _FILES.items()}
    for argument, path in files.items():
        if path is None:
            raise FileNotFoundError(
                f"{source.location} holds no {_FILES[argument]}: is it a CLVP checkpoint?"
            )
    config = (source.json("special_tokens_map.json") or {}) | (source.json("tokenizer_config.json") or {})
    keys = (*CONFIG_KEYS, "added_tokens_decoder")
    arguments = {key: config[key] for key in keys if config.get(key) is not None}
    if NORMALIZER_KEY in config:
        arguments["normalizer"] = config[NORMALIZER_KEY]
    # Since transformers 5 the additional special tokens go by another name.
    extra = config.get("extra_special_tokens") or []
    if extra and not arguments.get("additional_special_tokens"):
        arguments["additional_special_tokens"] = list(extra.values() if isinstance(extra, dict) else extra)
    if "added_tokens_decoder" not in arguments:  # before transformers 4.34
        tokens = source.json("added_tokens.json", Index) or {}
        arguments["added_tokens_decoder"] = {token_id: token for token, token_id in tokens.items()}
    return files | arguments


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


def added_tokens(
    vocabulary: Mapping[str, int], declared: Mapping[Any, TokenDescription], special_tokens: Sequence[str]
) -> dict[int, AddedToken]:
    """Id to added token: those declared, and special ones besides, unknown ones with new ids."""
    added = {token_id: added_token(token) for token_id, token in declared.items()}
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
        try:
            token = AddedToken(**{flag: token[flag] for flag in _FLAGS if flag in token})
        except TypeError as error:
            raise ValueError(f"added token {token!r:.80}: {error}") from error
    if not isinstance(token, AddedToken) or not token.content:
        raise ValueError(f"{token!r:.80} is no token: a string, or an object with its content")
    if token.lstrip or token.rstrip or token.single_word:
        raise ValueError(f"added token {token.content!r}: lstrip, rstrip and single_word are not supported")
    return token


def byte_pair_encoder(
    vocabulary: Mapping[str, int], merges: list[Merge], unk_token: str, *, whole_words: bool
) -> Tokenizer:
    """The encoder of normalized ASCII text.

    What merges may not cross is found by the regular expression of GPT-2, which takes a space and the word
    after it, and contractions ('m, 'll), as one; `whole_words` are runs of word characters and runs of
    punctuation, as Tortoise takes them.

    Raises ValueError for a merge that makes a token that the vocabulary lacks.
    """
    vocab = dict(vocabulary)
    if SPACE_TOKEN in vocab:  # has the id of a lone space, which byte-level BPE writes so
        vocab["\u0120"] = vocab.pop(SPACE_TOKEN)
    for left, right in merges:
        missing = [token for token in (left, right, left + right) if token not in vocab]
        if missing:
            raise ValueError(
                f"the merge '{left} {right}' needs {missing[0]!r}, which the vocabulary lacks: "
                "the vocabulary and merges files do not belong together"
            )
    encoder = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token=unk_token, fuse_unk=False))
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if whole_words:
        words = Split(Regex(r"\w+|[^\w\s]+"), behavior="isolated")
        encoder.pre_tokenizer = PreTokenizerSequence([words, _BYTES])
    return encoder


def spell_bytes(text: str) -> str:
    """A text as byte-level BPE writes it."""
    return "".join(word for word, _ in _BYTES.pre_tokenize_str(text))
