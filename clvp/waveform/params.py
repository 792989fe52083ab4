"""What a waveform decoder is asked for, and what it gives back. Plain frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Sampler = Literal["p", "ddim", "dpm++2m"]
Spacing = Literal["time", "log_snr"]

TRAINED_STEPS = 4000


@dataclass(frozen=True)
class WaveformParams:
    """Everything that decides a waveform, apart from the models, the latents and the voice.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    # how noise becomes a mel: "p" is Tortoise's and draws noise in each step; "ddim" and "dpm++2m" draw at
    # the start alone, and need fewer steps
    sampler: Sampler = "dpm++2m"
    steps: int = 25  # passes through the denoiser; twice as many with guidance
    # how these lie among the 4000 of training: evenly in "time", as Tortoise's, or in the logarithm of the
    # signal-to-noise ratio, which few steps of "ddim" and "dpm++2m" need
    spacing: Spacing = "log_snr"
    # how far each step goes beyond what the voice and the tokens ask for, away from a pass without them; 2:
    # Tortoise's, 0: off, half the work
    guidance: float = 2.0
    diffusion_temperature: float = 1.0  # of the first noise; lower: calmer
    seed: int = 0  # of the noise

    def __post_init__(self) -> None:
        checks = {
            "sampler": self.sampler in get_args(Sampler),
            "spacing": self.spacing in get_args(Spacing),
            "steps": 2 <= self.steps <= TRAINED_STEPS,
            "guidance": 0 <= self.guidance <= 100,
            "diffusion_temperature": 0 <= self.diffusion_temperature <= 100,
        }
        for name, good in checks.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range")


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
class WaveformEngineConfig:
    """How the decoder uses the machine. Bits depend on all of it, within float32's rounding: see `facts`."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; the rest is float32
    width: int | None = None  # candidates in one batch; None: 1 on a CPU, 8 on a GPU
    bucket_frames: int | None = None  # lengths are rounded up to these; None: 1 on a CPU, 64 on a GPU

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f'dtype={self.dtype!r} must be "float32" or "bfloat16"')
        for name in ("width", "bucket_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class WaveformRequest:
    """One candidate to be made audible."""

    row_id: str  # keys the noise, with the seed and the candidate's index
    candidate: int
    latents_LE: Tensor  # [L, E] float32 speech latents
    voice: Tensor  # what the decoder's `voice_latent` gave for the clips


@dataclass(frozen=True)
class DecodedSpeech:
    """A candidate's sound."""

    row_id: str
    candidate: int
    mel_MT: Tensor  # [M, T] log-mels of 24 kHz, hop 256, float32 on the CPU
    waveform_N: Tensor  # [256 · T] samples of 24 kHz within ±1, float32 on the CPU


@dataclass(frozen=True)
class DecodeFailure:
    """Why a candidate has no sound. The others of its batch have theirs."""

    row_id: str
    candidate: int
    error: str
