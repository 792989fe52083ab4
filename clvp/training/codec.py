"""Training of the speech codec: pieces of log-mels through the codes and back, in another clip's voice."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.codec import CodecConfig, CodecDecoder, CodecEncoder
from clvp.training.corpus import Corpus, Rng

PIECE = 128  # frames


class CodecNetwork(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.encoder = CodecEncoder(config)
        self.decoder = CodecDecoder(config)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean absolute and squared error, in deviations of the voice."""
        mel_B8T, voice_B28 = batch["mel"], batch["voice"]
        found_B8T = self.decoder(self.encoder(mel_B8T, voice_B28), voice_B28)
        error = (found_B8T - mel_B8T) / voice_B28[:, 1, :, None]
        # Sudden changes are what consonants are made of.
        change = functional.l1_loss(error.diff(dim=2), torch.zeros_like(error[:, :, 1:]))
        absolute, squared = error.abs().mean(), error.square().mean()
        return {"loss": absolute + squared + change, "absolute": absolute}


class CodecPart:
    """Random pieces, each with the voice of another clip of its speaker."""

    def __init__(self, config: CodecConfig, corpus: Corpus) -> None:
        self.network, self.corpus = CodecNetwork(config), corpus

    def batch(self, rng: Rng, size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Pieces [B, 8, 128] and voices [B, 2, 8]."""
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
