"""The other way to sound: a family with a codec of its own decodes the tokens themselves, in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from torch import Tensor

from clvp.codec import SpeechCodec
from clvp.sampling.invariance import thread_count
from clvp.waveform.invariance import machine_facts
from clvp.waveform.params import DecodedSpeech, DecodeFailure, WaveformParams, WaveformRequest
from clvp.waveform.vocoder import SAMPLING_RATE


@dataclass
class CodecWaveformDecoder:
    """Has the calls of `WaveformDecoder`; candidates are decoded alone, on one thread."""

    codec: SpeechCodec

    def facts(self) -> Mapping[str, str | int]:
        """What the bit-for-bit promise depends on, apart from the codec's weights."""
        return machine_facts(self.codec.decoder.of_voice.weight.device)

    def voice_of(self, mels: Sequence[Tensor], spoken: Sequence[Tensor]) -> Tensor:
        """What the codec takes of a voice, from the log-mels of 22.05 kHz of its clips."""
        return self.codec.voice_of(mels)

    def decode(
        self, requests: Sequence[WaveformRequest], params: WaveformParams, seed: int = 0
    ) -> list[DecodedSpeech | DecodeFailure]:
        """The sound of each request, in order, or why it has none. `params` and `seed` are of diffusion."""
        return [self._decode(request) for request in requests]

    def _decode(self, request: WaveformRequest) -> DecodedSpeech | DecodeFailure:
        try:
            with thread_count(1):
                (waveform_N,) = self.codec.decode([request.tokens_T], request.voice)
        except ValueError as error:
            return DecodeFailure(request.row_id, request.candidate, str(error))
        resampled_N = soxr.resample(waveform_N.numpy(), self.codec.sampling_rate, SAMPLING_RATE)
        limited_N = torch.from_numpy(np.clip(resampled_N, -1, 1))
        return DecodedSpeech(request.row_id, request.candidate, None, limited_N)
