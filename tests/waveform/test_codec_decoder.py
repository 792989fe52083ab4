"""Candidates as sound by a family's own codec, behind the calls of the diffusion decoder."""

from pathlib import Path

import pytest
import torch

from clvp.codec import CodecConfig, SpeechCodec
from clvp.waveform import CodecWaveformDecoder, DecodeFailure, WaveformParams, WaveformRequest
from clvp.waveform.files import load_waveform_decoder
from clvp.waveform.vocoder import SAMPLING_RATE

CONFIG = CodecConfig(levels=(5, 4), hidden_sizes=(32, 32, 32))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CodecWaveformDecoder:
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    SpeechCodec(CONFIG).save_pretrained(folder)
    found = load_waveform_decoder(folder)
    assert isinstance(found, CodecWaveformDecoder)
    return found


def request(number: int, count: int = 8) -> WaveformRequest:
    generator = torch.Generator().manual_seed(number)
    mel = torch.randn(CONFIG.num_mels, 50, generator=generator)
    tokens = torch.randint(20, (count,), generator=generator)
    voice = torch.stack((mel.mean(1), mel.std(1)))
    return WaveformRequest(f"row{number}", 0, tokens, torch.zeros(count, 4), voice)


def test_a_candidate_s_sound_is_its_own(decoder: CodecWaveformDecoder) -> None:
    requests = [request(1), request(2, 3), request(3)]
    together = decoder.decode(requests, WaveformParams())
    alone = [decoder.decode([each], WaveformParams(), seed=7)[0] for each in reversed(requests)]
    for one, other, asked in zip(together, reversed(alone), requests, strict=True):
        assert not isinstance(one, DecodeFailure)
        assert not isinstance(other, DecodeFailure)
        assert torch.equal(one.waveform_N, other.waveform_N)
        assert (one.row_id, one.candidate) == (asked.row_id, asked.candidate)
        seconds = (1024 * len(asked.tokens_T) - 256) / decoder.codec.sampling_rate
        assert len(one.waveform_N) == pytest.approx(seconds * SAMPLING_RATE, abs=2)
        assert one.waveform_N.abs().max() <= 1
    assert not torch.equal(together[0].waveform_N, together[2].waveform_N)


def test_the_voice_is_heard(decoder: CodecWaveformDecoder) -> None:
    one, other = request(1), request(2)
    mixed = WaveformRequest(one.row_id, 0, one.tokens_T, one.latents_LE, other.voice)
    (first, second) = decoder.decode([one, mixed], WaveformParams())
    assert not isinstance(first, DecodeFailure)
    assert not isinstance(second, DecodeFailure)
    assert not torch.equal(first.waveform_N, second.waveform_N)


def test_a_voice_is_that_of_its_sound_however_long_the_silence_behind_it(
    decoder: CodecWaveformDecoder,
) -> None:
    """The pipeline pads clips with digital silence, whose log-mels are at the floor."""
    mel = torch.randn(CONFIG.num_mels, 60, generator=torch.Generator().manual_seed(0))
    padded = torch.cat((mel, torch.full((CONFIG.num_mels, 200), -11.5)), dim=1)
    assert torch.equal(decoder.voice_of([padded], []), decoder.voice_of([mel], []))
    assert not torch.equal(decoder.voice_of([mel, mel + 1], []), decoder.voice_of([mel], []))


def test_tokens_that_are_no_codes_fail_alone(decoder: CodecWaveformDecoder) -> None:
    bad = WaveformRequest("bad", 2, torch.tensor([3, 99]), torch.zeros(2, 4), request(1).voice)
    failure, good = decoder.decode([bad, request(1)], WaveformParams())
    assert isinstance(failure, DecodeFailure)
    assert (failure.row_id, failure.candidate) == ("bad", 2)
    assert not isinstance(good, DecodeFailure)


def test_a_checkpoint_without_either(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files for sound"):
        load_waveform_decoder(tmp_path)
