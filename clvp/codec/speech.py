"""From speech codes and a voice to sound, with the files beside a checkpoint: one call.

codec = SpeechCodec.from_pretrained(folder)
voice = codec.voice_of(log_mels_of_its_clips)
waveforms = codec.decode(list_of_codes, voice)
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from clvp.audio.mel import SAMPLING_RATE
from clvp.checkpoint import CODEC_CONFIG_FILE, CODEC_FILE, CheckpointSource, write_json
from clvp.codec.griffin_lim import griffin_lim, magnitudes
from clvp.codec.networks import CodecConfig, CodecDecoder, voice_of
from clvp.pretrained import inference
from clvp.weights import load_weights, write_safetensors


class SpeechCodec(nn.Module):
    """What makes sound of the codes of a small family: the codec's decoder, and Griffin and Lim."""

    sampling_rate = SAMPLING_RATE

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = CodecDecoder(config)

    @classmethod
    def from_pretrained(
        cls, location: str | os.PathLike[str], *, device: torch.device | str | None = None, **hub: Any
    ) -> Self:
        """The codec of a checkpoint folder or hub id, in float32; `hub` are options of `huggingface_hub`.

        Raises FileNotFoundError for a checkpoint without one, CheckpointError for weights that do not fit.
        """
        source = CheckpointSource(location, **hub)
        content = source.json(CODEC_CONFIG_FILE)
        if content is None:
            raise FileNotFoundError(f"{location} has no codec ({CODEC_CONFIG_FILE})")
        codec = cls(CodecConfig.from_dict(content))
        load_weights(codec, source, files=(CODEC_FILE,), dtype=torch.float32, device=device)
        return codec.eval()

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, then the configuration by which they are found."""
        state = {key: value.to("cpu", dtype).contiguous() for key, value in self.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / CODEC_FILE, state)
        write_json(folder / CODEC_CONFIG_FILE, self.config.to_dict())

    def voice_of(self, mels: Sequence[Tensor]) -> Tensor:
        """[2, bands]: what the decoder takes of a voice, from the log-mels [bands, T] of its clips."""
        return voice_of(mels)

    @inference
    def decode(self, codes: Sequence[Tensor], voice: Tensor) -> list[Tensor]:
        """The waveform [1024 L - 256], float32 at 22,050 Hz, of each list [L] of codes, one at a time.

        Raises ValueError for a list without codes, and for codes that are none.
        """
        device, limit = self.decoder.of_voice.weight.device, self.decoder.quantizer.levels.prod()
        waveforms = []
        for index, row in enumerate(codes):
            if not len(row) or row.min() < 0 or row.max() >= limit:
                raise ValueError(f"candidate {index} must be one or more codes from 0 to {int(limit) - 1}")
            mel_8T = self.decoder.decode(row.to(device), voice.to(device))
            waveforms.append(griffin_lim(magnitudes(mel_8T.cpu())).clamp(-1, 1))
        return waveforms
