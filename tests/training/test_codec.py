"""The codec: what its quantizer promises, its shapes, its voice, its files, and sound without a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clvp.audio.mel import SAMPLING_RATE, log_mel
from clvp.checkpoint import CheckpointError
from clvp.codec import CodecConfig, CodecEncoder, SpeechCodec, voice_of
from clvp.codec.griffin_lim import griffin_lim, magnitudes
from clvp.codec.quantizer import FiniteScalarQuantizer

CONFIG = CodecConfig(levels=(4, 3), hidden_sizes=(16, 16, 16), dilations=((1,), (1,), (1, 2)))


@pytest.mark.parametrize("levels", [(8, 8, 8, 4), (8, 5, 5, 5), (3, 2), (7,)])
def test_every_code_is_some_vector_and_comes_back(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(int(quantizer.levels.prod()))
    values = quantizer.values(codes)
    assert torch.equal(quantizer.codes(values), codes)
    assert values.unique(dim=0).shape == values.shape
    assert values.abs().max() <= 1


@pytest.mark.parametrize("levels", [(8, 5), (4, 3), (2, 2)])
def test_all_levels_are_in_reach_and_quantized_values_lie_on_the_grid(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    x = torch.randn(4000, len(levels), generator=torch.Generator().manual_seed(0)) * 4
    values = quantizer(x)
    codes = quantizer.codes(values)
    assert len(codes.unique()) == quantizer.levels.prod()
    torch.testing.assert_close(quantizer.values(codes), values)


def test_the_gradient_passes_the_rounding() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    FiniteScalarQuantizer((5, 8))(x).sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()


def test_four_frames_make_a_code_and_a_code_four_frames() -> None:
    mel, voice = torch.randn(80, 43), torch.rand(2, 80) + 0.5
    codes = CodecEncoder(CONFIG).eval().encode(mel, voice)
    assert codes.shape == (10,)
    codec = SpeechCodec(CONFIG).eval()
    assert codec.decoder.decode(codes, voice).shape == (80, 40)
    (waveform,) = codec.decode([codes], voice)
    assert waveform.shape == (39 * 256,)
    assert waveform.abs().max() <= 1


def test_a_voice_that_is_shifted_and_stretched_alike_has_the_same_codes() -> None:
    encoder, mel = CodecEncoder(CONFIG).eval(), torch.randn(80, 40)
    voice = voice_of([mel])
    shift, stretch = torch.randn(80), torch.rand(80) + 0.5
    other = mel * stretch[:, None] + shift[:, None]
    assert torch.equal(encoder.encode(other, voice_of([other])), encoder.encode(mel, voice))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    codec, voice = SpeechCodec(CONFIG).eval(), torch.rand(2, 80) + 0.5
    rows = [torch.tensor([1, 2, 3, 4, 5]), torch.arange(12), torch.tensor([7, 7])]
    together = codec.decode(rows, voice)
    for row, waveform in zip(rows, together, strict=True):
        assert torch.equal(codec.decode([row], voice)[0], waveform)


@pytest.mark.parametrize("codes", [[], [-1], [12]])
def test_what_is_no_code_is_named(codes: list[int]) -> None:
    with pytest.raises(ValueError, match="candidate 1 must be one or more codes from 0 to 11"):
        SpeechCodec(CONFIG).decode(
            [torch.tensor([0]), torch.tensor(codes, dtype=torch.int64)], torch.ones(2, 80)
        )


def test_files_bring_the_same_sound_back(tmp_path: Path) -> None:
    codec, codes, voice = SpeechCodec(CONFIG).eval(), torch.arange(9), torch.rand(2, 80) + 0.5
    codec.save_pretrained(tmp_path)
    again = SpeechCodec.from_pretrained(tmp_path)
    assert again.config == CONFIG
    assert torch.equal(again.decode([codes], voice)[0], codec.decode([codes], voice)[0])
    SpeechCodec(replace(CONFIG, hidden_sizes=(32, 16, 16))).save_pretrained(tmp_path / "other")
    (tmp_path / "codec.safetensors").write_bytes((tmp_path / "other" / "codec.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="misshaped"):
        SpeechCodec.from_pretrained(tmp_path)


def test_a_folder_without_a_codec_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"no codec \(codec_config.json\)"):
        SpeechCodec.from_pretrained("tests/data/golden_hf")


def test_sound_from_log_mels_has_the_same_log_mels() -> None:
    time = torch.arange(SAMPLING_RATE) / SAMPLING_RATE
    chirp = 0.3 * torch.sin(2 * torch.pi * (200 + 600 * time) * time)
    mel = log_mel(chirp[None])[0]
    found = log_mel(griffin_lim(magnitudes(mel))[None])[0]
    loud = mel < mel.quantile(0.2)  # the norms are negative
    assert (found - mel)[loud].abs().mean() < 0.1 * mel.std()
