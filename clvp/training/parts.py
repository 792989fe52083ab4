"""The parts of a family by name, and the sizes of all of them."""

import os
from dataclasses import dataclass

from clvp.checkpoint import CheckpointSource
from clvp.codec import CODEC_CONFIG_FILE, CodecConfig
from clvp.config import ClvpConfig
from clvp.training.codec import CodecPart
from clvp.training.corpus import Corpus
from clvp.training.decoder import DecoderPart
from clvp.training.loop import Part
from clvp.training.pair import PairPart
from clvp.training.settings import PartName
from clvp.training.small import small_config


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


def make_part(name: PartName, sizes: Sizes, corpus: Corpus) -> Part:
    """A part to be trained, with new weights."""
    if name == "codec":
        return CodecPart(sizes.codec, corpus)
    if name == "decoder":
        return DecoderPart(sizes.family, sizes.codec.levels, corpus)
    return PairPart(sizes.family, corpus)
