"""Stage 2, `validate`: text to text tokens; a text that the model cannot take is its row's error."""

from collections.abc import Callable
from functools import lru_cache

import pyarrow as pa

from clvp import ClvpTokenizer
from pipeline.errors import ERROR, RowError, error_array, error_record, shown
from pipeline.rows.columns import (
    EXTRA_PREFIX,
    ID,
    INPUT_IDS,
    SOURCE,
    TEXT,
    good_rows,
    replace_columns,
    require_columns,
)
from pipeline.settings import Normalizer

INPUT = pa.schema([ID, TEXT, SOURCE, ERROR])  # and the job's own column, audio or speech_ids
ADDED = INPUT_IDS

Encode = Callable[[str], list[int]]


class TextToTokens:
    """Callable on a block. `max_tokens` is the number of text tokens that the model takes."""

    def __init__(self, encode: Encode, max_tokens: int) -> None:
        self.encode = encode
        self.max_tokens = max_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        require_columns(table, INPUT)
        errors = table["error"].to_pylist()
        tokens: list[list[int] | None] = [None] * len(table)
        for i in good_rows(table):
            try:
                tokens[i] = self._tokens(table["text"][i].as_py())
            except Exception as error:  # whatever a normalizer may do must stay with the row
                errors[i] = error_record("validate", error)
        output = pa.schema([f for f in table.schema if not f.name.startswith(EXTRA_PREFIX)]).append(ADDED)
        return replace_columns(
            table, output, {"input_ids": pa.array(tokens, INPUT_IDS.type), "error": error_array(errors)}
        )

    def _tokens(self, text: str) -> list[int]:
        # Blanks, controls and what is unassigned: a tokenizer may well have a token for them.
        if not any(character.isprintable() and character != " " for character in text):
            raise RowError("EmptyText", f"the text has no character that can be spoken: {shown(text)}")
        tokens = self.encode(text)
        if not tokens:
            raise RowError("EmptyText", f"nothing to speak is left of the text {shown(text)}")
        if len(tokens) > self.max_tokens:
            raise RowError(
                "TextTooLong",
                f"the text has {len(tokens):,} tokens; the model takes {self.max_tokens}: split it",
            )
        return tokens


@lru_cache(maxsize=2)
def load_encoder(model: str, normalizer: Normalizer) -> Encode:
    """The tokenizer of a checkpoint as a function, loaded once per process."""
    tokenizer = ClvpTokenizer.from_pretrained(model, normalizer=normalizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return encode
