"""CLVP: speech tokens for a text in a given voice, and how well they fit it.

Names and calls are those of the CLVP family in `transformers`. This package knows nothing of Ray.
"""

import clvp.arithmetic  # noqa: F401  (before anything computes)
from clvp.conditioning import ClvpConditioningEncoder
from clvp.configuration import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.decoder import ClvpDecoder, ClvpForCausalLM, ClvpModel
from clvp.encoder import ClvpEncoder
from clvp.feature_extraction import ClvpFeatureExtractor
from clvp.generation import ClvpGenerationConfig
from clvp.model import ClvpModelForConditionalGeneration
from clvp.pretrained import ClvpPreTrainedModel
from clvp.processing import ClvpProcessor
from clvp.tokenizer import ClvpTokenizer

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
