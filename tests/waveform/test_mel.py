"""The 24 kHz log-mels against the original's and those of `transformers`, and the clips that are refused."""

import pytest
import torch
from transformers import UnivNetFeatureExtractor

from clvp.waveform.mel import PIECE, clip_mels, log_mel

CLIP_PIECE = 94_080  # PIECE samples at 22.05 kHz


@pytest.fixture(scope="module")
def clips(golden_tensors):
    tensors = golden_tensors["conditioning"]
    names = sorted(name for name in tensors if name.startswith("clip_") and not name.endswith("khz"))
    return [tensors[name].float() / 32768 for name in names]


def test_golden(golden_tensors, clips):
    """One clip is shorter than 4.27 seconds, one longer; the original's convolution is float32."""
    assert min(map(len, clips)) < CLIP_PIECE < max(map(len, clips))
    for clip, expected in zip(clips, golden_tensors["conditioning"]["mel_24khz"], strict=True):
        (mel,) = clip_mels(clip)
        torch.testing.assert_close(mel, expected, atol=5e-5, rtol=0)


def test_golden_without_padding(golden_tensors):
    tensors = golden_tensors["conditioning"]
    mel = log_mel(tensors["clip_0_24khz"])
    torch.testing.assert_close(mel, tensors["mel_24khz_unpadded_clip_0"], atol=5e-5, rtol=0)


def test_transformers_agrees():
    """Its frames begin half a hop later, and its borders are others."""
    waveform = torch.randn(30_000, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = torch.from_numpy(UnivNetFeatureExtractor().mel_spectrogram(waveform.numpy())).float().T
    inside = slice(2, 110)
    mel = log_mel(waveform[128:])
    torch.testing.assert_close(mel[:, inside], expected[:, inside], atol=5e-5, rtol=0)


def test_all_whole_pieces():
    """The default hears 4.27 seconds; pieces are cut at 24 kHz, and what fills none is left out."""
    clip = torch.randn(int(2.5 * CLIP_PIECE), generator=torch.Generator().manual_seed(0)) * 0.1
    first, second = clip_mels(clip, whole=True)
    assert torch.equal(clip_mels(clip)[0], first)
    inside = slice(10, 390)  # away from the borders, where the filter of the resampling sees other samples
    (alone,) = clip_mels(clip[CLIP_PIECE : 2 * CLIP_PIECE])
    torch.testing.assert_close(second[:, inside], alone[:, inside], atol=1e-4, rtol=0)
    short = clip[: CLIP_PIECE // 3]
    assert torch.equal(torch.stack(clip_mels(short, whole=True)), torch.stack(clip_mels(short)))


def test_silence_is_refused():
    """The original makes a voice of it."""
    speech = torch.randn(CLIP_PIECE, generator=torch.Generator().manual_seed(0)) * 0.1
    late = torch.cat((torch.zeros(CLIP_PIECE * 3 // 2), speech))
    with pytest.raises(ValueError, match=r"silent in its first 4\.27 seconds"):
        clip_mels(late)
    assert len(clip_mels(late, whole=True)) == 1
    for length in (1, 9, PIECE):
        with pytest.raises(ValueError, match="silent"):
            clip_mels(torch.zeros(length))
