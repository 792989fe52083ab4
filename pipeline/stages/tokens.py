"""Stage 2, `validate`: text to text tokens; a text that the model cannot take is its row's error."""

from collections.abc import Callable
from functools import lru_cache, partial

import pyarrow as pa

from clvp import ClvpTokenizer
from pipeline.errors import ERROR, RowError, shown
from pipeline.rows.columns import INPUT_IDS, TEXT, map_rows, set_columns
from pipeline.settings import Normalizer

INPUT = pa.schema([TEXT, ERROR])
OUTPUT = pa.schema([INPUT_IDS])

Encode = Callable[[str], list[int]]


class TextToTokens:
    """Callable on a block. `max_tokens` is the number of text tokens that the model takes."""

    def __init__(self, encode: Encode, max_tokens: int) -> None:
        self.encode = encode
        self.max_tokens = max_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens, table = map_rows(table, "validate", lambda i: self._tokens(table["text"][i].as_py()))
        return set_columns(table, {INPUT_IDS: pa.array(tokens, INPUT_IDS.type)})

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
    return partial(tokenizer.encode, add_special_tokens=False)
