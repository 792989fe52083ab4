"""Seeded random checkpoints: reproducible, complete, and lively enough to demonstrate with."""

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration, ClvpProcessor
from clvp.random_checkpoint import main, random_model, tiny_config, write_random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), "tiny", seed=3)


def test_weights_depend_on_the_seed_alone(folder):
    state = torch.get_rng_state()
    loaded = ClvpModelForConditionalGeneration.from_pretrained(folder).state_dict()
    again, other = (random_model(tiny_config(), seed).state_dict() for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(loaded[key], value) for key, value in again.items())
    assert not torch.equal(
        loaded["conditioning_encoder.mel_conv.weight"], other["conditioning_encoder.mel_conv.weight"]
    )


def test_the_documented_program(folder):
    """The example of the documentation of transformers, with other imports and a folder."""
    processor = ClvpProcessor.from_pretrained(folder)
    model = ClvpModelForConditionalGeneration.from_pretrained(folder)
    samples = torch.randn(30_000, generator=torch.Generator().manual_seed(0)).numpy()
    out = processor(
        raw_speech=samples, sampling_rate=22050, text="This is an example text.", return_tensors="pt"
    )
    torch.manual_seed(0)
    generated = model.generate(**out, num_return_sequences=16)
    assert generated.speech_ids.shape == (16, 500)
    assert generated.logits_per_text.shape == (1, 16)
    assert generated.text_embeds.shape == (1, 64)
    # Candidates differ, end at different lengths, and are told apart by their scores.
    assert generated.finished.sum() > 12
    assert generated.speech_ids.unique(dim=0).shape[0] == 16
    assert generated.logits_per_text.std() > 0.01


def test_command_line(tmp_path, capsys):
    main([str(tmp_path / "new"), "--seed", "3"])
    assert "random" in capsys.readouterr().out
    assert ClvpModelForConditionalGeneration.from_pretrained(tmp_path / "new").config == tiny_config()
    with pytest.raises(ValueError, match='"tiny" or "full"'):
        write_random_checkpoint(tmp_path, "huge")
