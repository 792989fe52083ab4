"""Speech latents and voices in, waveforms out. Knows nothing of text, tokens, files or clusters.

L latents, T frames, M mel bands, N samples, E features.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from clvp.batch import round_up
from clvp.sampling.invariance import thread_count
from clvp.waveform.bucket import Bucket, SamplingPlan
from clvp.waveform.denoiser import DiffusionDecoder, frames_of
from clvp.waveform.invariance import lanes_are_alike, machine_facts, thread_facts
from clvp.waveform.noise import noise_keys, normal
from clvp.waveform.params import (
    DecodedSpeech,
    DecodeFailure,
    DiffusionDtype,
    WaveformEngineConfig,
    WaveformParams,
    WaveformRequest,
)
from clvp.waveform.samplers import denormalized
from clvp.waveform.vocoder import SILENT_FRAMES, UnivNet

logger = logging.getLogger(__name__)


class WaveformDecoder:
    """Makes candidates audible with one diffusion decoder and one vocoder on one device.

    The bits of a waveform depend on its latents, its voice, its row's id, the candidate's index,
    `WaveformParams` and `facts()`; not on the candidates beside it or their order. Tests hold it to that.

    It takes both models over, and casts the diffusion decoder's products to `dtype`.
    """

    def __init__(
        self,
        denoiser: DiffusionDecoder,
        vocoder: UnivNet,
        config: WaveformEngineConfig | None = None,
        dtype: DiffusionDtype = "float32",
    ) -> None:
        config = config or WaveformEngineConfig()
        self.denoiser, self.vocoder = denoiser.eval(), vocoder.eval()
        self.device = denoiser.inp_block.weight.device
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            from clvp.waveform.gpu_kernels import KERNELS  # Triton is there only beside CUDA

            denoiser.kernels = KERNELS
        self.dtype = getattr(torch, dtype)
        denoiser.cast_products(self.dtype)
        self.bucket_frames = config.bucket_frames or (64 if on_gpu else 1)
        self.width = config.diffusion_batch or (8 if on_gpu else 1)
        if self.width > 1 and not lanes_are_alike(denoiser, self.width):
            logger.warning(
                "bits depend on neighbours in batches of %d here: each candidate is decoded alone", self.width
            )
            self.width = 1
        self.thread_facts = {} if on_gpu else thread_facts(denoiser, self.width)
        self._plan: SamplingPlan | None = None
        self._buckets: dict[int, Bucket] = {}

    def facts(self) -> dict[str, str | int]:
        """What the bit-for-bit promise depends on, apart from the models' weights and `WaveformParams`."""
        return {
            **machine_facts(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "width": self.width,
            "bucket_frames": self.bucket_frames,
            **self.thread_facts,
        }

    @torch.inference_mode()
    def voice_of(self, mels: Sequence[Tensor], spoken: Sequence[Tensor]) -> Tensor:
        """What the decoder takes of a voice: of the log-mels of its clips, those of 24 kHz (`clip_mels`)."""
        return self.denoiser.voice_latent(spoken).cpu()

    @torch.inference_mode()
    def decode(
        self, requests: Sequence[WaveformRequest], params: WaveformParams, seed: int = 0
    ) -> list[DecodedSpeech | DecodeFailure]:
        """The sound of each request, in order, or why it has none, which is no other's concern.

        `seed` is that of the noise, beside row and candidate.
        """
        if self._plan is None or self._plan.params != params:
            self._plan, self._buckets = SamplingPlan(self.denoiser, params), {}
        results: dict[int, DecodedSpeech | DecodeFailure] = {}
        by_length: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            problem = self._problem(request)
            if problem:
                results[place] = DecodeFailure(request.row_id, request.candidate, problem)
            else:
                frames = round_up(frames_of(len(request.latents_LE)), self.bucket_frames)
                by_length.setdefault(frames, []).append(place)
        for frames, places in by_length.items():
            for first in range(0, len(places), self.width):
                batch = places[first : first + self.width]
                decoded = self._decode_batch([requests[place] for place in batch], frames, self._plan, seed)
                results.update(zip(batch, decoded, strict=True))
        return [results[place] for place in range(len(requests))]

    def _problem(self, request: WaveformRequest) -> str | None:
        """What is wrong with a request."""
        config = self.denoiser.config
        for name, values, shape in (
            ("latents", request.latents_LE, (max(len(request.latents_LE), 1), config.latent_size)),
            ("the voice", request.voice, (2 * config.hidden_size,)),
        ):
            if tuple(values.shape) != shape:
                return f"{name} must have the shape {list(shape)}, not {list(values.shape)}"
            if not values.isfinite().all():
                return f"{name} holds values that are not finite"
        return None

    def _decode_batch(
        self, requests: Sequence[WaveformRequest], frames: int, plan: SamplingPlan, seed: int
    ) -> list[DecodedSpeech | DecodeFailure]:
        """The sound of requests of one padded length, `width` at most."""
        aligned = [
            self.denoiser.align(
                request.latents_LE.to(self.device, torch.float32),
                request.voice.to(self.device, torch.float32),
            )
            for request in requests
        ]
        named = [(request.row_id, request.candidate) for request in requests]
        keys_R = noise_keys(seed, named).to(self.device)
        mels = self._bucket(frames, plan).sample(aligned, keys_R)
        return [
            self._voiced(request, mel_TM, keys_R[row : row + 1])
            for row, (request, mel_TM) in enumerate(zip(requests, mels, strict=True))
        ]

    def _bucket(self, frames: int, plan: SamplingPlan) -> Bucket:
        """Kept for its graph on a GPU; a CPU has nothing to keep, and more lengths."""
        bucket = self._buckets.get(frames) or Bucket(self.denoiser, plan, frames, self.width)
        if self.device.type == "cuda":
            self._buckets[frames] = bucket
        return bucket

    def _voiced(
        self, request: WaveformRequest, mel_TM: Tensor, key_1: Tensor
    ) -> DecodedSpeech | DecodeFailure:
        """The vocoder's waveform of one mel, computed alone: it is below a hundredth of the work.

        So is what a second thread would gain, whose convolutions have other bits.
        """
        if not mel_TM.isfinite().all():
            hint = "" if self.dtype == torch.float32 else f"; float32 has more room than {self.dtype}"
            return DecodeFailure(request.row_id, request.candidate, f"the mel is not finite{hint}")
        mel_MT = denormalized(mel_TM).t().contiguous()
        channels = self.vocoder.config.noise_channels
        noise_1TZ = normal(key_1, "vocoder", 0, len(mel_TM) + SILENT_FRAMES, channels)
        with thread_count(1):
            waveform_N = self.vocoder.synthesize(mel_MT, noise_1TZ[0].t())
        return DecodedSpeech(request.row_id, request.candidate, mel_MT.cpu(), waveform_N.cpu())
