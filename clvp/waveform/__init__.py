"""From ranked speech tokens to 24 kHz waveforms: Tortoise's diffusion decoder and its vocoder.

Reading order: `params`, `speaker`, `decoder`, `bucket`; then `latents`, `mel`, `denoiser`, `schedule`,
`samplers`, `noise`, `vocoder`, `invariance`; `gpu_attention` for GPUs, `files` and `convert` for checkpoints.
"""

from typing import TYPE_CHECKING

from clvp.lazy import imported_late

if TYPE_CHECKING:
    from clvp.waveform.decoder import WaveformDecoder
    from clvp.waveform.files import WaveformModels, load_waveform_models
    from clvp.waveform.params import (
        PRESETS,
        DecodedSpeech,
        DecodeFailure,
        Preset,
        WaveformEngineConfig,
        WaveformParams,
        WaveformRequest,
    )
    from clvp.waveform.speaker import Speaker

__all__ = [
    "PRESETS",
    "DecodeFailure",
    "DecodedSpeech",
    "Preset",
    "Speaker",
    "WaveformDecoder",
    "WaveformEngineConfig",
    "WaveformModels",
    "WaveformParams",
    "WaveformRequest",
    "load_waveform_models",
]

__getattr__ = imported_late(__file__)
