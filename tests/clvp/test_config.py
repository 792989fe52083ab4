"""Configurations: defaults of the published model, files, errors."""

import dataclasses
import json
from pathlib import Path

import pytest

from clvp import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.checkpoint import CheckpointError

PUBLISHED = Path(__file__).parents[1] / "data" / "clvp_dev"


def test_the_default_is_the_published_model():
    published = ClvpConfig.from_pretrained(PUBLISHED)
    ours = ClvpConfig()
    assert ours.speech_config.vocab_size == 8192
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    for part in ("text_config", "speech_config", "decoder_config"):
        without_ids = [
            {
                **dataclasses.replace(getattr(config, part), extra={}).to_dict(),
                **(ids if part != "decoder_config" else {}),
            }
            for config in (ours, published)
        ]
        assert without_ids[0] == without_ids[1]
    assert published.scoring_length == 500


def test_round_trip(tmp_path, tiny_config):
    changed = dataclasses.replace(tiny_config, scoring_length=77, logit_scale_init_value=1.5)
    changed.save_pretrained(tmp_path / "new" / "folder")
    assert ClvpConfig.from_pretrained(tmp_path / "new" / "folder") == changed
    assert ClvpConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_parts_of_a_composite_file(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    assert ClvpEncoderConfig.from_pretrained(tmp_path) == tiny_config.text_config
    assert ClvpEncoderConfig.from_pretrained(tmp_path, "speech_config") == tiny_config.speech_config
    assert ClvpDecoderConfig.from_pretrained(tmp_path) == tiny_config.decoder_config
    assert ClvpDecoderConfig.from_pretrained(tmp_path, hidden_size=128).hidden_size == 128
    with pytest.raises(ValueError, match="audio_config"):
        ClvpEncoderConfig.from_pretrained(tmp_path, "audio_config")


def test_composition():
    text, speech = ClvpEncoderConfig(vocab_size=7), ClvpEncoderConfig(vocab_size=9)
    decoder = ClvpDecoderConfig(vocab_size=11)
    config = ClvpConfig(text, speech, decoder, logit_scale_init_value=1.0)
    assert (config.text_config, config.speech_config, config.decoder_config) == (text, speech, decoder)
    assert config.logit_scale_init_value == 1.0
    assert ClvpConfig(text_config={"vocab_size": 7}).text_config == text
    assert ClvpConfig(text_config=None, decoder_config=None) == ClvpConfig()


def test_unknown_entries_of_a_file_are_left_out_but_not_those_of_a_call():
    content = {"vocab_size": 7, "id2label": {"0": "x"}, "return_dict": False}
    assert ClvpEncoderConfig.from_dict(content) == ClvpEncoderConfig(vocab_size=7)
    with pytest.raises(TypeError, match="vocab_sise"):
        ClvpEncoderConfig.from_dict({}, vocab_sise=7)


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="no multiple of num_attention_heads 7"):
        ClvpEncoderConfig(num_attention_heads=7)
    with pytest.raises(ValueError, match="no multiple of num_attention_heads 5"):
        ClvpDecoderConfig(num_attention_heads=5)
    with pytest.raises(ValueError, match="projection_dim"):
        ClvpConfig(text_config={"projection_dim": 64})
    with pytest.raises(ValueError, match="decoder_fixing_codes"):
        ClvpDecoderConfig(decoder_fixing_codes=(1, 2))
    with pytest.raises(ValueError, match="scoring_length"):
        ClvpConfig(scoring_length=0)
    with pytest.raises(TypeError, match="text_config"):
        ClvpConfig(text_config=ClvpDecoderConfig())


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ClvpConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        ClvpConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{,}")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        ClvpConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        ClvpConfig.from_pretrained(tmp_path)
