"""Byte-level byte-pair encoding on the Rust `tokenizers`, with the quirks of the CLVP vocabulary."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

SPACE_TOKEN = "[SPACE]"
_BYTE_SPACE = "\u0120"  # how byte-level BPE writes a space

# Rust keeps about a hundred bytes per token while it encodes, so long texts go through it in pieces.
_SEGMENT_CHARS = 1 << 16
# Both sides of such a space are words of their own, whichever pre-tokenizer is used.
_SAFE_CUT = re.compile(r"(?<=[a-z0-9]) (?=[a-z0-9])")

WordSplit = Literal["gpt2", "words"]


@lru_cache(maxsize=1)
def byte_to_char() -> dict[int, str]:
    """The printable character with which GPT-2's byte-level BPE writes each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def join_tokens(tokens: Sequence[str], errors: str) -> str:
    """The text that byte-level tokens spell; characters outside the byte map stand for themselves."""
    char_to_byte = {char: bytes([byte]) for byte, char in byte_to_char().items()}
    data = b"".join(
        char_to_byte.get(char) or char.encode("utf-8", "surrogatepass") for token in tokens for char in token
    )
    return data.decode("utf-8", errors=errors)


class BytePairEncoder:
    """Normalized ASCII text to token ids.

    `word_split` says what merges may not cross: "gpt2" is the regular expression of GPT-2, which takes a
    space and the word after it, and contractions ('m, 'll), as one; "words" takes runs of word characters
    and runs of punctuation, as Tortoise does.

    Raises:
        ValueError: a merge makes a token that the vocabulary lacks, or the unknown token has no id.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        unk_token: str,
        word_split: WordSplit = "gpt2",
    ) -> None:
        _check_merges(vocab, merges)
        rust_vocab = dict(vocab)
        if SPACE_TOKEN in rust_vocab:  # the id that a lone space gets
            rust_vocab[_BYTE_SPACE] = rust_vocab.pop(SPACE_TOKEN)
        self._vocab = dict(vocab)
        self._unk_id = vocab[unk_token]
        self._space_id = rust_vocab.get(_BYTE_SPACE)
        self._rust = Tokenizer(
            BPE(vocab=rust_vocab, merges=list(merges), unk_token=unk_token, fuse_unk=False)
        )
        self._rust.pre_tokenizer = _pre_tokenizer(word_split)

    def ids(self, text: str) -> list[int]:
        """Token ids of a normalized text."""
        ids: list[int] = []
        for segment in _segments(text):
            ids += self._rust.encode(segment).ids
        return ids

    def tokens(self, text: str) -> list[str]:
        """Tokens of a normalized text; a character outside the vocabulary stays itself here."""
        tokens: list[str] = []
        for segment in _segments(text):
            encoding = self._rust.encode(segment)
            for token, token_id, (start, end) in zip(
                encoding.tokens, encoding.ids, encoding.offsets, strict=True
            ):
                if token_id == self._space_id and SPACE_TOKEN in self._vocab:
                    token = SPACE_TOKEN
                elif token_id == self._unk_id:
                    token = "".join(byte_to_char()[byte] for byte in segment[start:end].encode())
                tokens.append(token)
        return tokens


def _pre_tokenizer(word_split: WordSplit) -> PreTokenizer:
    if word_split == "gpt2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    words = Split(Regex(r"\w+|[^\w\s]+"), behavior="isolated")
    return PreTokenizerSequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


def _check_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    for left, right in merges:
        missing = [
            token
            for token in (left, right, left + right)
            if token not in vocab and not (token == _BYTE_SPACE and SPACE_TOKEN in vocab)
        ]
        if missing:
            raise ValueError(
                f"the merge '{left} {right}' needs {missing[0]!r}, which the vocabulary lacks: "
                "the vocabulary and merges files do not belong together"
            )


def _segments(text: str) -> Iterator[str]:
    """Cut a long text between words; its pieces encode to the same ids as the whole."""
    start = 0
    while len(text) - start > _SEGMENT_CHARS:
        cut = _SAFE_CUT.search(text, start + _SEGMENT_CHARS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]
