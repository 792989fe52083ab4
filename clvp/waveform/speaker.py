"""One text in one voice, from end to end: what a dataset's run does with every row, in one call.

K candidates, N samples or text tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchaudio.functional import resample

from clvp.audio.mel import SAMPLING_RATE as CLIP_RATE
from clvp.audio.processor import ClvpProcessor
from clvp.batch import check_choice
from clvp.generation import sample_prompts
from clvp.model import ClvpModelForConditionalGeneration
from clvp.sampling import Candidate
from clvp.scoring import pad_and_fix_codes, score_candidates
from clvp.waveform.decoder import WaveformDecoder
from clvp.waveform.files import load_waveform_models
from clvp.waveform.latents import speech_latents
from clvp.waveform.mel import clip_mels
from clvp.waveform.params import (
    PRESETS,
    DecodeFailure,
    DiffusionDtype,
    Preset,
    WaveformEngineConfig,
    WaveformRequest,
)

StrPath = str | os.PathLike[str]


@dataclass
class Speaker:
    """All models of a checkpoint that can make sound."""

    model: ClvpModelForConditionalGeneration
    processor: ClvpProcessor
    decoder: WaveformDecoder

    @classmethod
    def from_pretrained(
        cls,
        location: StrPath,
        *,
        device: torch.device | str | None = None,
        config: WaveformEngineConfig | None = None,
        diffusion_dtype: DiffusionDtype = "float32",
        **hub: Any,
    ) -> Self:
        """From a checkpoint folder or hub id; `hub` are options of `huggingface_hub`.

        Raises FileNotFoundError for a checkpoint that has no files for sound.
        """
        models = load_waveform_models(location, device=device, **hub)
        return cls(
            ClvpModelForConditionalGeneration.from_pretrained(location, device=device, **hub),
            ClvpProcessor.from_pretrained(location, **hub),
            WaveformDecoder(models.diffusion, models.vocoder, config, diffusion_dtype),
        )

    @torch.inference_mode()
    def speak(self, text: str, *clips: StrPath, preset: str | Preset = "efficient", seed: int = 0) -> Tensor:
        """The waveform [N] at 24 kHz of a text, in the voice of audio files, by the best of K candidates.

        `preset` is a name of `PRESETS` or one of your own. The same call gives the same waveform.

        Raises ValueError for a clip, a text or settings that cannot be used, and where no sound came out.
        """
        if isinstance(preset, str):
            check_choice("preset", preset, list(PRESETS))
            preset = PRESETS[preset]
        waveforms = [read_clip(clip) for clip in clips]
        inputs = self.processor(
            raw_speech=[waveforms], sampling_rate=CLIP_RATE, text=text, return_tensors="pt"
        )
        encoder, speech_decoder = self.model.conditioning_encoder, self.model.speech_decoder_model
        ids_N = inputs["input_ids"][0]
        prefix_PD = encoder.build_prefix(encoder.average_clips(list(inputs["input_features"][0])), ids_N)
        config = self.model.generation_config.for_call(
            num_return_sequences=preset.candidates, do_sample=True, seed=seed
        )
        (candidates,) = sample_prompts(speech_decoder, [prefix_PD], config, [text])
        best = self._best(ids_N, candidates)
        request = WaveformRequest(
            text,
            best.candidate,
            speech_latents(speech_decoder, prefix_PD, best.tokens, best.finished),
            self.decoder.voice_latent([mel_MT for clip_N in waveforms for mel_MT in clip_mels(clip_N)]),
        )
        (speech,) = self.decoder.decode([request], preset.waveform, seed)
        if isinstance(speech, DecodeFailure):
            raise ValueError(speech.error)
        return speech.waveform_N

    def _best(self, ids_N: Tensor, candidates: Sequence[Candidate]) -> Candidate:
        """That of the highest score, of those that finished if any did."""
        config = self.model.config
        codes_KL = pad_and_fix_codes(
            [candidate.tokens for candidate in candidates],
            [candidate.finished for candidate in candidates],
            config.scoring_length,
            config.decoder_config.decoder_fixing_codes,
        )
        scores = score_candidates(*self.model.encoders, ids_N, codes_KL).tolist()
        ranked = zip(candidates, scores, strict=True)
        return max(ranked, key=lambda pair: (pair[0].finished, pair[1]))[0]


def read_clip(path: StrPath) -> Tensor:
    """Mono float32 [N] at 22.05 kHz of an audio file; ValueError for one that cannot be read."""
    import soundfile  # nothing else here reads files

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: {error}") from error
    return resample(torch.from_numpy(samples).mean(dim=1), rate, CLIP_RATE)
