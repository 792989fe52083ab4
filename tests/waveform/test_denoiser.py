"""The denoiser's parts against the original's, and rows of unlike length in one batch."""

import pytest
import torch

from clvp.waveform import denoiser as module
from clvp.waveform.convert import UNUSED
from clvp.waveform.denoiser import DiffusionConfig, DiffusionDecoder, attend_by_row, distance_bias, frames_of
from tests.waveform.conftest import relative_error

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ONE_PASS = 2e-6  # 1e-6 on most processors
# Every frame of the unconditioned embedding is alike, and norms enlarge what tells them apart: in float64 the
# recorded outputs themselves are off by 5e-6.
ONE_UNCONDITIONED_PASS = 1e-5


def one_pass(model, x_MT, time, aligned_CT=None):
    """[2M, T] of one row alone."""
    frames = x_MT.shape[1]
    lengths_1 = torch.tensor([frames])
    aligned_1TC = model.unconditioned(1, frames) if aligned_CT is None else aligned_CT.t()[None]
    modulation = model.modulate(torch.tensor([time]))
    condition = model.condition(aligned_1TC, modulation, lengths_1)
    return torch.cat(model.denoise(x_MT.t()[None], condition, modulation, lengths_1), dim=2)[0].t()


@torch.no_grad()
def test_the_voice_is_the_mean_over_its_clips(golden_denoiser, golden_tensors):
    tensors = golden_tensors["conditioning"]
    for name, clips in (("first", 1), ("both", 2)):
        latent = golden_denoiser.voice_latent(tensors["mel_24khz"][:clips])
        assert relative_error(latent, tensors[f"diffusion_latent_{name}"]) < ONE_PASS


@torch.no_grad()
def test_latents_are_aligned(golden_denoiser, golden_tensors):
    tensors = golden_tensors["denoiser"]
    aligned_TC = golden_denoiser.align(tensors["latents"], tensors["voice"])
    assert relative_error(aligned_TC.t(), tensors["aligned"]) < ONE_PASS


def test_frames_and_the_latent_of_each(golden_tensors):
    tables = golden_tensors["tables"]
    for latents, frames in zip(tables["num_latents"].tolist(), tables["num_frames"].tolist(), strict=True):
        assert frames_of(latents) == frames
    maps = {int(name[8:]): tensor for name, tensor in tables.items() if name.startswith("nearest_")}
    assert maps
    for latents, expected in maps.items():
        frames = frames_of(latents)
        assert (torch.arange(frames) * latents // frames).tolist() == expected.tolist()


@torch.no_grad()
def test_the_time_is_embedded(golden_denoiser, golden_tensors, monkeypatch):
    """The original's sinusoids, of which `modulate` is a function."""
    seen = []
    monkeypatch.setattr(golden_denoiser.time_embed, "forward", lambda x: seen.append(x) or x)
    golden_denoiser.modulate(torch.tensor([0, 1, 500, 3999]))
    assert relative_error(seen[0], golden_tensors["denoiser"]["time_embedding"]) < ONE_PASS


def test_buckets_of_relative_positions(golden_tensors):
    tensors = golden_tensors["denoiser"]
    distances = tensors["bucket_distances"]
    farthest = int(distances.abs().max())
    table_KH = torch.arange(module.BUCKETS, dtype=torch.float32)[:, None]
    buckets = distance_bias(table_KH, 1, farthest + 1)[0, distances + farthest]
    assert buckets.tolist() == tensors["buckets"].tolist()


@torch.no_grad()
def test_single_passes(golden_denoiser, golden_tensors):
    tensors = golden_tensors["denoiser"]
    times = sorted({int(name.split("_")[1]) for name in tensors if name.startswith("forward_")})
    assert len(times) > 2
    for time in times:
        conditional = one_pass(golden_denoiser, tensors["x"], time, tensors["aligned"])
        assert relative_error(conditional, tensors[f"forward_{time}"]) < ONE_PASS
        free = one_pass(golden_denoiser, tensors["x"], time)
        assert relative_error(free, tensors[f"forward_{time}_free"]) < ONE_UNCONDITIONED_PASS


def attention_written_out(qkv_TE, table_KH):
    heads = table_KH.shape[1]
    frames, dim = len(qkv_TE), qkv_TE.shape[1] // heads // 3
    q, k, v = qkv_TE.double().view(frames, heads, 3, dim).permute(2, 1, 0, 3)
    bias_HD = distance_bias(table_KH, dim, frames).double()
    place = torch.arange(frames)
    bias_HTT = bias_HD[:, place[None, :] - place[:, None] + frames - 1]
    attended = (q @ k.transpose(1, 2) / dim**0.5 + bias_HTT).softmax(dim=-1) @ v
    return attended.transpose(0, 1).flatten(1)


def test_attention_written_out_is_the_same():
    generator = torch.Generator().manual_seed(0)
    qkv_RTE = torch.randn(2, 90, 3 * 64, generator=generator)
    table_KH = torch.randn(module.BUCKETS, 4, generator=generator)
    attended_RTC = attend_by_row(qkv_RTE, table_KH, torch.tensor([90, 70]))
    assert relative_error(attended_RTC[0], attention_written_out(qkv_RTE[0], table_KH)) < ONE_PASS
    assert relative_error(attended_RTC[1, :70], attention_written_out(qkv_RTE[1, :70], table_KH)) < ONE_PASS
    assert not attended_RTC[1, 70:].any()


@torch.no_grad()
def test_a_mask_makes_padding_exact(golden_denoiser):
    """Rows of 80 and 112 frames in one batch, one of them without condition, as each alone."""
    width, mels = golden_denoiser.config.hidden_size, golden_denoiser.config.num_mels
    generator = torch.Generator().manual_seed(0)
    lengths = [80, 112]
    x = [torch.randn(length, mels, generator=generator) for length in lengths]
    aligned = [torch.randn(80, width, generator=generator), golden_denoiser.unconditioned(1, 112)[0]]
    modulation = golden_denoiser.modulate(torch.tensor([500]))

    def padded(rows):
        # What lies in the padding must not matter.
        return torch.stack(
            [torch.cat((row, torch.full((112 - len(row), row.shape[1]), 7.0))) for row in rows]
        )

    lengths_R = torch.tensor(lengths)
    condition = golden_denoiser.condition(padded(aligned), modulation, lengths_R)
    together, _ = golden_denoiser.denoise(padded(x), condition, modulation, lengths_R)
    for row, length in enumerate(lengths):
        own = torch.tensor([length])
        condition = golden_denoiser.condition(aligned[row][None], modulation, own)
        alone, _ = golden_denoiser.denoise(x[row][None], condition, modulation, own)
        assert relative_error(together[row, :length], alone[0]) < ONE_PASS


def test_sizes_and_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="num_heads 3"):
        DiffusionConfig(num_heads=3)
    with torch.device("meta"):
        model = DiffusionDecoder(DiffusionConfig())
    with pytest.raises(ValueError, match="at least one clip"):
        model.voice_latent([])
    with pytest.raises(ValueError, match=r"must be \[100, frames\], not \[80, 7\]"):
        model.voice_latent([torch.zeros(80, 7)])


def test_the_full_size_has_the_published_weights(full_size_keys):
    with torch.device("meta"):
        model = DiffusionDecoder(DiffusionConfig())
    shapes = full_size_keys["diffusion_decoder"]
    published = {name: shape for name, shape in shapes.items() if not name.startswith(UNUSED)}
    assert {name: list(weight.shape) for name, weight in model.state_dict().items()} == published
    assert sum(weight.numel() for weight in model.parameters()) == 271_034_568
