"""CLVP: speech tokens for a text in a given voice, and how well they fit it.

Names and calls are those of the CLVP family in `transformers`. This package knows nothing of Ray.
"""

from typing import TYPE_CHECKING

import clvp.arithmetic  # noqa: F401  (before anything computes)
from clvp.lazy import imported_late

if TYPE_CHECKING:
    from clvp.audio.features import ClvpFeatureExtractor
    from clvp.audio.processor import ClvpProcessor
    from clvp.conditioning import ClvpConditioningEncoder
    from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
    from clvp.decoder import ClvpDecoder, ClvpModel
    from clvp.encoder import ClvpEncoder
    from clvp.generation import ClvpForCausalLM
    from clvp.generation_config import ClvpGenerationConfig
    from clvp.model import ClvpModelForConditionalGeneration
    from clvp.pretrained import ClvpPreTrainedModel
    from clvp.text.tokenizer import ClvpTokenizer

__all__ = [
    "ClvpConditioningEncoder",
    "ClvpConfig",
    "ClvpDecoder",
    "ClvpDecoderConfig",
    "ClvpEncoder",
    "ClvpEncoderConfig",
    "ClvpFeatureExtractor",
    "ClvpForCausalLM",
    "ClvpGenerationConfig",
    "ClvpModel",
    "ClvpModelForConditionalGeneration",
    "ClvpPreTrainedModel",
    "ClvpProcessor",
    "ClvpTokenizer",
]

__getattr__ = imported_late(__file__)
