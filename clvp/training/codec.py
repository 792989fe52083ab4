"""Training of the speech codec: pieces of log-mels through the codes and back, in another clip's voice."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.audio.mel import TORTOISE_MEL_NORMS
from clvp.codec import CodecConfig, CodecDecoder, CodecEncoder, voice_of
from clvp.pretrained import inference
from clvp.training.corpus import CODES_FILE, Corpus, Rng

PIECE = 128  # frames
QUIET = -9.0  # log power of a band that nobody hears
ENVELOPE_BANDS = 7  # over which the envelope is smoothed: wider than a voice's harmonics lie apart
BAND_WEIGHT = 0.3


class CodecNetwork(nn.Module):
    """Encoder and decoder."""

    norms: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.encoder = CodecEncoder(config)
        self.decoder = CodecDecoder(config)
        self.register_buffer("norms", torch.tensor(TORTOISE_MEL_NORMS)[:, None], persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean absolute error in nats of power: of the envelope, and of each band, which counts less.

        At this rate the harmonics of a voice cost more than they are worth to a listener, and so does what
        lies below the noise of a quiet room.
        """
        mel_B8T, voice_B28 = batch["mel"], batch["voice"]
        found_B8T = self.decoder(self.encoder(mel_B8T, voice_B28), voice_B28)
        found_B8T, mel_B8T = ((mel * self.norms).clamp(min=QUIET) for mel in (found_B8T, mel_B8T))
        error_B8T = found_B8T - mel_B8T
        envelope_BT8 = functional.avg_pool1d(error_B8T.transpose(1, 2), ENVELOPE_BANDS, stride=1)
        envelope, band = envelope_BT8.abs().mean(), error_B8T.abs().mean()
        # Sudden changes are what consonants are made of.
        change = envelope_BT8.diff(dim=1).abs().mean()
        return {"loss": envelope + change + BAND_WEIGHT * band, "envelope": envelope, "band": band}


class CodecPart:
    """Random pieces, each with the voice of another clip of its speaker."""

    def __init__(self, config: CodecConfig, corpus: Corpus) -> None:
        self.network, self.corpus = CodecNetwork(config), corpus

    def batch(self, rng: Rng, size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Pieces [B, 80, 128] and voices [B, 2, 80]."""
        return self._pieces(rng.choice(self.corpus.training, size), rng, rank, world)

    def validation(self) -> Iterator[dict[str, Any]]:
        """Always the same pieces."""
        yield self._pieces(self.corpus.validation, np.random.default_rng(0))

    def _pieces(self, rows: np.ndarray, rng: Rng, rank: int = 0, world: int = 1) -> dict[str, Any]:
        corpus = self.corpus
        starts = [int(rng.integers(max(corpus.frames[row] - PIECE, 0) + 1)) for row in rows]
        voices = [corpus.reference(row, rng) for row in rows]
        own = range(rank, len(rows), world)
        return {
            "mel": torch.from_numpy(np.stack([corpus.mel(rows[i], starts[i], PIECE) for i in own])),
            "voice": corpus.voices[[voices[i] for i in own]],
        }


VOICE_CLIPS = 32  # of a speaker, by which its rows are encoded


@inference
def encode_corpus(encoder: CodecEncoder, corpus: Corpus) -> None:
    """Write the codes of all rows, each in the mean voice of its speaker, into the prepared folder."""
    voices = {
        name: voice_of([torch.from_numpy(corpus.mel(row)) for row in rows[:VOICE_CLIPS]])
        for name, rows in corpus.of_speaker.items()
    }
    codes = [
        encoder.encode(torch.from_numpy(corpus.mel(row)), voices[speaker]).tolist()
        for row, speaker in enumerate(corpus.columns["speaker"])
    ]
    pq.write_table(pa.table({"id": corpus.columns["id"], "codes": codes}), corpus.folder / CODES_FILE)
