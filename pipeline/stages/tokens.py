"""Stage 2, `validate`: text to text tokens; a text that the model cannot take is its row's error."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import RowError, shown
from pipeline.rows.columns import EXTRA_PREFIX, INPUT_IDS, map_rows, set_columns
from pipeline.settings import Normalizer

if TYPE_CHECKING:
    from clvp import ClvpTokenizer

# Of a text: characters that no token stands for, such as "@". The model hears that there is one, not which.
UNKNOWN_TOKENS = pa.field(EXTRA_PREFIX + "unknown_tokens", pa.int32())


@dataclass
class TextToTokens:
    """Callable on a block."""

    tokenizer: "ClvpTokenizer"
    max_tokens: int  # that the model takes of a text

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens, table = map_rows(table, "validate", lambda i: self._tokens(table["text"][i].as_py()))
        unknown = [ids and ids.count(self.tokenizer.unk_token_id) for ids in tokens]
        return set_columns(table, {INPUT_IDS: tokens, UNKNOWN_TOKENS: unknown})

    def _tokens(self, text: str) -> list[int]:
        # Blanks, controls and what is unassigned: a tokenizer may well have a token for them.
        if not any(character.isprintable() and character != " " for character in text):
            raise RowError("EmptyText", f"the text has no character that can be spoken: {shown(text)}")
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if not tokens:
            raise RowError("EmptyText", f"nothing to speak is left of the text {shown(text)}")
        if not any(map(str.isalnum, self.tokenizer.decode(tokens, skip_special_tokens=True))):
            raise RowError("UnspeakableText", f"no letter that the model knows is in the text {shown(text)}")
        if len(tokens) > self.max_tokens:
            problem = f"the text has {len(tokens):,} tokens, at most {self.max_tokens}: --split-text cuts it"
            raise RowError("TextTooLong", problem)
        return tokens


@lru_cache(maxsize=2)
def load_tokenizer(model: str, normalizer: Normalizer) -> "ClvpTokenizer":
    """The tokenizer of a checkpoint, loaded once per process."""
    from clvp import ClvpTokenizer

    return ClvpTokenizer.from_pretrained(model, normalizer=normalizer)
