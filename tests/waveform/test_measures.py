"""Peak, level, clipping and loudness of waveforms whose values are known."""

import math

import pytest
import torch
from torchaudio.functional import loudness

from clvp.waveform.measures import fade_out, measures_of, to_loudness


@pytest.fixture
def tone():
    """One second of 997 Hz at half scale: -9.03 dBFS, and by BS.1770 -9.03 LUFS."""
    return 0.5 * torch.sin(2 * math.pi * 997 * torch.arange(24000) / 24000)


def test_measures_of_a_tone(tone):
    measures = measures_of(tone)
    assert measures["duration_s"] == 1
    assert measures["peak"] == pytest.approx(0.5, abs=1e-3)
    assert measures["rms_dbfs"] == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=1e-3)
    assert measures["clipped_share"] == 0


def test_measures_of_clipped_samples_and_of_silence():
    measures = measures_of(torch.tensor([1.0, -1.0, 0.5, 0.0]))
    assert (measures["peak"], measures["clipped_share"]) == (1, 0.5)
    assert list(measures_of(torch.zeros(9)).values()) == [9 / 24000, 0, -math.inf, 0]
    with pytest.raises(ValueError, match="no samples"):
        measures_of(torch.zeros(0))


@pytest.mark.parametrize("lufs", [-30.0, -18.0])
def test_loudness_is_met(tone, lufs):
    assert float(loudness(to_loudness(tone, lufs)[None], 24000)) == pytest.approx(lufs, abs=0.05)


def test_loudness_never_clips(tone):
    loud = to_loudness(tone, 0.0)
    assert float(loud.abs().max()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(loud / loud.abs().max(), tone / tone.abs().max())


def test_what_has_no_loudness_stays(tone):
    for waveform in (tone[:9599], torch.zeros(24000), torch.zeros(0)):
        assert torch.equal(to_loudness(waveform, -18.0), waveform)
    assert not torch.equal(to_loudness(tone[:9600], -18.0), tone[:9600])


def test_fade_out():
    ones = torch.ones(1000)
    faded = fade_out(ones)
    assert torch.equal(faded[:-119], ones[:-119])
    assert (faded[-120:].diff() < 0).all()
    assert (faded[-1], ones[-1]) == (0, 1)  # what came in is not changed
    assert fade_out(ones[:7])[-1] == 0
    assert len(fade_out(ones[:0])) == 0
