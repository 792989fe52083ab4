"""One call: a text and a clip in, a waveform out."""

import numpy as np
import pytest
import soundfile
import torch

from clvp.random_checkpoint import write_random_checkpoint
from clvp.waveform import Preset, Speaker, WaveformParams
from clvp.waveform.latents import latent_tokens
from clvp.waveform.speaker import read_audio

FEW = Preset(4, WaveformParams(diffusion_steps=2))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return Speaker.from_pretrained(write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), audio=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Stereo at 44.1 kHz, a second and a half."""
    path = tmp_path_factory.mktemp("clips") / "voice.wav"
    noise = np.random.default_rng(0).normal(scale=0.1, size=(66150, 2))
    soundfile.write(path, noise, 44100)
    return path


def test_a_text_and_a_clip_give_a_waveform(speaker, clip):
    waveform = speaker.speak("Hello there.", clip, preset=FEW)
    assert waveform.dtype == torch.float32
    assert len(waveform) % 256 == 0
    assert 0 < waveform.abs().max() <= 1
    assert torch.equal(speaker.speak("Hello there.", clip, preset=FEW), waveform)
    for other in (
        speaker.speak("Hello there!", clip, preset=FEW),
        speaker.speak("Hello there.", clip, preset=FEW, seed=1),
        speaker.speak("Hello there.", clip, clip.parent / "voice.wav", preset=Preset(3, FEW.waveform)),
    ):
        assert not torch.equal(other, waveform)


def test_the_best_candidate_is_the_one_that_is_heard(speaker, clip, monkeypatch):
    """By score, and finished ones before all others."""
    seen = {}
    monkeypatch.setattr(
        "clvp.waveform.speaker.score_candidates", lambda *_: torch.tensor([1.0, 5.0, 9.0, 3.0])
    )
    best = speaker._best

    def cut(ids_N, candidates):
        for number, finished in enumerate((True, True, False, True)):
            object.__setattr__(candidates[number], "finished", finished)
        seen["candidates"], seen["best"] = candidates, best(ids_N, candidates)
        return seen["best"]

    monkeypatch.setattr(speaker, "_best", cut)
    waveform = speaker.speak("Hello there.", clip, preset=FEW)
    assert seen["best"] is seen["candidates"][1]
    calm = speaker.model.config.decoder_config.decoder_fixing_codes[0]
    latents = len(latent_tokens(seen["best"].tokens, True, calm))
    assert len(waveform) == 256 * (latents * 640 // 147)


def test_clips_are_mixed_and_resampled(clip, tmp_path):
    waveform = read_audio(clip, 6)
    assert waveform.shape == (66150 // 2,)
    soundfile.write(tmp_path / "mono.wav", waveform.numpy(), 22050, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "mono.wav", 6), waveform)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav"):
        read_audio(tmp_path / "text.wav", 6)


def test_without_a_clip_there_is_no_voice(speaker):
    with pytest.raises(ValueError):
        speaker.speak("Hello there.", preset=FEW)


def test_an_unknown_preset_is_named(speaker, clip):
    with pytest.raises(ValueError, match="fastest"):
        speaker.speak("Hello there.", clip, preset="fastest")
