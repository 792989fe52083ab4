"""Training of the speech-token decoder with its conditioning encoder: the next code, from a voice and a text.

What is learned last is where in the text the speech is. Where the corpus knows when each word ends, one head
of the middle layers is held to look there, and some of the codes are hidden on the way in, so that it is not
enough to carry on with what was heard. Codes that differ in one digit of the quantizer sound alike: each
digit has an embedding of its own, which is added to those of all codes that have it.

B rows, P prefix and L mel positions, D width, R reference clips.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.audio.mel import POWER_FLOOR, SAMPLING_RATE, TORTOISE_MEL_NORMS
from clvp.codec.griffin_lim import HOP
from clvp.codec.networks import FRAMES_PER_CODE
from clvp.codec.quantizer import FiniteScalarQuantizer
from clvp.conditioning import ClvpConditioningEncoder
from clvp.config import ClvpConfig
from clvp.generation import LABEL_IGNORED, ClvpForCausalLM
from clvp.training.corpus import Corpus, Rng

REFERENCES = 4  # clips that stand for the voices of a batch
SHORTEST_REFERENCE, LONGEST_REFERENCE = 60, 302  # frames, 0.7 to 3.5 seconds
SILENCE_M1 = math.log(POWER_FLOOR) / torch.tensor(TORTOISE_MEL_NORMS)[:, None]
HIDDEN_CODES = 0.5  # the share of codes hidden in a row, at most
SECONDS_PER_CODE = HOP * FRAMES_PER_CODE / SAMPLING_RATE
GUIDED_HEAD = 0
GUIDE_WEIGHT = 0.25
_POOL = 16  # batches of which one of equal length is taken


def digits_of(levels: Sequence[int]) -> Tensor:
    """[codes, Q] the digits of each code, numbered through all Q channels of the quantizer."""
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(math.prod(levels))
    offsets = torch.tensor([0, *levels[:-1]]).cumsum(0)
    return codes[:, None] // quantizer.places % quantizer.levels + offsets


class DecoderNetwork(nn.Module):
    """The decoder and what makes its prefix."""

    digits: Tensor

    def __init__(self, config: ClvpConfig, levels: Sequence[int]) -> None:
        super().__init__()
        self.conditioning_encoder = ClvpConditioningEncoder(config)
        self.speech_decoder_model = ClvpForCausalLM(config.decoder_config)
        self.register_buffer("digits", digits_of(levels), persistent=False)
        width = config.decoder_config.hidden_size
        self.digits_in = nn.Parameter(torch.zeros(sum(levels), width))
        self.digits_out = nn.Parameter(torch.zeros(sum(levels), width))
        middle = config.decoder_config.num_hidden_layers // 2
        self.guided = (middle - 1, middle) if middle else ()

    def _with_digits(self, table_VD: Tensor, digits_XD: Tensor) -> Tensor:
        """A table of all tokens with what the digits add to the codes; start and stop token have none."""
        added_CD = digits_XD[self.digits].sum(dim=1)
        return table_VD + functional.pad(added_CD, (0, 0, 0, len(table_VD) - len(added_CD)))

    @torch.no_grad()
    def merge(self) -> None:
        """Put what the digits add into the tables of the checkpoint, which has no digits."""
        decoder, head = self.speech_decoder_model.model.decoder, self.speech_decoder_model.lm_head
        for layer, digits in ((decoder.input_embeds_layer, self.digits_in), (head, self.digits_out)):
            layer.weight.copy_(self._with_digits(layer.weight, digits))
            digits.zero_()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nats a code, the share that is right, and how little the guided heads look where they should."""
        decoder = self.speech_decoder_model.model.decoder
        latents_RD = torch.stack(self.conditioning_encoder.encode_rows(batch["references"]))
        encoder = self.conditioning_encoder
        text = encoder.text_token_embedding(batch["text"])
        text = text + encoder.text_position_embedding.weight[: text.shape[1]]
        table_VD = self._with_digits(decoder.input_embeds_layer.weight, self.digits_in)
        codes = functional.embedding(batch["codes"], table_VD)
        if self.training:
            shares_B1 = torch.rand(len(codes), 1, device=codes.device) * HIDDEN_CODES
            shown_BL = torch.rand(codes.shape[:2], device=codes.device) >= shares_B1
            codes = codes * shown_BL[..., None]
        codes = codes + decoder.position_embeds_layer.weight[: codes.shape[1]]
        # Text and speech of each row stand side by side, so that no mask is needed: padding is behind.
        both_BLD = torch.cat((latents_RD[batch["reference"]][:, None], text, codes), dim=1)
        both_BLD = both_BLD.gather(1, batch["order"][..., None].expand(-1, -1, both_BLD.shape[-1]))
        output = decoder.hidden_of(both_BLD, output_attentions=True)
        assert output.last_hidden_state is not None
        assert output.attentions is not None
        labels_BL = batch["labels"]
        spoken_BL = labels_BL != LABEL_IGNORED
        states = output.last_hidden_state[spoken_BL]
        head = self.speech_decoder_model.lm_head
        weight_VD = self._with_digits(head.weight, self.digits_out)
        logits = functional.linear(self.speech_decoder_model.final_norm(states), weight_VD, head.bias).float()
        labels = labels_BL[spoken_BL]
        nats = functional.cross_entropy(logits, labels, reduction="sum") / batch["count"]
        right = (logits.argmax(dim=-1) == labels).sum() / batch["count"]
        losses = {"loss": nats, "nats": nats, "right": right}
        guided_BL = batch["piece"] >= 0
        if self.guided and bool(guided_BL.any()):
            misses = [
                self._misses(output.attentions[layer], batch["piece"], guided_BL) for layer in self.guided
            ]
            losses["guide"] = torch.stack(misses).sum() / batch["count"]
            losses["loss"] = nats + GUIDE_WEIGHT * losses["guide"]
        return losses

    def _misses(self, weights_BHLL: Tensor, piece_BL: Tensor, guided_BL: Tensor) -> Tensor:
        """Sum of -log of what a head gives to the text token that is being said and its neighbours."""
        weights_NL = weights_BHLL[:, GUIDED_HEAD][guided_BL].float()
        at_N3 = piece_BL[guided_BL][:, None] + torch.tensor([-1, 0, 1], device=piece_BL.device)
        return -weights_NL.gather(1, at_N3).sum(dim=1).clamp(min=1e-6).log().sum()


class DecoderPart:
    """Rows of about equal length, each with a clip of its speaker."""

    def __init__(self, config: ClvpConfig, levels: Sequence[int], corpus: Corpus) -> None:
        self.network, self.config, self.corpus = DecoderNetwork(config, levels), config, corpus
        positions = config.decoder_config.max_position_embeddings
        self.rows, self.kept = corpus.fitting(positions - 1)  # the start token takes one
        self.lengths = np.add([*map(len, corpus.codes)], [*map(len, corpus.columns["text_ids"])])

    def batch(self, rng: Rng, size: int, rank: int, world: int) -> dict[str, Any]:
        """See `_collate`."""
        pool = rng.choice(self.rows, size * _POOL)
        pool = pool[np.argsort(self.lengths[pool], kind="stable")]
        first = int(rng.integers(_POOL)) * size
        return self._collate(pool[first : first + size], rng, rank, world)

    def validation(self) -> Iterator[dict[str, Any]]:
        """Always the same rows and references."""
        rng = np.random.default_rng(0)
        for rows in np.array_split(self.kept, 4):
            yield self._collate(rows, rng)

    def _collate(self, rows: np.ndarray, rng: Rng, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """`order` [B, P + L] gathers each row's sequence out of latent, text and codes, padded each."""
        corpus, text_config, decoder = self.corpus, self.config.text_config, self.config.decoder_config
        speakers = [corpus.columns["speaker"][row] for row in rows]
        names = sorted(set(speakers))
        clips = [corpus.reference(int(rng.choice(rows[np.array(speakers) == name])), rng) for name in names]
        for _ in range(REFERENCES - len(names)):
            clips.append(corpus.reference(int(rng.choice(rows)), rng))
        clip_speakers = np.array([corpus.columns["speaker"][clip] for clip in clips])
        frames = int(rng.integers(SHORTEST_REFERENCE, LONGEST_REFERENCE + 1))
        references = torch.from_numpy(np.stack([corpus.mel(clip, 0, frames) for clip in clips]))
        if rng.random() < 0.5:  # a run pads clips with silence to one length
            silence = SILENCE_M1.expand(len(clips), -1, LONGEST_REFERENCE - frames)
            references = torch.cat((references, silence), dim=2)
        chosen = [int(rng.choice(np.flatnonzero(clip_speakers == name))) for name in speakers]
        count = sum(len(corpus.codes[row]) + 1 for row in rows)

        own = range(rank, len(rows), world)
        texts = [
            [text_config.bos_token_id, *corpus.columns["text_ids"][rows[i]], *2 * [text_config.eos_token_id]]
            for i in own
        ]
        codes = [corpus.codes[rows[i]] for i in own]
        ends = [corpus.columns["piece_ends"][rows[i]] for i in own]
        most_text, most_codes = max(map(len, texts)), max(map(len, codes)) + 1
        longest = max(1 + len(text) + len(code) + 1 for text, code in zip(texts, codes, strict=True))
        text_B = np.zeros((len(texts), most_text), dtype=np.int64)
        code_B = np.full((len(texts), most_codes), decoder.bos_token_id, dtype=np.int64)
        order = np.zeros((len(texts), longest), dtype=np.int64)
        labels = np.full((len(texts), longest), LABEL_IGNORED, dtype=np.int64)
        piece = np.full((len(texts), longest), -1, dtype=np.int64)
        for i, (text, code, end) in enumerate(zip(texts, codes, ends, strict=True)):
            prefix, stop = 1 + len(text), 1 + len(text) + len(code) + 1
            text_B[i, : len(text)] = text
            code_B[i, 1 : len(code) + 1] = code
            order[i, :prefix] = np.arange(prefix)
            order[i, prefix:stop] = 1 + most_text + np.arange(len(code) + 1)
            labels[i, prefix:stop] = [*code, decoder.eos_token_id]
            if len(end):
                moments = (np.arange(len(code) + 1) + 0.5) * SECONDS_PER_CODE
                piece[i, prefix:stop] = 2 + np.searchsorted(end, moments)  # behind latent and start token
        arrays = {"text": text_B, "codes": code_B, "order": order, "labels": labels, "piece": piece}
        return {
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            "references": references,
            "reference": torch.tensor([chosen[i] for i in own]),
            "count": torch.tensor(count / world),
        }
