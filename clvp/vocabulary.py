"""The tokens of a CLVP tokenizer and their ids: the vocabulary and merges files, and the added tokens."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"

TokenDescription = str | AddedToken | Mapping[str, Any]

_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


class Vocabulary:
    """Token to id and back.

    Attributes:
        encoder: the vocabulary file, token to id.
        merges: byte-pair merges, first the most important.
        added: id to added token; added tokens are found in a text before anything else happens to it. They
            may also be in `encoder`, with the same id.
    """

    def __init__(
        self, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Mapping[int, AddedToken]
    ) -> None:
        self.encoder = dict(encoder)
        self.merges = list(merges)
        self.added = dict(sorted(added.items()))
        self.added_ids = {token.content: token_id for token_id, token in self.added.items()}
        self._tokens = {i: t for t, i in self.encoder.items()} | {i: t for t, i in self.added_ids.items()}
        # Longest first: of two tokens that start alike, the longer one is found.
        alternatives = sorted(map(re.escape, self.added_ids), key=len, reverse=True)
        self._added_pattern = re.compile(f"({'|'.join(alternatives)})") if alternatives else None

    @classmethod
    def read(
        cls,
        vocab_file: str | Path,
        merges_file: str | Path,
        declared: Mapping[int | str, TokenDescription],
        special_tokens: Sequence[str],
    ) -> "Vocabulary":
        """Read the two files; special tokens that are not declared are added, unknown ones with new ids.

        Raises:
            ValueError: a file is not what it should be.
        """
        encoder = _read_encoder(Path(vocab_file))
        added = {int(token_id): _added_token(token) for token_id, token in declared.items()}
        known = encoder | {token.content: token_id for token_id, token in added.items()}
        for token in special_tokens:
            token_id = known.setdefault(token, len(known))
            added.setdefault(token_id, AddedToken(token, special=True, normalized=False))
        return cls(encoder, _read_merges(Path(merges_file)), added)

    def write(self, folder: Path, prefix: str) -> tuple[str, str]:
        """Write both files, the names after `prefix`, into an existing folder; returns their paths."""
        vocab_file, merges_file = folder / f"{prefix}{VOCAB_FILE}", folder / f"{prefix}{MERGES_FILE}"
        vocab_file.write_text(json.dumps(self.encoder, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in self.merges)]
        merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(vocab_file), str(merges_file)

    def describe_added(self) -> dict[str, dict[str, Any]]:
        """The added tokens as `tokenizer_config.json` holds them."""
        return {str(i): {flag: getattr(token, flag) for flag in _FLAGS} for i, token in self.added.items()}

    def all_tokens(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.encoder | self.added_ids

    def find(self, token: str, unknown: str) -> int:
        """Id of a token, or of the token `unknown`."""
        known = self.added_ids if token in self.added_ids else self.encoder
        return known[token] if token in known else self.all_tokens()[unknown]

    def token(self, token_id: int) -> str:
        """Token of an id.

        Raises:
            ValueError: no token has this id.
        """
        try:
            return self._tokens[token_id]
        except KeyError:
            raise ValueError(
                f"no token has the id {token_id}; text token ids go from 0 to {max(self._tokens)} "
                "(speech tokens are no text)"
            ) from None

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Cut a text into added tokens, with their ids, and what stands between them, with None."""
        if self._added_pattern is None:
            return [(text, None)] if text else []
        pieces = self._added_pattern.split(text)  # every second piece is an added token
        return [(p, self.added_ids[p] if i % 2 else None) for i, p in enumerate(pieces) if p]


def _read_encoder(path: Path) -> dict[str, int]:
    try:
        encoder = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(encoder, dict) or not all(isinstance(i, int) for i in encoder.values()):
        raise ValueError(f"{path} should hold one JSON object of token to id")
    return encoder


def _read_merges(path: Path) -> list[tuple[str, str]]:
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


def _added_token(token: TokenDescription) -> AddedToken:
    if isinstance(token, str):
        token = AddedToken(token, normalized=False)
    elif isinstance(token, Mapping):
        token = AddedToken(**{flag: token[flag] for flag in _FLAGS if flag in token})
    if token.lstrip or token.rstrip or token.single_word:
        raise ValueError(f"added token {token.content!r}: lstrip, rstrip and single_word are not supported")
    return token


def token_text(token: TokenDescription) -> str:
    """The text of a token given as a string, an AddedToken, or its description in a JSON file."""
    if isinstance(token, Mapping):
        return str(token["content"])
    return token if isinstance(token, str) else token.content
