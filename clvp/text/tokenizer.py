"""ClvpTokenizer: text to the token ids of the CLVP text encoder and of the Tortoise speech model.

A text is split at the added tokens that it spells out ("[STOP]"), each piece is normalized and encoded. With
Tortoise's normalizer nothing is split off: Tortoise lower-cases first, and "[STOP]" is a word in brackets.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from tokenizers.decoders import ByteLevel
from torch import Tensor

from clvp.batch import (
    BatchFeature,
    Padding,
    Side,
    TensorType,
    Truncation,
    check_choice,
    columns_of,
    list_of_texts,
    pad_rows,
    read_lengths,
    stack,
    to_python,
    to_tensor,
    type_of,
)
from clvp.checkpoint import CheckpointSource, content_of, read_json, write_json
from clvp.fields import Checked, Index
from clvp.text.normalizers import TextNormalizationError, english_normalize, tortoise_normalize
from clvp.text.vocabulary import (
    CONFIG_KEYS,
    NORMALIZER_KEY,
    SPACE_TOKEN,
    SPECIAL_ROLES,
    added_token,
    added_tokens,
    byte_pair_encoder,
    read_merges,
    spell_bytes,
    stored_arguments,
)

Normalizer = Literal["english", "tortoise"]
TokenIds = Sequence[int] | np.ndarray | Tensor


@dataclass(eq=False)
class ClvpTokenizer(Checked):
    """Byte-level BPE tokenizer of the CLVP family. It pickles, and its use changes nothing in it.

    Tokens may be given as strings, as AddedToken or by their description in a JSON file; special tokens are
    added after the end of the vocabulary where it lacks them.
    Raises ValueError for files that do not belong together, and for an argument with an unknown value.
    """

    vocab_file: str | Path  # `vocab.json`: token to id
    merges_file: str | Path  # `merges.txt`: a header and one merge a line
    _: KW_ONLY
    unk_token: str = "[UNK]"
    bos_token: str = "<|endoftext|>"
    eos_token: str = "[STOP]"
    pad_token: str = "[STOP]"
    # Put these around every text. The speech model adds its own and wants neither.
    add_bos_token: bool = False
    add_eos_token: bool = False
    # "english" for the token ids of `transformers`, "tortoise" for those the weights were trained with,
    # better for numbers, years, ordinals, accents and quotation marks.
    normalizer: Normalizer = "english"
    # Id to added token. They are found in a text before anything else happens to it.
    added_tokens_decoder: Mapping[Index, Any] = field(default_factory=dict)
    additional_special_tokens: Sequence[Any] = ()  # `skip_special_tokens` drops these too
    clean_up_tokenization_spaces: bool = True  # `decode` turns [SPACE] and [STOP] into spaces
    model_max_length: int = 10**30  # limit of truncation and padding without a `max_length`
    padding_side: Side = "right"
    truncation_side: Side = "right"

    def __post_init__(self) -> None:
        for role in SPECIAL_ROLES:
            setattr(self, role, added_token(getattr(self, role)).content)
        super().__post_init__()
        self.additional_special_tokens = [added_token(t).content for t in self.additional_special_tokens]
        self._vocabulary = read_json(Path(self.vocab_file), Index)
        self._merges = read_merges(Path(self.merges_file))
        added = added_tokens(self._vocabulary, self.added_tokens_decoder, self.all_special_tokens)
        self.added_tokens_decoder = added
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        self._all_ids = self._vocabulary | self._added_ids
        self._all_tokens = {token_id: token for token, token_id in self._all_ids.items()}
        self.unk_token_id = self._all_ids[self.unk_token]
        self.bos_token_id = self._all_ids[self.bos_token]
        self.eos_token_id = self._all_ids[self.eos_token]
        self.pad_token_id = self._all_ids[self.pad_token]
        # Longest first: of two tokens that start alike, the longer one is found.
        alternatives = sorted(map(re.escape, self._added_ids), key=len, reverse=True)
        self._added_pattern = re.compile(f"({'|'.join(alternatives)})")
        self._bpe = byte_pair_encoder(
            {self.unk_token: self.unk_token_id} | self._vocabulary,
            self._merges,
            self.unk_token,
            whole_words=self.normalizer == "tortoise",
        )

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load from a checkpoint folder or a hub id.

        `kwargs` are options of `huggingface_hub`, such as `revision`, and arguments of the constructor.
        Raises FileNotFoundError for no such folder or repository, or one without a vocabulary.
        """
        source, overrides = CheckpointSource.parse(pretrained_model_name_or_path, kwargs)
        with content_of("the tokenizer (tokenizer_config.json, special_tokens_map.json)", source):
            return cls(**(stored_arguments(source) | overrides))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the vocabulary, the merges and `tokenizer_config.json` into a folder; returns the paths."""
        config = {key: getattr(self, key) for key in CONFIG_KEYS}
        config |= {"tokenizer_class": type(self).__name__, NORMALIZER_KEY: self.normalizer}
        config["added_tokens_decoder"] = {
            str(token_id): token.__getstate__() for token_id, token in self.added_tokens_decoder.items()
        }
        folder = Path(save_directory)
        files: dict[str, dict[str, Any]] = {
            "tokenizer_config.json": config,
            "special_tokens_map.json": self.special_tokens_map,
            "added_tokens.json": {t: i for t, i in self._added_ids.items() if t not in self._vocabulary},
            "vocab.json": self._vocabulary,
        }
        for name, content in files.items():
            write_json(folder / name, content)
        merges = ["#version: 0.2", *(" ".join(merge) for merge in self._merges)]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        return tuple(str(folder / name) for name in (*files, "merges.txt"))

    # ---- the vocabulary ----

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary file; `len(tokenizer)` counts the added ones too."""
        return len(self._vocabulary)

    def __len__(self) -> int:
        return len(self._all_ids)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return dict(self._all_ids)

    def get_added_vocab(self) -> dict[str, int]:
        """Added token to id."""
        return dict(self._added_ids)

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
        return [self._all_ids[token] for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a token, or the list of ids of several; unknown ones get the id of the unknown token."""
        if isinstance(tokens, str):
            return self._all_ids.get(tokens, self.unk_token_id)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """Token of an id, or the list of tokens of several; ValueError for an id that no token has."""
        if not isinstance(ids, int):
            skipped = set(self.all_special_ids) if skip_special_tokens else set()
            return [self.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in skipped]
        if ids not in self._all_tokens:
            raise ValueError(
                f"no token has the id {ids}; text token ids go from 0 to {max(self._all_tokens)} "
                "(speech tokens are no text)"
            )
        return self._all_tokens[ids]

    # ---- encoding ----

    def __call__(
        self,
        text: str | Sequence[str],
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
        cut_to, _ = read_lengths(padding, truncation, max_length, self.model_max_length, pad_to_multiple_of)
        rows = []
        for index, entry in enumerate(list_of_texts(text)):
            try:
                rows.append(self._row(entry, add_special_tokens, cut_to))
            except TextNormalizationError as error:
                raise error.at(index) if not isinstance(text, str) else error from None
        batch = self.pad(
            {"input_ids": rows},
            padding,
            max_length,
            pad_to_multiple_of,
            padding_side,
            return_attention_mask,
            return_tensors,
        )
        one = isinstance(text, str) and return_tensors is None
        return BatchFeature({name: column[0] for name, column in batch.items()}) if one else batch

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: TensorType | None = None,
    ) -> BatchFeature:
        """Pad rows that were encoded before, as a data loader does with those of its batch.

        `encoded_inputs` are what `__call__` gave, for one text, a batch, or each text of a list. Other
        entries than `input_ids` and `attention_mask` stay as they are. The other arguments are those
        of `__call__`; without `return_tensors`, tensors stay tensors.
        """
        _, pad_to = read_lengths(padding, False, max_length, self.model_max_length, pad_to_multiple_of)
        side = padding_side or self.padding_side
        check_choice("padding_side", side, get_args(Side))
        columns = columns_of(encoded_inputs)
        if "input_ids" not in columns:
            raise ValueError(f"pad needs input_ids, and got {', '.join(columns) or 'nothing'}")
        tensors = return_tensors or type_of(columns["input_ids"])
        columns = {name: to_python(column) if type_of(column) else column for name, column in columns.items()}
        one = bool(columns["input_ids"]) and not isinstance(columns["input_ids"][0], list)
        if one:
            columns = {name: [row] for name, row in columns.items()}
        if return_attention_mask is False:
            columns.pop("attention_mask", None)
        elif "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0}
        for name, column in columns.items():
            if pad_to is not None and name in fills:
                column = pad_rows(column, fills[name], pad_to, pad_to_multiple_of, side)
            if tensors is not None:
                column = to_tensor(stack(column, np.int64 if name in fills else None), tensors)
            columns[name] = column[0] if one else column
        return BatchFeature(columns)

    def encode(self, text: str, *, return_tensors: TensorType | None = None, **kwargs: Any) -> Any:
        """The `input_ids` alone: a list, or a [1, N] tensor. Arguments as in `__call__`."""
        return self(text, return_tensors=return_tensors, return_attention_mask=False, **kwargs)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; a character outside the vocabulary stays itself."""
        tokens: list[str] = []
        for piece, added_id in self._pieces(text):
            if added_id is not None:
                tokens.append(piece)
                continue
            encoding = self._bpe.encode(piece)
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                known = token_id != self.unk_token_id
                tokens.append(self._all_tokens[token_id] if known else spell_bytes(piece[start:end]))
        return tokens

    def _row(self, text: str, add_special_tokens: bool, cut_to: int | None) -> list[int]:
        ids: list[int] = []
        for piece, added_id in self._pieces(text):
            ids += [added_id] if added_id is not None else self._bpe.encode(piece).ids
        before = [self.bos_token_id] if add_special_tokens and self.add_bos_token else []
        after = [self.eos_token_id] if add_special_tokens and self.add_eos_token else []
        if cut_to is not None:
            keep = max(cut_to - len(before) - len(after), 0)
            ids = ids[:keep] if self.truncation_side == "right" else ids[max(len(ids) - keep, 0) :]
        return before + ids + after

    def _pieces(self, text: str) -> Iterable[tuple[str, int | None]]:
        """The added tokens in a text, with their ids, and the normalized pieces between them, with None."""
        if self.normalizer == "tortoise":
            yield tortoise_normalize(text), None
            return
        for index, piece in enumerate(self._added_pattern.split(text)):  # every second one is an added token
            if piece:
                yield (piece, self._added_ids[piece]) if index % 2 else (english_normalize(piece), None)

    # ---- decoding ----

    def decode(
        self,
        token_ids: int | TokenIds | Sequence[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of a sequence of token ids, or a list of texts of a batch of sequences.

        `skip_special_tokens` drops bos, eos, padding and unknown tokens. `clean_up_tokenization_spaces` turns
        [SPACE] and [STOP] into spaces, drops unknown tokens, and makes one space of two or three; by default
        as the tokenizer was told. Raises ValueError for an id that no token has.
        """
        ids = to_python(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        tokens = self.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        text: str = ByteLevel().decode(tokens)
        cleans = clean_up_tokenization_spaces
        if not (self.clean_up_tokenization_spaces if cleans is None else cleans):
            return text
        for token in (SPACE_TOKEN, "[STOP]"):
            text = text.replace(token, " ") if token in self._all_ids else text
        return text.replace(self.unk_token, "").replace("   ", " ").replace("  ", " ")

    def batch_decode(
        self,
        sequences: Sequence[TokenIds] | TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each sequence of token ids; arguments as in `decode`."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]
