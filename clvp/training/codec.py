"""Training of the speech codec: pieces of log-mels through the codes and back, in another clip's voice.

First both its sides together. Then, as `sound`, a decoder alone, while the codes stay as they are: what is
made of them may improve for as long as one likes, and nothing else has to be trained again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.audio.mel import TORTOISE_MEL_NORMS
from clvp.codec import CodecConfig, CodecDecoder, CodecEncoder, voice_of
from clvp.codec.networks import FRAMES_PER_CODE
from clvp.pretrained import inference
from clvp.training.corpus import CODES_FILE, Corpus, Rng
from clvp.training.loop import checkpoint

PIECE = 128  # frames
SPOKEN = 48  # codes of a piece of `sound`, 2.2 seconds: words in their neighbourhood
QUIET = -9.0  # log power of a band that nobody hears
ENVELOPE_BANDS = 7  # over which the envelope is smoothed: wider than a voice's harmonics lie apart
BAND_WEIGHT = 0.3
VOICE_CLIPS = 32  # of a speaker, by which its rows are encoded


class MelError(nn.Module):
    """Mean absolute error in nats of power: of the envelope, and of each band, which counts less.

    At this rate the harmonics of a voice cost more than they are worth to a listener, and so does what lies
    below the noise of a quiet room.
    """

    norms: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norms", torch.tensor(TORTOISE_MEL_NORMS)[:, None], persistent=False)

    def forward(self, found_B8T: Tensor, mel_B8T: Tensor) -> dict[str, Tensor]:
        """The losses of log-mels."""
        found_B8T, mel_B8T = ((mel * self.norms).clamp(min=QUIET) for mel in (found_B8T, mel_B8T))
        error_B8T = found_B8T - mel_B8T
        envelope_BT8 = functional.avg_pool1d(error_B8T.transpose(1, 2), ENVELOPE_BANDS, stride=1)
        envelope, band = envelope_BT8.abs().mean(), error_B8T.abs().mean()
        # Sudden changes are what consonants are made of.
        change = envelope_BT8.diff(dim=1).abs().mean()
        return {"loss": envelope + change + BAND_WEIGHT * band, "envelope": envelope, "band": band}


class CodecNetwork(nn.Module):
    """Encoder and decoder; for `sound` a decoder alone, which is given codes."""

    def __init__(self, config: CodecConfig, sound: bool = False) -> None:
        super().__init__()
        self.encoder = None if sound else CodecEncoder(config)
        self.decoder = CodecDecoder(config)
        self.error = MelError()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How far what comes back is from what was given."""
        mel_B8T, voice_B28 = batch["mel"], batch["voice"]
        if self.encoder is None:
            values_BLQ = self.decoder.quantizer.values(batch["codes"])
        else:
            values_BLQ = self.encoder(mel_B8T, voice_B28)
        return self.error(self.decoder(values_BLQ, voice_B28), mel_B8T)


class CodecPart:
    """Random pieces, each with the voice of another clip of its speaker.

    For `sound` they come from rows that are long enough, begin where a code does, and have their codes.
    """

    def __init__(self, config: CodecConfig, corpus: Corpus, sound: bool = False) -> None:
        self.network = CodecNetwork(config, sound)
        self.corpus, self.rows, self.kept = corpus, corpus.training, corpus.validation
        self.spoken = min(SPOKEN, max(map(len, corpus.codes))) if sound else 0
        if sound:
            enough = np.array([len(codes) >= self.spoken for codes in corpus.codes])
            self.rows, self.kept = (rows[enough[rows]] for rows in (self.rows, self.kept))

    def batch(self, rng: Rng, size: int, rank: int, world: int) -> dict[str, Any]:
        """Pieces [B, 80, 128], voices [B, 2, 80]; for `sound` pieces [B, 80, 192] and their codes [B, 48]."""
        return self._pieces(rng.choice(self.rows, size), rng, rank, world)

    def validation(self) -> Iterator[dict[str, Any]]:
        """Always the same pieces."""
        yield self._pieces(self.kept, np.random.default_rng(0))

    def _pieces(self, rows: np.ndarray, rng: Rng, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Of this process's own rows; what is random is drawn for all."""
        corpus, spoken, own = self.corpus, self.spoken, range(rank, len(rows), world)
        if spoken:
            starts = [int(rng.integers(len(corpus.codes[row]) - spoken + 1)) for row in rows]
            codes = [corpus.codes[rows[i]][starts[i] : starts[i] + spoken] for i in own]
            extra = {"codes": torch.from_numpy(np.stack(codes))}
            starts, length = [start * FRAMES_PER_CODE for start in starts], spoken * FRAMES_PER_CODE
        else:
            starts = [int(rng.integers(max(corpus.frames[row] - PIECE, 0) + 1)) for row in rows]
            extra, length = {}, PIECE
        voices = [corpus.reference(row, rng) for row in rows]
        mels = [corpus.mel(rows[i], starts[i], length) for i in own]
        voice = corpus.voices[[voices[i] for i in own]]
        return {"mel": torch.from_numpy(np.stack(mels)), "voice": voice, **extra}


def trained_encoder(config: CodecConfig, run: Path) -> CodecEncoder:
    """That of a run of `codec`, in evaluation mode."""
    encoder, state = CodecEncoder(config), checkpoint(run)["network"]
    encoder.load_state_dict({key: state[f"encoder.{key}"] for key in encoder.state_dict()})
    return encoder.eval()


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
