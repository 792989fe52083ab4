"""The decoder: golden data end to end, the same bits in any company, and requests that fail alone."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration, layers
from clvp.waveform import bucket as bucket_module
from clvp.waveform import decoder as decoder_module
from clvp.waveform import denoiser as denoiser_module
from clvp.waveform import invariance
from clvp.waveform.bucket import Bucket, SamplingPlan
from clvp.waveform.decoder import WaveformDecoder
from clvp.waveform.denoiser import DiffusionDecoder, frames_of
from clvp.waveform.files import load_waveform_models
from clvp.waveform.latents import speech_latents
from clvp.waveform.mel import clip_mels
from clvp.waveform.params import (
    PRESETS,
    DecodedSpeech,
    DecodeFailure,
    WaveformEngineConfig,
    WaveformParams,
    WaveformRequest,
)
from tests.waveform.conftest import relative_error

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LATENTS, CHAIN = 4e-6, 4e-5
# A guided chain from full noise; in float64 the recorded mel itself is off by 4e-5.
WHOLE_CHAIN = 1.3e-4
GUIDED, PLAIN = WaveformParams(diffusion_steps=4), WaveformParams("p", 4, "time", guidance=0)
IN_BATCHES = WaveformEngineConfig(diffusion_batch=3, bucket_frames=64)
ALONE = WaveformEngineConfig(diffusion_batch=1, bucket_frames=64)


@pytest.fixture(scope="module")
def models(golden_checkpoint):
    return load_waveform_models(golden_checkpoint)


def decoder_of(models, config=None, device="cpu", dtype="float32"):
    """A decoder takes its models over."""
    return WaveformDecoder(
        copy.deepcopy(models.diffusion).to(device), copy.deepcopy(models.vocoder).to(device), config, dtype
    )


NO_TOKENS = torch.zeros(0, dtype=torch.int64)  # diffusion takes their latents


def request(number, models, latents=None):
    """The request of a number, always the same: 1 to 40 latents."""
    generator = torch.Generator().manual_seed(number)
    count = 1 + number * 7 % 40 if latents is None else latents
    config = models.diffusion.config
    return WaveformRequest(
        f"row{number}",
        number % 3,
        NO_TOKENS,
        torch.randn(count, config.latent_size, generator=generator),
        torch.randn(2 * config.hidden_size, generator=generator),
    )


def bits(results):
    """Comparable."""
    return [
        [r.row_id, r.candidate, *(x.numpy().tobytes().hex() for x in (r.mel_MT, r.waveform_N))]
        for r in results
    ]


# ---- golden ----


def test_golden_end_to_end(models, golden_checkpoint, golden_tensors, about, monkeypatch):
    """From the original's tokens over latents and mel to its waveform, with the noise it drew."""
    tensors, voices = golden_tensors["end_to_end"], golden_tensors["conditioning"]
    clvp = ClvpModelForConditionalGeneration.from_pretrained(golden_checkpoint)
    prefix_PD = clvp.conditioning_encoder.build_prefix(
        voices["autoregressive_latent_both"], tensors["input_ids"]
    )
    latents = speech_latents(clvp.speech_decoder_model, prefix_PD, tensors["0.speech_ids"], True)
    assert relative_error(latents, tensors["0.latents"]) < LATENTS

    def recorded(keys_R, stream, step, frames, channels):
        noise = tensors["0.noise"][int(step)] if stream == "mel" else tensors["0.z"]
        assert noise.shape == (channels, frames)
        return noise.t()[None]

    monkeypatch.setattr(bucket_module, "normal", recorded)
    monkeypatch.setattr(decoder_module, "normal", recorded)
    params = WaveformParams("p", about["chain_steps"], "time", guidance=about["cond_free_k"])
    asked = WaveformRequest("0", 0, NO_TOKENS, latents, voices["diffusion_latent_both"])
    (speech,) = decoder_of(models).decode([asked], params)
    assert relative_error(speech.mel_MT, tensors["0.mel"]) < WHOLE_CHAIN
    assert relative_error(speech.waveform_N, tensors["0.waveform"]) < WHOLE_CHAIN


def test_golden_voice_of_clips(models, golden_tensors):
    """At 22.05 kHz; the latent of the second clip, which is longer, hears 4.27 s of it."""
    tensors = golden_tensors["conditioning"]
    clips = [tensors[f"clip_{i}"].float() / 32768 for i in range(2)]
    decoder = decoder_of(models)
    mels = [mel_MT for clip_N in clips for mel_MT in clip_mels(clip_N)]
    assert relative_error(decoder.voice_of([], mels[:1]), tensors["diffusion_latent_first"]) < LATENTS
    assert relative_error(decoder.voice_of([], mels), tensors["diffusion_latent_both"]) < LATENTS


# ---- the same bits in any company ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("params", [GUIDED, PLAIN], ids=["guided", "plain"])
def test_neighbours_and_order_change_nothing(models, device, params):
    """Guided batches of several rows too, which the original refuses."""
    decoder = decoder_of(models, IN_BATCHES, device)
    assert decoder.width == 3
    watched = [request(number, models) for number in range(6)]
    alone = [bits(decoder.decode([one], params))[0] for one in watched]
    assert len({len(one[3]) for one in alone}) > 2
    assert bits(decoder.decode(watched, params)) == alone
    among = [request(number, models) for number in (30, 31, 32)] + watched[::-1] + [request(33, models)]
    assert bits(decoder.decode(among, params))[3:9] == alone[::-1]


SCRIPT = """
import json, sys
from clvp.waveform.files import load_waveform_models
from tests.waveform.test_decoder import GUIDED, IN_BATCHES, bits, decoder_of, request
models = load_waveform_models(sys.argv[1])
decoder = decoder_of(models, IN_BATCHES)
results = decoder.decode([request(n, models) for n in (4, 2)], GUIDED)
json.dump([decoder.facts(), bits(results)], open(sys.argv[2], "w"))
"""


@pytest.mark.slow
def test_a_restart_changes_nothing(models, golden_checkpoint, tmp_path):
    """Nor do threads, where the facts do not name them."""
    decoder = decoder_of(models, IN_BATCHES)
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", SCRIPT, golden_checkpoint, tmp_path / "bits"],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2"},
        check=True,
        timeout=200,
    )
    facts, again = json.loads((tmp_path / "bits").read_text())
    assert facts == decoder.facts()
    assert "arithmetic" in facts
    assert again == bits(decoder.decode([request(n, models) for n in (1, 2, 3, 4)], GUIDED))[3:0:-2]


def test_padding_and_width_change_no_more_than_rounding(models):
    asked = [request(number, models) for number in (2, 9, 11)]
    params = replace(GUIDED, diffusion_temperature=0.1)
    first, *others = (
        decoder_of(models, config).decode(asked, params)
        for config in (
            WaveformEngineConfig(),
            ALONE,
            WaveformEngineConfig(diffusion_batch=5, bucket_frames=100),
        )
    )
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert relative_error(two.mel_MT, one.mel_MT) < CHAIN


def test_what_a_waveform_depends_on(models):
    decoder, asked = decoder_of(models, ALONE), request(1, models)
    base = bits(decoder.decode([asked], PLAIN))[0][2:]
    for other in (replace(asked, row_id="another"), replace(asked, candidate=2)):
        assert bits(decoder.decode([other], PLAIN))[0][2:] != base
    assert bits(decoder.decode([asked], PLAIN, seed=1))[0][2:] != base
    for params in (replace(PLAIN, diffusion_temperature=0.5), GUIDED):
        assert bits(decoder.decode([asked], params))[0][2:] != base


def test_conditions_ahead_are_those_of_each_step(models, monkeypatch):
    """However many steps' conditions are computed at once; which is what bounds their memory."""
    asked, sizes, results = [request(12, models)], [], []
    condition = DiffusionDecoder.condition

    def counted(self, aligned_RTC, modulation_RKE, lengths_R):
        sizes.append(aligned_RTC.shape[0] * aligned_RTC.shape[1])
        return condition(self, aligned_RTC, modulation_RKE, lengths_R)

    monkeypatch.setattr(DiffusionDecoder, "condition", counted)
    for frames in (1, 1000, 10**6):
        monkeypatch.setattr(bucket_module, "FRAMES_AHEAD", frames)
        decoder = decoder_of(models, ALONE)
        sizes.clear()
        results.append(decoder.decode(asked, replace(GUIDED, diffusion_steps=12))[0].mel_MT)
        assert max(sizes) <= max(frames, 2 * 256)
    assert len(sizes) == 1
    for other in results[1:]:
        assert relative_error(other, results[0]) < CHAIN


# ---- the check at the start ----


def leaking(attend):
    """Attention whose last bit depends on the next row."""

    def leak(qkv_RTE, table_KH, lengths_R):
        attended = attend(qkv_RTE, table_KH, lengths_R)
        return torch.nextafter(attended, attended + qkv_RTE.roll(1, 0)[..., : attended.shape[2]])

    return leak


def test_lanes_that_depend_on_neighbours_are_noticed(models, monkeypatch, caplog):
    """And each candidate is decoded alone then, with the bits it has so."""
    diffusion = copy.deepcopy(models.diffusion)
    assert invariance.lanes_are_alike(diffusion, 4)
    diffusion.kernels = denoiser_module.Kernels(attend=leaking(denoiser_module.attend_by_row))
    assert not invariance.lanes_are_alike(diffusion, 4)
    decoder = WaveformDecoder(diffusion, models.vocoder, WaveformEngineConfig(diffusion_batch=4))
    assert decoder.facts()["width"] == 1
    assert "alone" in caplog.text


def test_bits_that_depend_on_threads_make_threads_a_fact(models, monkeypatch):
    silu = layers._ACTIVATIONS["silu"]
    assert "threads" not in decoder_of(models).facts()
    monkeypatch.setitem(layers._ACTIVATIONS, "silu", lambda x: silu(x) * (1 + torch.get_num_threads() * 1e-6))
    assert decoder_of(models).facts()["threads"] == torch.get_num_threads()


# ---- requests that fail, and inputs at the edge ----


def test_a_failing_request_is_no_concern_of_others(models, monkeypatch):
    decoder = decoder_of(models, IN_BATCHES)
    good = [request(number, models, latents=9) for number in range(4)]
    expected = bits(decoder.decode(good, GUIDED))
    bad = [
        replace(good[0], latents_LE=torch.empty(0, models.diffusion.config.latent_size)),
        replace(good[0], latents_LE=good[0].latents_LE[:, :5]),
        replace(good[0], latents_LE=good[0].latents_LE * torch.nan),
        replace(good[0], voice=good[0].voice[:5]),
        replace(good[0], latents_LE=good[0].latents_LE * 1e30),  # finite, but overflows on its way
    ]
    results = decoder.decode([bad[0], good[0], bad[1], bad[4], good[1], *bad[2:4], *good[2:]], GUIDED)
    assert bits(r for r in results if isinstance(r, DecodedSpeech)) == expected
    errors = [r.error for r in results if isinstance(r, DecodeFailure)]
    assert [error[:20] for error in errors] == [
        "latents must have th",
        "latents must have th",
        "the mel is not finit",
        "latents holds values",
        "the voice must have ",
    ]


@torch.inference_mode()
def test_a_bucket_forgets_who_was_in_it(models):
    """As on a GPU, where it is kept: neither numbers that are none nor longer rows leave a trace."""
    bucket = Bucket(models.diffusion, SamplingPlan(models.diffusion, GUIDED), 64, 2)
    keys = torch.tensor([5, 6])
    rows = torch.randn(2, 64, models.diffusion.config.hidden_size)
    expected = bucket.sample([rows[0, :30]], keys[:1])[0]
    bucket.sample([rows[0] * torch.nan, rows[1]], keys)
    assert torch.equal(bucket.sample([rows[0, :30]], keys[:1])[0], expected)


def test_the_longest_candidate(models):
    """604 latents: more than the original's 500, and more frames than it was ever run with."""
    (speech,) = decoder_of(models).decode(
        [request(0, models, latents=604)], WaveformParams("ddim", 2, guidance=0)
    )
    assert speech.mel_MT.shape[1] == frames_of(604) == 2629
    assert speech.waveform_N.shape == (256 * 2629,)
    assert speech.waveform_N.abs().max() <= 1


@torch.no_grad()
def test_bfloat16_is_of_products_alone(models):
    decoder = decoder_of(models, dtype="bfloat16")
    denoiser = decoder.denoiser
    assert denoiser.layers[0].attn.qkv.weight.dtype == torch.bfloat16
    for exact in (
        denoiser.time_embed[0],
        denoiser.layers[0].attn.norm,
        denoiser.layers[0].resblk.emb_layers[1],
    ):
        assert exact.weight.dtype == torch.float32
    plan = SamplingPlan(denoiser, GUIDED)
    bucket = Bucket(denoiser, plan, 64, 1)
    assert (plan.table_SE.dtype, plan.modulation_SKE.dtype) == (torch.float32, torch.float32)
    assert (bucket.x_BTM.dtype, bucket.clean_BTM.dtype) == (torch.float32, torch.float32)
    # A random denoiser is chaotic at full noise; near the mel, half precision is close.
    x_1TM = torch.randn(1, 64, 100, generator=torch.Generator().manual_seed(0))
    outputs = []
    for model in (models.diffusion, denoiser):
        length, modulation = torch.tensor([64]), model.modulate(torch.tensor([5]))
        condition = model.condition(model.unconditioned(1, 64) + x_1TM.mean(2, True), modulation, length)
        outputs.append(model.denoise(x_1TM, condition, modulation, length)[0])
        assert outputs[-1].dtype == torch.float32
    assert 1e-4 < relative_error(outputs[1], outputs[0]) < 0.05
    latents = request(3, models)
    half = replace(latents, latents_LE=latents.latents_LE.bfloat16())
    assert isinstance(decoder.decode([half], GUIDED)[0], DecodedSpeech)  # never taken for token ids


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("diffusion_sampler", "euler"),
        ("diffusion_spacing", "karras"),
        ("diffusion_steps", 1),
        ("diffusion_steps", 4001),
        ("guidance", -1.0),
        ("diffusion_temperature", float("nan")),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        WaveformParams(**{name: value})


@pytest.mark.parametrize("settings", [{"diffusion_batch": 0}, {"bucket_frames": -64}])
def test_engine_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        WaveformEngineConfig(**settings)


def test_presets_are_tortoises_and_one_more():
    assert {
        name: (p.candidates, p.waveform.diffusion_steps, p.waveform.guidance) for name, p in PRESETS.items()
    } == {
        "ultra_fast": (16, 30, 0),
        "efficient": (96, 25, 2),
        "fast": (96, 80, 2),
        "standard": (256, 200, 2),
        "high_quality": (256, 400, 2),
    }
    tortoises = [preset.waveform for name, preset in PRESETS.items() if name != "efficient"]
    assert {(params.diffusion_sampler, params.diffusion_spacing) for params in tortoises} == {("p", "time")}
