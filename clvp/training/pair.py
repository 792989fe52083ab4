"""Training of the CLVP pair: which speech belongs to which text.

Every row is told apart from the others of its batch, and from versions of itself that went wrong as samples
do: texts with a word replaced, dropped, doubled or moved, speech with such a word or with one that begins as
it should and ends as another. The speech encoder also learns to say which text token each code belongs to,
where the corpus knows, without which the contrast alone hardly moves.

Best of all are the decoder's own samples, where a recognizer has listened to them: each belongs to what was
heard, and neither to what it should have said nor to other samples of the text.

B rows, K wrong texts of each, L scoring length, N text tokens, P projection width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.assets import ASSETS
from clvp.config import ClvpConfig
from clvp.encoder import ClvpEncoder
from clvp.generation import LABEL_IGNORED
from clvp.scoring import pad_and_fix_codes, unit
from clvp.text.tokenizer import ClvpTokenizer
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
        contrast = of_text + of_speech
        losses = {"loss": contrast, "contrast": contrast, "right": right, "beaten": beaten}
        labels = batch["says"]
        if bool((labels != LABEL_IGNORED).any()):
            logits = self.says(said.last_hidden_state[: len(labels)]).float()
            losses["says"] = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            losses["loss"] = contrast + ALIGNMENT_WEIGHT * losses["says"]
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


@dataclass(frozen=True)
class Example:
    """A text and its speech; WRONG_TEXTS versions of the text that went wrong, and one of the speech."""

    text: list[int]
    codes: np.ndarray
    wrong: list[list[int]]
    spoiled: np.ndarray
    ends: Sequence[float] = ()  # seconds at which each token has been said, where the corpus knows


@dataclass(frozen=True)
class Sample:
    """Codes that were sampled for a text, and the text that was heard."""

    codes: np.ndarray
    heard: list[int]


def read_samples(run: Path, longest: int) -> list[tuple[list[int], list[Sample]]]:
    """The text and the samples of each row of a run with `--audio all --measure transcribe`."""
    tokenizer = ClvpTokenizer.from_pretrained(ASSETS)
    rows = []
    for row in pq.read_table(run / "data", columns=["text", "candidates", "measures"]).to_pylist():
        heard = {item["candidate"]: item["heard"] for item in row["measures"]}
        samples = [
            Sample(np.array(item["speech_ids"], dtype=np.int64), tokenizer(said)["input_ids"])
            for item in row["candidates"]
            if len(item["speech_ids"]) <= longest and (said := heard.get(item["candidate"]))
        ]
        if samples:
            rows.append((tokenizer(row["text"])["input_ids"], samples))
    return rows


class PairPart:
    """Rows with their codes, and wrong versions of each; where there are samples, as many of them."""

    def __init__(self, config: ClvpConfig, corpus: Corpus, samples: Path | None = None) -> None:
        self.network, self.config, self.corpus = PairNetwork(config), config, corpus
        self.rows, self.kept = corpus.fitting(config.scoring_length)
        self.samples = read_samples(samples, config.scoring_length) if samples else []

    def batch(self, rng: Rng, size: int, rank: int, world: int) -> dict[str, Any]:
        """See `_collate`. Each process contrasts its own share."""
        sampled = size // 2 if self.samples else 0
        examples = self._examples(rng.choice(self.rows, size - sampled)[rank::world], rng)
        for index in rng.integers(max(len(self.samples), 1), size=sampled)[rank::world]:
            examples.append(self._sampled(*self.samples[int(index)], rng))
        return self._collate(examples)

    def validation(self) -> Iterator[dict[str, Any]]:
        """Always the same rows and wrong versions."""
        rng = np.random.default_rng(0)
        for rows in np.array_split(self.kept, 4):
            yield self._collate(self._examples(rows, rng))

    def _texts(self, ids: list[int]) -> list[list[int]]:
        """The tokens of each word, with the space behind it."""
        breaks = [i + 1 for i, token in enumerate(ids) if token == self.corpus.space_id]
        return [ids[first:last] for first, last in pairwise((0, *breaks, len(ids)))]

    def _words(self, row: int) -> list[tuple[list[int], np.ndarray]]:
        """Text tokens and codes of each word of a row; of one long word where nobody knows when it ends."""
        ids, codes = self.corpus.columns["text_ids"][row], self.corpus.codes[row]
        ends = self.corpus.columns["piece_ends"][row]
        if not len(ends):
            return [(ids, codes)]
        texts = self._texts(ids)
        lasts = np.cumsum([len(text) for text in texts])[:-1] - 1
        cuts = [0, *(round(ends[at] / SECONDS_PER_CODE) for at in lasts), len(codes)]
        return [(text, codes[start:end]) for text, (start, end) in zip(texts, pairwise(cuts), strict=True)]

    def _examples(self, rows: np.ndarray, rng: Rng) -> list[Example]:
        """Of rows of the corpus."""
        corpus = self.corpus
        words, speakers = [self._words(row) for row in rows], [corpus.columns["speaker"][row] for row in rows]
        examples = []
        for row, row_words, speaker in zip(rows, words, speakers, strict=True):
            text, own = list(corpus.columns["text_ids"][row]), corpus.codes[row]
            others = words[int(rng.integers(len(words)))]
            texts, other_texts = ([ids for ids, _ in of] for of in (row_words, others))
            wrong = [[*chain(*edited(texts, other_texts, rng))] for _ in range(WRONG_TEXTS)]
            # Another's word in another's voice would be too easy to hear.
            same = [w for w, name in zip(words, speakers, strict=True) if name == speaker]
            spoken, other = ([codes for _, codes in of] for of in (row_words, same[rng.integers(len(same))]))
            if rng.random() < SLURRED:
                at = int(rng.integers(len(spoken)))
                spoken[at] = slurred(spoken[at], other[rng.integers(len(other))], rng)
            else:
                spoken = edited(spoken, other, rng)
            spoiled = np.concatenate(spoken)[: self.config.scoring_length]
            examples.append(
                Example(
                    text,
                    own,
                    [ids if ids != text else text[: len(text) // 2] for ids in wrong],
                    spoiled if not np.array_equal(spoiled, own) else own[: len(own) // 2],
                    corpus.columns["piece_ends"][row],
                )
            )
        return examples

    def _sampled(self, asked: list[int], samples: Sequence[Sample], rng: Rng) -> Example:
        """One of the samples of a text."""
        chosen = samples[int(rng.integers(len(samples)))]
        others = [other for other in samples if other.heard != chosen.heard]
        wrong = [ids for ids in (asked, *(other.heard for other in others)) if ids != chosen.heard]
        texts = self._texts(chosen.heard)
        while len(wrong) < WRONG_TEXTS:
            ids = [*chain(*edited(texts, self._texts(asked), rng))]
            wrong.append(ids if ids != chosen.heard else ids[: len(ids) // 2])
        half = chosen.codes[: len(chosen.codes) // 2]
        spoiled = others[int(rng.integers(len(others)))].codes if others else half
        return Example(chosen.heard, chosen.codes, wrong[:WRONG_TEXTS], spoiled)

    def _collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Speech [2 B, L], the spoiled behind the B; texts [B + B K, N], K wrong ones of each row behind."""
        length, stop = self.config.scoring_length, self.config.text_config.eos_token_id
        wrong = [ids for example in examples for ids in example.wrong]
        texts = [torch.tensor([*ids, stop]) for ids in (*(example.text for example in examples), *wrong)]
        padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(ids) for ids in texts])
        spoken = [*(example.codes for example in examples), *(example.spoiled for example in examples)]
        speech = [torch.from_numpy(codes) for codes in spoken]
        says = torch.full((len(examples), length), LABEL_IGNORED)
        for i, example in enumerate(examples):
            if len(example.ends):
                moments = (np.arange(len(example.codes)) + 0.5) * SECONDS_PER_CODE
                tokens = torch.tensor([*example.text, stop])
                says[i, : len(moments)] = tokens[np.searchsorted(example.ends, moments)]
        fixing = self.config.decoder_config.decoder_fixing_codes
        return {
            "speech": pad_and_fix_codes(speech, [True] * len(speech), length, fixing),
            "text": padded,
            "text_mask": torch.arange(padded.shape[1]) < lengths[:, None],
            "says": says,
        }
