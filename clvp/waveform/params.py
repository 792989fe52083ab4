"""What a waveform decoder is asked for, and what it gives back. Plain frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from clvp.fields import Checked, Count

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_STEPS = 4000
Sampler = Literal["p", "ddim", "dpm++2m"]
Spacing = Literal["time", "log_snr"]
DiffusionDtype = Literal["float32", "bfloat16"]  # of the decoder's products; the rest is float32


@dataclass(frozen=True)
class WaveformParams(Checked):
    """Everything that decides a waveform, apart from the models, the latents, the voice and the seed.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    # how noise becomes a mel: "p" is Tortoise's and draws noise in each step; "ddim" and "dpm++2m" draw at
    # the start alone, and need fewer steps
    diffusion_sampler: Sampler = "dpm++2m"
    # passes through the denoiser; twice as many with guidance
    diffusion_steps: Annotated[int, Field(ge=2, le=TRAINED_STEPS)] = 25
    # how these lie among the 4000 of training: evenly in "time", as Tortoise's, or in the logarithm of the
    # signal-to-noise ratio, which few steps of "ddim" and "dpm++2m" need
    diffusion_spacing: Spacing = "log_snr"
    # how far each step goes beyond what the voice and the tokens ask for, away from a pass without them; 0:
    # off, half the work
    guidance: Annotated[float, Field(ge=0, le=100)] = 2.0
    # of the first noise; lower: calmer
    diffusion_temperature: Annotated[float, Field(ge=0, le=100)] = 1.0


@dataclass(frozen=True)
class Preset:
    """How many candidates are sampled, and how waveforms are made of those that are kept."""

    candidates: int
    waveform: WaveformParams


# Tortoise's by its names. `efficient` is the best trade: the candidates of `fast`, and a third of its passes.
PRESETS: Mapping[str, Preset] = {
    "ultra_fast": Preset(16, WaveformParams("p", 30, "time", guidance=0.0)),
    "efficient": Preset(96, WaveformParams("dpm++2m", 25, "log_snr")),
    "fast": Preset(96, WaveformParams("p", 80, "time")),
    "standard": Preset(256, WaveformParams("p", 200, "time")),
    "high_quality": Preset(256, WaveformParams("p", 400, "time")),
}


@dataclass(frozen=True)
class WaveformEngineConfig(Checked):
    """How the decoder uses the machine. Bits depend on all of it, within float32's rounding: see `facts`."""

    diffusion_batch: Count | None = None  # candidates in one batch; None: 1 on a CPU, 8 on a GPU
    bucket_frames: Count | None = None  # lengths are rounded up to these; None: 1 on a CPU, 64 on a GPU


@dataclass(frozen=True)
class WaveformRequest:
    """One candidate to be made audible."""

    row_id: str  # keys the noise, with the seed and the candidate's index
    candidate: int
    latents_LE: "Tensor"  # [L, E] float32 speech latents
    voice: "Tensor"  # what the decoder's `voice_latent` gave for the clips


@dataclass(frozen=True)
class DecodedSpeech:
    """A candidate's sound."""

    row_id: str
    candidate: int
    mel_MT: "Tensor"  # [M, T] log-mels of 24 kHz, hop 256, float32 on the CPU
    waveform_N: "Tensor"  # [256 · T] samples of 24 kHz within ±1, float32 on the CPU


@dataclass(frozen=True)
class DecodeFailure:
    """Why a candidate has no sound. The others of its batch have theirs."""

    row_id: str
    candidate: int
    error: str
