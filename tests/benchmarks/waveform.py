"""From tokens to sound: the decoder beside the original's arithmetic and beside the bare matrix products.

The original's arithmetic is what Tortoise computes, with the same weights (`_as_tortoise`): one candidate at
a time, always 500 latents, the passes with and without condition one after the other, the integrator within
every step, a bias for every pair of frames. Of 500 latents both make the same mel, which is compared.

R rows, T frames, C channels, M mel bands, H heads, N head dimensions, E what a block reads of the time.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from clvp.batch import round_up
from clvp.waveform import PRESETS, WaveformDecoder, WaveformParams, WaveformRequest
from clvp.waveform.bucket import Bucket, SamplingPlan
from clvp.waveform.denoiser import (
    AttentionBlock,
    DiffusionConfig,
    DiffusionDecoder,
    DiffusionLayer,
    ResidualBlock,
    distance_bias,
    frames_of,
)
from clvp.waveform.latents import CALM_TOKENS, speech_latents
from clvp.waveform.noise import noise_keys, normal
from clvp.waveform.params import DecodedSpeech, DiffusionDtype
from clvp.waveform.samplers import Step, advance, guided, thinned_times
from clvp.waveform.vocoder import HOP, SAMPLING_RATE, UnivNet, VocoderConfig
from tests.sampling.rehearsal import REHEARSED

from .harness import Options, Table, interleaved, percent, short, tell
from .memory_probe import Meter
from .report import main
from .workload import Workload

LENGTHS = (10, 20, 40) if REHEARSED else (100, 200, 500)  # latents of a candidate
ALWAYS = LENGTHS[2]  # latents of the original's
USUAL = LENGTHS[1]  # latents that presets are reckoned for
CLIP_FRAMES = 401  # of a voice's mel
VOICE = "a clip of a voice"
ORIGINAL = WaveformParams("p", 2, "time")  # but for the number of steps
CPU_STEPS, GPU_STEPS = 2, 5  # of one timing
CPU_REPETITIONS, GPU_REPETITIONS = 2, 5

# ---- the original's arithmetic ----


def _conv(conv: Any, x_1CT: Tensor) -> Tensor:
    return functional.conv1d(x_1CT, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)


def _norm(norm: Any, x_1CT: Tensor) -> Tensor:
    return functional.group_norm(x_1CT, norm.groups, norm.weight, norm.bias)


def _attention(block: AttentionBlock, x_1CT: Tensor) -> Tensor:
    table_KH: Any = block.relative_pos_embeddings["relative_attention_bias"].weight
    frames, heads = x_1CT.shape[2], table_KH.shape[1]
    q_HNT, k_HNT, v_HNT = _conv(block.qkv, _norm(block.norm, x_1CT)).unflatten(1, (heads, 3, -1))[0].unbind(1)
    places_T = torch.arange(frames, device=x_1CT.device)
    bias_DH = distance_bias(table_KH, len(q_HNT[0]), frames).t().contiguous()
    bias_HTT = functional.embedding(places_T - places_T[:, None] + frames - 1, bias_DH).permute(2, 0, 1)
    scores_HTT = q_HNT.transpose(1, 2) @ k_HNT / len(q_HNT[0]) ** 0.5 + bias_HTT
    attended_HNT = v_HNT @ scores_HTT.softmax(dim=2).transpose(1, 2)
    return x_1CT + _conv(block.proj_out, attended_HNT.flatten(0, 1)[None])


def _residual(block: ResidualBlock, x_1CT: Tensor, time_1C: Tensor) -> Tensor:
    norm_in, _, conv_in = block.in_layers
    norm_out, _, _, conv_out = block.out_layers
    scale_1C1, shift_1C1 = block.emb_layers(time_1C)[:, :, None].chunk(2, dim=1)
    h_1CT = _conv(conv_in, functional.silu(_norm(norm_in, x_1CT)))
    h_1CT = _norm(norm_out, h_1CT) * (1 + scale_1C1) + shift_1C1
    return x_1CT + _conv(conv_out, functional.silu(h_1CT))


def _layer(layer: Any, x_1CT: Tensor, time_1C: Tensor) -> Tensor:
    if isinstance(layer, DiffusionLayer):
        return _attention(layer.attn, _residual(layer.resblk, x_1CT, time_1C))
    return _residual(layer, x_1CT, time_1C)


def _forward(model: DiffusionDecoder, x_1MT: Tensor, time_1C: Tensor, aligned_1CT: Tensor) -> Tensor:
    """[1, 2M, T] noise and variance."""
    for layer in model.conditioning_timestep_integrator:
        aligned_1CT = _layer(layer, aligned_1CT, time_1C)
    h_1CT = _conv(model.integrating_conv, torch.cat((_conv(model.inp_block, x_1MT), aligned_1CT), dim=1))
    for layer in model.layers:
        h_1CT = _layer(layer, h_1CT, time_1C)
    norm, _, conv = model.out
    return _conv(conv, functional.silu(_norm(norm, h_1CT)))


def _as_tortoise(model: DiffusionDecoder, plan: SamplingPlan, aligned_TC: Tensor, key_1: Tensor) -> Tensor:
    """[T, M] the mel of one candidate. The noise is ours, so that the mel is that of a `Bucket`."""
    params, mels, half = plan.params, model.config.num_mels, model.config.hidden_size // 2
    aligned_1CT = aligned_TC.t()[None]
    nothing_1CT = model.unconditioned_embedding.expand(1, -1, len(aligned_TC))
    frequencies = 10000 ** (-torch.arange(half, device=key_1.device) / half)
    x_1TM = clean_1TM = normal(key_1, "mel", 0, len(aligned_TC), mels)
    for step in reversed(range(params.diffusion_steps)):
        angles = thinned_times(params.diffusion_steps)[step] * frequencies
        time_1C = model.time_embed(torch.cat((angles.cos(), angles.sin()))[None])
        x_1MT = x_1TM.transpose(1, 2)
        noise_1TM, variance_1TM = _forward(model, x_1MT, time_1C, aligned_1CT).transpose(1, 2).chunk(2, dim=2)
        free_1TM = _forward(model, x_1MT, time_1C, nothing_1CT).transpose(1, 2)[:, :, :mels]
        numbers = Step(*plan.table_SE[step])
        fresh_1TM = normal(key_1, "mel", params.diffusion_steps - step, len(aligned_TC), mels)
        noise_1TM = guided(noise_1TM, free_1TM, numbers)
        x_1TM, clean_1TM = advance(x_1TM, noise_1TM, variance_1TM, clean_1TM, fresh_1TM, numbers)
    return x_1TM[0]


# ---- the bare matrix products ----


class _Recorder(TorchFunctionMode):
    """Keeps the products with weights that are computed while it is on: (shape of the input, weight)."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[torch.Size, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and args[0].dim() == 3:  # not those of the time, once for all
            self.products.append((args[0].shape, args[1]))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Products:
    """The products of one step of `rows` rows of `frames` frames."""

    linear: list[tuple[torch.Size, Tensor]]
    attentions: int
    rows: int
    frames: int
    config: DiffusionConfig

    @classmethod
    def of(cls, model: DiffusionDecoder, rows: int, frames: int) -> "Products":
        """Recorded from a step, whose attention is left out."""
        attends = 0

        def attend(qkv_RTE: Tensor, *_: Tensor) -> Tensor:
            nonlocal attends
            attends += 1
            return qkv_RTE[:, :, : qkv_RTE.shape[2] // 3]

        probe = copy.copy(model)
        probe.kernels = replace(probe.kernels, attend=attend)
        device, config = model.inp_block.weight.device, model.config
        lengths_R = torch.full((rows,), frames, device=device)
        modulation_1KE = probe.modulate(torch.tensor([100], device=device))
        with _Recorder() as recorder:
            aligned_RTC = torch.zeros(rows, frames, config.hidden_size, device=device)
            condition_RTC = probe.condition(aligned_RTC, modulation_1KE, lengths_R)
            x_RTM = torch.zeros(rows, frames, config.num_mels, device=device)
            probe.denoise(x_RTM, condition_RTC, modulation_1KE, lengths_R)
        return cls(recorder.products, attends, rows, frames, config)

    @property
    def flops(self) -> float:
        """A multiplication with an addition is two."""
        linear = sum(2 * shape.numel() * len(weight) for shape, weight in self.linear)
        return linear + self.attentions * 4 * self.rows * self.frames**2 * self.config.hidden_size

    def computed(self) -> Callable[[], float]:
        """A function that computes them all, on random inputs; attention without any bias or mask."""
        inputs = {
            (shape, weight.dtype): torch.randn(shape, device=weight.device).to(weight)
            for shape, weight in self.linear
        }
        heads = self.config.num_heads
        shape = (self.rows, heads, self.frames, self.config.hidden_size // heads)
        last = self.linear[-1][1]
        q, k, v = (torch.randn(shape, device=last.device).to(last) for _ in range(3))

        def multiply() -> float:
            for shape, weight in self.linear:
                functional.linear(inputs[shape, weight.dtype], weight)
            for _ in range(self.attentions):
                functional.scaled_dot_product_attention(q, k, v)
            return 1

        return multiply


# ---- measuring ----


def _config(options: Options) -> DiffusionConfig:
    if options.size == "full":
        return DiffusionConfig()
    if options.size == "tiny":
        return DiffusionConfig(hidden_size=64, latent_size=64, num_layers=1, num_heads=2)
    return DiffusionConfig(hidden_size=256, latent_size=256, num_layers=4, num_heads=4)


def _models(options: Options) -> tuple[DiffusionDecoder, UnivNet]:
    torch.manual_seed(options.seed)
    vocoder = VocoderConfig(hidden_channels=4) if options.size == "tiny" else VocoderConfig()
    with options.device:
        models = DiffusionDecoder(_config(options)), UnivNet(vocoder)
    for model in models:
        model.eval().requires_grad_(False)
    return models


def _audio_seconds(latents: int) -> float:
    return frames_of(latents) * HOP / SAMPLING_RATE


class Bench:
    """One decoder, beside the float32 model that the original's arithmetic is done with."""

    def __init__(self, options: Options, model: DiffusionDecoder, decoder: WaveformDecoder) -> None:
        self.options, self.model, self.decoder = options, model, decoder
        self.steps = GPU_STEPS if options.device.type == "cuda" else CPU_STEPS
        self.repetitions = options.repeat(GPU_REPETITIONS if options.on_gpu else CPU_REPETITIONS)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.latents_LE = torch.randn(ALWAYS, model.config.latent_size, generator=self.generator)
        self.voice = torch.randn(2 * model.config.hidden_size, generator=self.generator) / 10
        self.keys = noise_keys(0, [("row", lane) for lane in range(decoder.width)]).to(options.device)
        self.mels: dict[int, Tensor] = {}  # of the first lane, by latents

    def aligned(self, latents: int) -> Tensor:
        """[T, C]."""
        device = self.options.device
        return self.decoder.denoiser.align(self.latents_LE[:latents].to(device), self.voice.to(device))

    def frames(self, latents: int) -> int:
        """Of the bucket."""
        return round_up(frames_of(latents), self.decoder.bucket_frames)

    def ours(self, latents: int, params: WaveformParams) -> Callable[[], float]:
        """A function that takes a batch of equal candidates through some steps; gives steps of candidates."""
        denoiser, width = self.decoder.denoiser, self.decoder.width
        plan = SamplingPlan(denoiser, replace(params, diffusion_steps=self.steps, diffusion_spacing="time"))
        bucket = Bucket(denoiser, plan, self.frames(latents), width)
        aligned = [self.aligned(latents)] * width

        def sample() -> float:
            self.mels[latents] = bucket.sample(aligned, self.keys)[0]
            return self.steps * width

        return sample

    def original(self) -> Callable[[], float]:
        """A function that takes one candidate through as many steps."""
        plan = SamplingPlan(self.model, replace(ORIGINAL, diffusion_steps=self.steps))
        aligned_TC = self.aligned(ALWAYS)

        def sample() -> float:
            self.original_mel = _as_tortoise(self.model, plan, aligned_TC, self.keys[:1])
            return self.steps

        return sample

    def products(self, latents: int) -> Products:
        """Of one step of a full batch."""
        return Products.of(self.decoder.denoiser, 2 * self.decoder.width, self.frames(latents))


def run(workload: Workload) -> Iterator[Table]:
    """Steps, presets, and what is done once; on a GPU in float32 and in bfloat16."""
    options = workload.options
    tell(f"waveform: making the {options.size} models")
    model, vocoder = _models(options)
    dtypes: list[DiffusionDtype] = ["bfloat16", "float32"] if options.on_gpu else ["float32"]
    for dtype in dtypes:
        denoiser = copy.deepcopy(model)  # the decoder casts its own
        bench = Bench(options, model, WaveformDecoder(denoiser, vocoder, None, dtype))
        yield _steps(bench, dtype)
        once, table = _once(bench, workload, dtype)
        yield _presets(bench, once, dtype)
        yield table


def _peaks(contestants: Mapping[str, Callable[[], float]], device: torch.device) -> dict[str, str]:
    """What a first run of each, which warms it up, takes of memory in MiB."""
    peaks = {}
    for name, work in contestants.items():
        meter = Meter(device)
        work()
        peak = meter.peak()
        peaks[name] = "not measured" if peak is None else short(peak / 2**20)
    return peaks


def _steps(bench: Bench, dtype: str) -> Table:
    options, width = bench.options, bench.decoder.width
    products = {latents: bench.products(latents) for latents in LENGTHS}
    contestants = {f"ours {latents}": bench.ours(latents, ORIGINAL) for latents in LENGTHS}
    contestants |= {f"bare {latents}": product.computed() for latents, product in products.items()}
    contestants["original"] = bench.original()
    tell(f"waveform: steps of {', '.join(map(str, LENGTHS))} latents, {dtype}")
    peaks = _peaks(contestants, options.device)
    rates = interleaved(contestants, bench.repetitions, options.device)
    seconds = {name: 1 / rate.median for name, rate in rates.items()}
    original = seconds["original"]
    lines = []
    for latents, product in products.items():
        step, bare = seconds[f"ours {latents}"], seconds[f"bare {latents}"] / width
        lines.append(
            [
                str(latents),
                short(_audio_seconds(latents)),
                short(1000 * step),
                short(1000 * original),
                f"{original / step:.2f}×",
                short(1000 * bare),
                percent(bare / step),
                short(product.flops / width / 1e9),
                short(product.flops / width / step / 1e9),
                peaks[f"ours {latents}"],
            ]
        )
    difference = float((bench.mels[ALWAYS] - bench.original_mel).abs().max())
    weights = sum(
        w.nbytes for model in (bench.decoder.denoiser, bench.decoder.vocoder) for w in model.parameters()
    )
    return Table(
        title=f"A guided step of diffusion, {dtype}",
        columns=[
            "latents",
            "audio, s",
            "ours, ms",
            "original's arithmetic, ms",
            "ratio",
            "bare products, ms",
            "share",
            "GFLOP",
            "GFLOP/s",
            "peak memory, MiB",
        ],
        rows=lines,
        notes=f"Times for one candidate; ours in batches of {width}, integrator and noise included. The "
        f"original's arithmetic: float32, one candidate at a time, {ALWAYS} latents whatever the length, two "
        "passes one after the other, nothing shared between steps. Bare products: all of a step, with their "
        "weights but without bias, norm, activation or residual; attention by scaled_dot_product_attention "
        f"without bias or mask. Memory: of a batch, above the weights ({short(weights / 2**20)} MiB, vocoder "
        f"included); of the original's arithmetic {peaks['original']} MiB. Both mels of {ALWAYS} latents "
        f"after {bench.steps} steps lie within {difference:.0e} of each other, in a range of ±1; the first "
        "step multiplies roundings by 150.",
    )


def _once(bench: Bench, workload: Workload, dtype: str) -> tuple[dict[str, float], Table]:
    """Seconds of what is done once per voice or candidate."""
    options, decoder = bench.options, bench.decoder
    draw = partial(torch.randn, generator=bench.generator)
    clip_MT = draw(bench.model.config.num_mels, CLIP_FRAMES).to(options.device)
    mel_TM = draw(frames_of(USUAL), bench.model.config.num_mels).clamp(-1, 1).to(options.device)
    prefix_PD = draw(options.prefix, workload.model.config.hidden_size).to(options.device, options.dtype)
    tokens_T = torch.randint(100, 8000, (USUAL - CALM_TOKENS,), generator=bench.generator)
    request = WaveformRequest("row", 0, tokens_T, bench.latents_LE[:USUAL], bench.voice)

    def voice() -> float:
        decoder.voice_of([], [clip_MT])
        return 1

    def second_pass() -> float:
        speech_latents(workload.model, prefix_PD, tokens_T, finished=True)
        return 1

    def align() -> float:
        bench.aligned(USUAL)
        return 1

    def vocode() -> float:
        assert isinstance(decoder._voiced(request, mel_TM, bench.keys[:1]), DecodedSpeech)
        return 1

    contestants = {
        VOICE: voice,
        "second pass over the tokens": second_pass,
        "conditioning of the denoiser": align,
        "vocoder": vocode,
    }
    tell(f"waveform: what is done once, {dtype}")
    peaks = _peaks(contestants, options.device)
    rates = interleaved(contestants, bench.repetitions + 1, options.device)
    seconds, audio = {name: 1 / rate.median for name, rate in rates.items()}, _audio_seconds(USUAL)
    return seconds, Table(
        title=f"What is done once, {dtype}",
        columns=["", "ms", "ms per second of audio", "peak memory, MiB"],
        rows=[
            [name, short(1000 * value), "" if name == VOICE else short(1000 * value / audio), peaks[name]]
            for name, value in seconds.items()
        ],
        notes="The first once per clip of a voice, the others once per candidate that becomes sound, here of "
        f"{USUAL} latents ({audio:.1f} s) after a prompt of {options.prefix} positions. The vocoder uses one "
        "thread.",
    )


def _presets(bench: Bench, once: Mapping[str, float], dtype: str) -> Table:
    options, audio = bench.options, _audio_seconds(USUAL)
    kinds = {_kind(preset.waveform): preset.waveform for preset in PRESETS.values()}
    contestants = {kind: bench.ours(USUAL, params) for kind, params in kinds.items()}
    tell(f"waveform: steps of the presets, {dtype}")
    _peaks(contestants, options.device)
    rates = interleaved(contestants, bench.repetitions, options.device)
    rest = sum(seconds for name, seconds in once.items() if name != VOICE) / audio
    lines = []
    for name, preset in PRESETS.items():
        params = preset.waveform
        step = 1 / rates[_kind(params)].median
        diffusion = params.diffusion_steps * step / audio
        lines.append(
            [
                f"`{name}`",
                f"{params.diffusion_sampler} {params.diffusion_steps}",
                f"{params.guidance:g}",
                short(1000 * step),
                short(diffusion),
                short(rest),
                short(diffusion + rest),
                short(1 / (diffusion + rest)),
            ]
        )
    return Table(
        title=f"Seconds of work per second of audio, {dtype}",
        columns=[
            "preset",
            "sampler, steps",
            "guidance",
            "step, ms",
            "diffusion",
            "the rest",
            "sum",
            "hours of audio per hour",
        ],
        rows=lines,
        notes=f"Extrapolated: {bench.steps} steps of candidates of {USUAL} latents ({audio:.1f} s) are "
        "measured with each sampler, with and without guidance, and multiplied by the preset's number of "
        "steps. The rest: second pass, conditioning, vocoder. Drawing and scoring the preset's candidates is "
        "not in it.",
    )


def _kind(params: WaveformParams) -> str:
    """What the time of a step depends on."""
    return f"{params.diffusion_sampler} {bool(params.guidance)}"


if __name__ == "__main__":
    main(run, __doc__)
