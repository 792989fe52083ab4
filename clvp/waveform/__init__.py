"""From ranked speech tokens to 24 kHz waveforms: Tortoise's diffusion decoder and vocoder, or a codec.

Reading order: `params`, `speaker`, `codec_decoder`, `decoder`, `bucket`; then `latents`, `mel`, `denoiser`,
`samplers`, `noise`, `vocoder`, `invariance`; `gpu_kernels` for GPUs, `files` and `convert` for
checkpoints.
"""

from typing import TYPE_CHECKING

from clvp.lazy import imported_late

if TYPE_CHECKING:
    from clvp.waveform.codec_decoder import CodecWaveformDecoder
    from clvp.waveform.decoder import WaveformDecoder
    from clvp.waveform.files import WaveformModels, load_waveform_decoder, load_waveform_models
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
    "CodecWaveformDecoder",
    "DecodeFailure",
    "DecodedSpeech",
    "Preset",
    "Speaker",
    "WaveformDecoder",
    "WaveformEngineConfig",
    "WaveformModels",
    "WaveformParams",
    "WaveformRequest",
    "load_waveform_decoder",
    "load_waveform_models",
]

__getattr__ = imported_late(__file__)
