"""The parts of a family by name, and their sizes: those of a checkpoint, or of a small family that a laptop's
core trains, and that is enough for a demonstration voice in a domain.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from clvp.checkpoint import CODEC_CONFIG_FILE, CheckpointSource
from clvp.codec import CodecConfig
from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.training.codec import CodecPart
from clvp.training.corpus import Corpus
from clvp.training.decoder import DecoderPart
from clvp.training.loop import Part
from clvp.training.pair import PairPart
from clvp.training.settings import PartName

NUM_CODES = 2048
LONGEST = 104  # codes of a sentence: 4.8 seconds


def small_config(silence: int = 0) -> ClvpConfig:
    """About 10 million weights. `silence` is the code of a pause, by which candidates are padded."""
    encoder = {"hidden_size": 192, "intermediate_size": 384, "projection_dim": 192, "num_attention_heads": 3}
    return ClvpConfig(
        ClvpEncoderConfig.from_dict(encoder, num_hidden_layers=2),
        ClvpEncoderConfig.from_dict(encoder, num_hidden_layers=4, vocab_size=NUM_CODES),
        ClvpDecoderConfig(
            vocab_size=NUM_CODES + 2,
            max_position_embeddings=136,
            max_text_tokens=96,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_mel_attn_blocks=2,
            resid_pdrop=0.05,
            embd_pdrop=0.05,
            attention_dropout=0.0,
            bos_token_id=NUM_CODES,
            eos_token_id=NUM_CODES + 1,
            decoder_fixing_codes=(silence,) * 4,
        ),
        projection_dim=192,
        scoring_length=LONGEST,
    )


@dataclass(frozen=True)
class Sizes:
    """Of the codec, and of all that works with its codes."""

    codec: CodecConfig
    family: ClvpConfig

    @classmethod
    def read(cls, location: str | os.PathLike[str] | None, corpus: Corpus) -> "Sizes":
        """Those of a checkpoint folder or hub id; without one, the small family's."""
        if location is None:
            return cls(CodecConfig(), small_config(corpus.silence()))
        codec = CheckpointSource(location).json(CODEC_CONFIG_FILE) or {}
        return cls(CodecConfig.from_dict(codec), ClvpConfig.from_pretrained(location))


def make_part(
    name: PartName, sizes: Sizes, corpus: Corpus, seed: int = 0, samples: Path | None = None
) -> Part:
    """A part to be trained, with new weights. `samples`: a run whose candidates the pair hears too."""
    torch.manual_seed(seed)
    if name in ("codec", "sound"):
        return CodecPart(sizes.codec, corpus, sound=name == "sound")
    if name == "decoder":
        return DecoderPart(sizes.family, sizes.codec.levels, corpus)
    return PairPart(sizes.family, corpus, samples)
