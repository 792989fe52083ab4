"""Training of the CLVP pair: which speech belongs to which text.

Every row is told apart from the others of its batch, and from versions of itself that went wrong as samples
do: texts with a word replaced, dropped, doubled or moved, speech with such a word or with one that begins as
it should and ends as another. The speech encoder also learns to say which text token each code belongs to,
where the corpus knows, without which the contrast alone hardly moves.

B rows, K wrong texts of each, L scoring length, N text tokens, P projection width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.config import ClvpConfig
from clvp.encoder import ClvpEncoder
from clvp.generation import LABEL_IGNORED
from clvp.scoring import pad_and_fix_codes, unit
from clvp.training.corpus import Corpus, Rng
from clvp.training.decoder import SECONDS_PER_CODE

WRONG_TEXTS = 3
SLURRED = 0.6  # of the speech that went wrong: a word within, not between
ALIGNMENT_WEIGHT = 1.0
HIGHEST_SCALE = 4.6052  # the logarithm of 100


class PairNetwork(nn.Module):
    """Both encoders, the scale of their similarity, and a head that is dropped after training."""

    def __init__(self, config: ClvpConfig) -> None:
        super().__init__()
        self.text_encoder_model = ClvpEncoder(config.text_config)
        self.speech_encoder_model = ClvpEncoder(config.speech_config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.says = nn.Linear(config.speech_config.hidden_size, config.text_config.vocab_size)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contrast both ways, against other rows and wrong versions; the share that is right."""
        said = self.speech_encoder_model(batch["speech"])
        speech_SP = unit(said.embeds)
        text_TP = unit(self.text_encoder_model(batch["text"], attention_mask=batch["text_mask"]).embeds)
        count = len(batch["says"])
        scale = self.logit_scale.clamp(max=HIGHEST_SCALE).exp()
        similar_TS = text_TP @ speech_SP.T * scale
        target = torch.arange(count, device=speech_SP.device)
        of_text = functional.cross_entropy(similar_TS[:count], target)  # among all speech
        of_speech = functional.cross_entropy(similar_TS[:, :count].T, target)  # among all texts
        right = (similar_TS[:, :count].argmax(dim=0) == target).float().mean()
        # Whether each wrong version is worse than its own text.
        own = similar_TS[target, target]
        wrong = similar_TS[count:, :count].unflatten(0, (count, -1))[target, :, target]
        beaten = (own[:, None] > wrong).float().mean()
        losses = {
            "loss": of_text + of_speech,
            "contrast": of_text + of_speech,
            "right": right,
            "beaten": beaten,
        }
        labels = batch["says"]
        if bool((labels != LABEL_IGNORED).any()):
            logits = self.says(said.last_hidden_state[: len(labels)]).float()
            losses["says"] = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            losses["loss"] = losses["loss"] + ALIGNMENT_WEIGHT * losses["says"]
        return losses


def edited(words: Sequence[Any], others: Sequence[Any], rng: Rng) -> list[Any]:
    """Words with one of them replaced by another's, dropped, doubled, or exchanged with its neighbour."""
    at, kind = int(rng.integers(len(words))), int(rng.integers(6))
    found = list(words)
    if kind == 0 and len(words) > 1:
        del found[at]
    elif kind == 1:
        found.insert(at, found[at])
    elif kind == 2 and at:
        found[at - 1], found[at] = found[at], found[at - 1]
    else:
        found[at] = others[int(rng.integers(len(others)))]
    return found


def slurred(word: np.ndarray, other: np.ndarray, rng: Rng) -> np.ndarray:
    """Codes of a word that halfway becomes another, or begins as one: what samples get wrong most often."""
    share = rng.uniform(0.25, 0.75)
    first, second = (word, other) if rng.random() < 0.5 else (other, word)
    return np.concatenate((first[: round(share * len(first))], second[round(share * len(second)) :]))


class PairPart:
    """Rows with their codes, and wrong versions of each."""

    def __init__(self, config: ClvpConfig, corpus: Corpus) -> None:
        self.network, self.config, self.corpus = PairNetwork(config), config, corpus
        self.rows, self.kept = corpus.fitting(config.scoring_length)

    def batch(self, rng: Rng, size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """See `_collate`. Each process contrasts its own share."""
        return self._collate(rng.choice(self.rows, size)[rank::world], rng)

    def validation(self) -> Iterator[dict[str, Any]]:
        """Always the same rows and wrong versions."""
        rng = np.random.default_rng(0)
        for rows in np.array_split(self.kept, 4):
            yield self._collate(rows, rng)

    def _words(self, row: int) -> list[tuple[list[int], np.ndarray]]:
        """Text tokens and codes of each word of a row; of one long word where nobody knows when it ends."""
        ids, codes = self.corpus.columns["text_ids"][row], self.corpus.codes[row]
        ends = self.corpus.columns["piece_ends"][row]
        if not len(ends):
            return [(ids, codes)]
        breaks = [i + 1 for i, token in enumerate(ids) if token == self.corpus.space_id]
        cuts = [0, *(round(ends[at - 1] / SECONDS_PER_CODE) for at in breaks), len(codes)]
        pieces = zip([0, *breaks], [*breaks, len(ids)], cuts[:-1], cuts[1:], strict=True)
        return [(ids[first:last], codes[start:end]) for first, last, start, end in pieces]

    def _collate(self, rows: np.ndarray, rng: Rng) -> dict[str, Any]:
        """Speech [2 B, L], the spoiled behind the B; texts [B + B K, N], K wrong ones of each row behind."""
        corpus, decoder = self.corpus, self.config.decoder_config
        words, speakers = [self._words(row) for row in rows], [corpus.columns["speaker"][row] for row in rows]
        right = [list(corpus.columns["text_ids"][row]) for row in rows]
        wrong, spoiled = [], []
        for i, row_words in enumerate(words):
            others = words[int(rng.integers(len(words)))]
            for _ in range(WRONG_TEXTS):
                text = [token for ids, _ in edited(row_words, others, rng) for token in ids]
                wrong.append(text if text != right[i] else text[: len(text) // 2])
            # Another's word in another's voice would be too easy to hear.
            same = [w for w, name in zip(words, speakers, strict=True) if name == speakers[i]]
            others = same[int(rng.integers(len(same)))]
            pieces = [codes for _, codes in row_words]
            if rng.random() < SLURRED:
                at, other = int(rng.integers(len(pieces))), int(rng.integers(len(others)))
                pieces[at] = slurred(pieces[at], others[other][1], rng)
            else:
                pieces = [codes for _, codes in edited(row_words, others, rng)]
            spoken, own = np.concatenate(pieces)[: self.config.scoring_length], corpus.codes[rows[i]]
            spoiled.append(spoken if not np.array_equal(spoken, own) else own[: len(own) // 2])
        stop = self.config.text_config.eos_token_id
        texts = [torch.tensor([*ids, stop]) for ids in (*right, *wrong)]
        padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(ids) for ids in texts])
        speech = [torch.from_numpy(codes) for codes in (*(corpus.codes[row] for row in rows), *spoiled)]
        says = torch.full((len(rows), self.config.scoring_length), LABEL_IGNORED)
        for i, row in enumerate(rows):
            ends, ids = corpus.columns["piece_ends"][row], corpus.columns["text_ids"][row]
            if len(ends):
                moments = (np.arange(len(corpus.codes[row])) + 0.5) * SECONDS_PER_CODE
                says[i, : len(moments)] = torch.tensor([*ids, stop])[np.searchsorted(ends, moments)]
        fixing = decoder.decoder_fixing_codes
        return {
            "speech": pad_and_fix_codes(speech, [True] * len(speech), self.config.scoring_length, fixing),
            "text": padded,
            "text_mask": torch.arange(padded.shape[1]) < lengths[:, None],
            "says": says,
        }
