"""The files by which a checkpoint folder makes sound, beside those by which it chooses tokens.

`diffusion_decoder.safetensors` and `vocoder.safetensors`, their sizes in `waveform_config.json`, and, if the
checkpoint has them, `random_voices.safetensors`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clvp.checkpoint import (
    CODEC_CONFIG_FILE,
    DIFFUSION_FILE,
    RANDOM_VOICES_FILE,
    VOCODER_FILE,
    WAVEFORM_CONFIG_FILE,
    CheckpointSource,
    write_json,
)
from clvp.codec import SpeechCodec
from clvp.waveform.codec_decoder import CodecWaveformDecoder
from clvp.waveform.decoder import WaveformDecoder
from clvp.waveform.denoiser import DiffusionConfig, DiffusionDecoder
from clvp.waveform.params import DiffusionDtype, WaveformEngineConfig
from clvp.waveform.random_voices import RandomVoices
from clvp.waveform.vocoder import UnivNet, VocoderConfig
from clvp.weights import load_weights, shapes_alone, write_safetensors


@dataclass(frozen=True)
class WaveformModels:
    """All that makes sound of latents, in evaluation mode."""

    diffusion: DiffusionDecoder
    vocoder: UnivNet
    random_voices: RandomVoices | None = None

    @classmethod
    def empty(
        cls, diffusion: DiffusionConfig, vocoder: VocoderConfig, random_voices: bool = True
    ) -> "WaveformModels":
        """Models of these sizes, with weights to be filled in."""
        voices = RandomVoices(diffusion.latent_size, diffusion.hidden_size) if random_voices else None
        return cls(DiffusionDecoder(diffusion), UnivNet(vocoder), voices)

    @property
    def by_file(self) -> dict[str, nn.Module]:
        """Each model by the file of its weights."""
        files = {DIFFUSION_FILE: self.diffusion, VOCODER_FILE: self.vocoder}
        return files if self.random_voices is None else {**files, RANDOM_VOICES_FILE: self.random_voices}

    def save(self, folder: Path) -> None:
        """Write the files into a checkpoint folder; the configuration last, by which they are found."""
        for name, model in self.by_file.items():
            write_safetensors(folder / name, model.state_dict())
        configs = {"diffusion": self.diffusion.config.to_dict(), "vocoder": self.vocoder.config.to_dict()}
        write_json(folder / WAVEFORM_CONFIG_FILE, configs)


def load_waveform_models(
    location: str | os.PathLike[str], *, device: torch.device | str | None = None, **hub: Any
) -> WaveformModels:
    """The models of a checkpoint folder or hub id; `hub` are options of `huggingface_hub`.

    Raises FileNotFoundError saying what to do for a checkpoint that has none, CheckpointError naming weights
    that do not fit.
    """
    source = CheckpointSource(location, **hub)
    config = source.json(WAVEFORM_CONFIG_FILE)
    if config is None:
        raise FileNotFoundError(
            f"{location} has no files for sound ({WAVEFORM_CONFIG_FILE}); add Tortoise's to its folder with "
            "python -m jobs.convert --diffusion diffusion_decoder.pth --vocoder vocoder.pth --output FOLDER"
        )
    has_voices = source.file(RANDOM_VOICES_FILE) is not None
    diffusion = DiffusionConfig.from_dict(config.get("diffusion", {}))
    with shapes_alone():
        models = WaveformModels.empty(
            diffusion, VocoderConfig.from_dict(config.get("vocoder", {})), has_voices
        )
    for name, model in models.by_file.items():
        load_weights(model.eval(), source, files=(name,), device=device)
    return models


def load_random_voices(location: str | os.PathLike[str]) -> RandomVoices:
    """The models of a checkpoint folder that make voices. Raises FileNotFoundError where it has none."""
    source = CheckpointSource(location)
    config = DiffusionConfig.from_dict((source.json(WAVEFORM_CONFIG_FILE) or {}).get("diffusion", {}))
    with shapes_alone():
        voices = RandomVoices(config.latent_size, config.hidden_size).eval()
    load_weights(voices, source, files=(RANDOM_VOICES_FILE,))
    return voices


def load_waveform_decoder(
    location: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    config: WaveformEngineConfig | None = None,
    dtype: DiffusionDtype = "float32",
    **hub: Any,
) -> WaveformDecoder | CodecWaveformDecoder:
    """What makes sound with a checkpoint: its own codec, where it has one, else Tortoise's diffusion.

    `config` and `dtype` are of diffusion. Raises what `load_waveform_models` does.
    """
    if CheckpointSource(location, **hub).file(CODEC_CONFIG_FILE) is not None:
        return CodecWaveformDecoder(SpeechCodec.from_pretrained(location, device=device, **hub))
    models = load_waveform_models(location, device=device, **hub)
    return WaveformDecoder(models.diffusion, models.vocoder, config, dtype)
