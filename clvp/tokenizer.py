"""ClvpTokenizer: text to the token ids of the CLVP text encoder and of the Tortoise speech model.

A text is split at the added tokens that it spells out ("[STOP]"), each piece is normalized and encoded. With
Tortoise's normalizer nothing is split off: Tortoise lower-cases first, and "[STOP]" is a word in brackets.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, overload

import numpy as np
from tokenizers import AddedToken
from torch import Tensor

from clvp.batch import BatchFeature
from clvp.bpe import SPACE_TOKEN, BytePairEncoder, join_tokens
from clvp.checkpoint import CheckpointSource, write_json
from clvp.normalizers import TextNormalizationError, english_normalize, tortoise_normalize
from clvp.text_batch import Padding, Side, TensorType, Truncation, assemble_batch, plan_lengths, to_python
from clvp.tokenizer_files import (
    CONFIG_KEYS,
    NORMALIZER_KEY,
    SPECIAL_ROLES,
    read_tokenizer_arguments,
    required_file,
)
from clvp.vocabulary import MERGES_FILE, VOCAB_FILE, TokenDescription, Vocabulary, token_text

Normalizer = Literal["english", "tortoise"]
TokenIds = Sequence[int] | np.ndarray | Tensor

_STOP_TOKEN = "[STOP]"


class ClvpTokenizer:
    """Byte-level BPE tokenizer of the CLVP family. It pickles, and its use changes nothing in it.

    Args:
        vocab_file: `vocab.json`, token to id.
        merges_file: `merges.txt`: a header line, then one merge per line.
        errors: how `decode` treats bytes that are no UTF-8 (see `bytes.decode`).
        unk_token, bos_token, eos_token, pad_token: added after the end of the vocabulary where it lacks them.
        add_prefix_space: kept for compatibility; it changes no ids, in the reference neither.
        add_bos_token, add_eos_token: put these around every text. The speech model adds its own and wants
            neither.
        normalizer: "english" for the token ids of `transformers`, "tortoise" for those the weights were
            trained with (better for numbers, years, ordinals, accents, quotation marks): `clvp.normalizers`.
        added_tokens_decoder: id to added token (a string, or its description as in `tokenizer_config.json`).
        additional_special_tokens: further tokens that `skip_special_tokens` drops.
        clean_up_tokenization_spaces: whether `decode` turns [SPACE] and [STOP] into spaces by default.
        model_max_length: tokens that the model can take; the limit of truncation and padding without a
            `max_length`.
        padding_side, truncation_side: "right" or "left".

    Raises:
        ValueError: the files do not belong together, or an argument has an unknown value.
    """

    vocab_files_names: ClassVar = {"vocab_file": VOCAB_FILE, "merges_file": MERGES_FILE}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | Path,
        merges_file: str | Path,
        errors: str = "replace",
        unk_token: TokenDescription = "[UNK]",
        bos_token: TokenDescription = "<|endoftext|>",
        eos_token: TokenDescription = "[STOP]",
        pad_token: TokenDescription = "[STOP]",
        add_prefix_space: bool = False,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        *,
        normalizer: Normalizer = "english",
        added_tokens_decoder: Mapping[int | str, TokenDescription] | None = None,
        additional_special_tokens: Sequence[TokenDescription] = (),
        clean_up_tokenization_spaces: bool = True,
        model_max_length: int = 10**30,
        padding_side: Side = "right",
        truncation_side: Side = "right",
    ) -> None:
        _check_choice("normalizer", normalizer, get_args(Normalizer))
        _check_choice("padding_side", padding_side, get_args(Side))
        _check_choice("truncation_side", truncation_side, get_args(Side))
        self.errors = errors
        self.unk_token = token_text(unk_token)
        self.bos_token = token_text(bos_token)
        self.eos_token = token_text(eos_token)
        self.pad_token = token_text(pad_token)
        self.additional_special_tokens = [token_text(token) for token in additional_special_tokens]
        self.add_prefix_space = add_prefix_space
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.normalizer: Normalizer = normalizer
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.model_max_length = int(model_max_length)
        self.padding_side: Side = padding_side
        self.truncation_side: Side = truncation_side
        self._vocab = Vocabulary.read(
            vocab_file, merges_file, added_tokens_decoder or {}, self.all_special_tokens
        )
        self._bpe = BytePairEncoder(
            {self.unk_token: self.unk_token_id} | self._vocab.encoder,
            self._vocab.merges,
            self.unk_token,
            "words" if normalizer == "tortoise" else "gpt2",
        )

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> "ClvpTokenizer":
        """Load from a checkpoint folder or a hub id; `overrides` are arguments of the constructor.

        Raises:
            FileNotFoundError: no such folder or repository, or it holds no vocabulary.
        """
        source = CheckpointSource(pretrained_model_name_or_path, revision, cache_dir, token, local_files_only)
        vocab_file, merges_file = required_file(source, VOCAB_FILE), required_file(source, MERGES_FILE)
        return cls(vocab_file, merges_file, **(read_tokenizer_arguments(source) | overrides))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary, the merges and `tokenizer_config.json` into a folder; returns the paths."""
        folder, prefix = Path(save_directory), _file_prefix(filename_prefix)
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: getattr(self, key) for key in CONFIG_KEYS if key != "added_tokens_decoder"}
        config |= {"tokenizer_class": type(self).__name__, NORMALIZER_KEY: self.normalizer}
        config["added_tokens_decoder"] = self._vocab.describe_added()
        added = {token: i for token, i in self._vocab.added_ids.items() if token not in self._vocab.encoder}
        files: dict[str, dict[str, Any]] = {
            "tokenizer_config.json": config,
            "special_tokens_map.json": dict(self.special_tokens_map),
            "added_tokens.json": added,
        }
        for name, content in files.items():
            write_json(folder / f"{prefix}{name}", content)
        return (
            *(str(folder / f"{prefix}{name}") for name in files),
            *self.save_vocabulary(folder, filename_prefix),
        )

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str]:
        """Write `vocab.json` and `merges.txt` into an existing folder; returns their paths.

        Raises:
            NotADirectoryError: there is no such folder.
        """
        folder = Path(save_directory)
        if not folder.is_dir():
            raise NotADirectoryError(f"cannot save the vocabulary: {str(folder)!r} is no folder")
        return self._vocab.write(folder, _file_prefix(filename_prefix))

    # ---- the vocabulary ----

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary file; `len(tokenizer)` counts the added ones too."""
        return len(self._vocab.encoder)

    def __len__(self) -> int:
        return len(self._vocab.all_tokens())

    def __repr__(self) -> str:
        return f"ClvpTokenizer(vocab_size={self.vocab_size}, normalizer={self.normalizer!r})"

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self._vocab.all_tokens()

    def get_added_vocab(self) -> dict[str, int]:
        """Added token to id."""
        return dict(self._vocab.added_ids)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token."""
        return dict(self._vocab.added)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role ("bos_token", ...) to token."""
        return {role: getattr(self, role) for role in SPECIAL_ROLES}

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens that `skip_special_tokens` drops, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def unk_token_id(self) -> int:
        """Id of the unknown token, and so on for the three below."""
        return self.convert_tokens_to_ids(self.unk_token)

    @property
    def bos_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.pad_token)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Id of a token, or ids of several; unknown ones get the id of the unknown token."""
        if isinstance(tokens, str):
            return self._vocab.find(tokens, self.unk_token)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Token of an id, or tokens of several.

        Raises:
            ValueError: no token has such an id.
        """
        if isinstance(ids, int):
            return self._vocab.token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._vocab.token(int(i)) for i in ids if int(i) not in skipped]

    # ---- encoding ----

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: TensorType | None = None,
        return_attention_mask: bool | None = True,
    ) -> BatchFeature:
        """Encode a text or a batch of texts.

        Args:
            text: one text, or a sequence of B texts.
            add_special_tokens: obey `add_bos_token` and `add_eos_token`.
            padding: True or "longest" pads to the longest of the batch, "max_length" to `max_length`.
            truncation: True cuts at `max_length` tokens, and so does a `max_length` with neither argument.
            max_length: by default the model's limit, `model_max_length`.
            padding_side: by default the tokenizer's.
            return_tensors: "pt" or "np" for [B, N] tensors (one text: B = 1), None for lists.

        Returns:
            `input_ids` and `attention_mask` (1 for a token, 0 for padding).

        Raises:
            TextNormalizationError: a text that the reference's normalizer cannot read (normalizer="english").
            TypeError: `text` is neither a string nor a sequence of strings.
            ValueError: an argument has an unknown value, or unequal lengths are to become a tensor.
        """
        if text_pair is not None:
            raise ValueError("text_pair: CLVP reads single texts; encode the two one after the other")
        plan = plan_lengths(padding, truncation, max_length, self.model_max_length, pad_to_multiple_of)
        rows = []
        for index, entry in enumerate(_texts(text)):
            try:
                rows.append(self._row(entry, add_special_tokens, plan.truncate_to))
            except TextNormalizationError as error:
                raise error.at(index) if not isinstance(text, str) else error from None
        masks = [[1] * len(row) for row in rows]
        return assemble_batch(
            {"input_ids": rows} | ({"attention_mask": masks} if return_attention_mask is not False else {}),
            fill={"input_ids": self.pad_token_id, "attention_mask": 0},
            plan=plan,
            side=padding_side or self.padding_side,
            tensor_type=return_tensors,
            single=isinstance(text, str),
        )

    def encode(self, text: str, *, return_tensors: TensorType | None = None, **kwargs: Any) -> Any:
        """The `input_ids` alone: a list, or a [1, N] tensor. Arguments as in `__call__`."""
        return self(text, return_tensors=return_tensors, return_attention_mask=False, **kwargs)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; a character outside the vocabulary stays itself."""
        tokens: list[str] = []
        for piece, added_id in self._pieces(text):
            tokens += [piece] if added_id is not None else self._bpe.tokens(self._normalize(piece))
        return tokens

    def _row(self, text: str, add_special_tokens: bool, truncate_to: int | None) -> list[int]:
        ids: list[int] = []
        for piece, added_id in self._pieces(text):
            ids += [added_id] if added_id is not None else self._bpe.ids(self._normalize(piece))
        before = [self.bos_token_id] if add_special_tokens and self.add_bos_token else []
        after = [self.eos_token_id] if add_special_tokens and self.add_eos_token else []
        if truncate_to is not None:
            keep = max(truncate_to - len(before) - len(after), 0)
            ids = ids[:keep] if self.truncation_side == "right" else ids[max(len(ids) - keep, 0) :]
        return before + ids + after

    def _pieces(self, text: str) -> list[tuple[str, int | None]]:
        return [(text, None)] if self.normalizer == "tortoise" else self._vocab.split(text)

    def _normalize(self, text: str) -> str:
        return tortoise_normalize(text) if self.normalizer == "tortoise" else english_normalize(text)

    # ---- decoding ----

    def decode(
        self,
        token_ids: int | TokenIds | Sequence[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of a sequence of token ids, or a list of texts of a batch of sequences.

        Args:
            skip_special_tokens: drop bos, eos, padding and unknown tokens.
            clean_up_tokenization_spaces: turn [SPACE] and [STOP] into spaces, drop unknown tokens, and make
                one space of two or three; by default as the tokenizer was told.

        Raises:
            ValueError: no token has such an id.
        """
        ids = to_python(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        tokens = self.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        text = self.convert_tokens_to_string(tokens)
        clean = clean_up_tokenization_spaces
        return (
            self.clean_up_tokenization(text)
            if clean or (clean is None and self.clean_up_tokenization_spaces)
            else text
        )

    def batch_decode(
        self,
        sequences: Sequence[TokenIds] | TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each sequence of token ids; arguments as in `decode`."""
        return [
            self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
            for ids in to_python(sequences)
        ]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens and undo the byte map; [SPACE] stays spelled out."""
        return join_tokens(tokens, self.errors)

    def clean_up_tokenization(self, text: str) -> str:
        """Decoded text for people: see `decode`."""
        known = self.get_vocab()
        for token in (SPACE_TOKEN, _STOP_TOKEN):
            text = text.replace(token, " ") if token in known else text
        return text.replace(self.unk_token, "").replace("   ", " ").replace("  ", " ")


def _texts(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, bytes | Mapping) or not hasattr(texts, "__iter__"):
        raise TypeError(f"text must be a string or a sequence of strings, got {type(text).__name__}")
    texts = list(texts)
    for index, entry in enumerate(texts):
        if not isinstance(entry, str):
            raise TypeError(f"text {index} is no string but {type(entry).__name__}: {str(entry)[:40]!r}")
    return texts


def _file_prefix(filename_prefix: str | None) -> str:
    return f"{filename_prefix}-" if filename_prefix else ""


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
