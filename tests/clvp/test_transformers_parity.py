"""Live parity with an installed transformers 5: what it computes correctly, and files in both directions.

Its `generate` is not among that; see the golden data for generation.
"""

import json

import pytest
import torch

from clvp import (
    ClvpConditioningEncoder,
    ClvpConfig,
    ClvpEncoder,
    ClvpForCausalLM,
    ClvpGenerationConfig,
    ClvpModelForConditionalGeneration,
)

transformers = pytest.importorskip("transformers")


@pytest.fixture
def reference(tiny_model, tmp_path):
    """The same weights in transformers' model, loaded from the files that ours wrote."""
    tiny_model.save_pretrained(tmp_path)
    reference, loading = transformers.ClvpModelForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    return reference.eval()


@torch.no_grad()
def test_encoders(tiny_model, reference, assert_close, prompt):
    for name in ("text_encoder_model", "speech_encoder_model"):
        ours = getattr(tiny_model, name)(prompt[0], output_hidden_states=True, output_attentions=True)
        theirs = getattr(reference, name)(prompt[0], output_hidden_states=True, output_attentions=True)
        for field in ("embeds", "last_hidden_state", "pooler_output"):
            assert_close(ours[field], theirs[field])
        for field in ("hidden_states", "attentions"):
            assert len(ours[field]) == len(theirs[field])
            for mine, other in zip(ours[field], theirs[field], strict=True):
                assert_close(mine, other)
        assert ours.keys() == theirs.keys()
        for mine, other in zip(ours.to_tuple()[:3], theirs.to_tuple()[:3], strict=True):
            assert_close(mine, other)


@torch.no_grad()
def test_conditioning_encoder(tiny_model, reference, assert_close, prompt):
    ids, mels = prompt
    ours, theirs = tiny_model.conditioning_encoder, reference.conditioning_encoder
    assert_close(ours(mels, ids), theirs(mels, ids))
    assert_close(ours(mels, ids[:1]), theirs(mels, ids[:1]))
    assert_close(ours(mels[:1], ids), theirs(mels[:1], ids))


@torch.no_grad()
def test_decoder(tiny_model, reference, assert_close, prompt):
    ids = prompt[0]
    settings = {"output_hidden_states": True, "output_attentions": True, "labels": ids}
    ours = tiny_model.speech_decoder_model(ids, **settings)
    theirs = reference.speech_decoder_model(ids, **settings)
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.loss, theirs.loss)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(mine, other)
    for mine, other in zip(ours.attentions, theirs.attentions, strict=True):
        assert_close(mine, other)
    types = ids.flip(1)
    assert_close(
        tiny_model.speech_decoder_model(ids, token_type_ids=types).logits,
        reference.speech_decoder_model(ids, token_type_ids=types).logits,
    )


@torch.no_grad()
def test_forward(tiny_model, reference, assert_close, prompt):
    ids, mels = prompt
    ours, theirs = tiny_model(ids, mels, return_loss=True), reference(ids, mels, return_loss=True)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name])
    assert_close(tiny_model(ids, mels, return_dict=False)[0], reference(ids, mels, return_dict=False)[0])
    assert_close(tiny_model.get_speech_features(ids), reference.get_speech_features(ids))


@pytest.mark.parametrize("length", [2, 3, 4, 5, 9])
def test_fixing_of_generated_tokens(tiny_model, reference, length):
    """Rows with no stop token, with one anywhere, with several; sequences shorter than the ending."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 100, (40, length), generator=generator)
    stops = torch.rand(40, length, generator=generator) < 0.15
    tokens[stops] = tiny_model.config.decoder_config.eos_token_id
    assert torch.equal(
        tiny_model.fix_speech_decoder_output(tokens), reference.fix_speech_decoder_output(tokens)
    )


@torch.no_grad()
def test_we_load_what_transformers_saves(reference, assert_close, prompt, tmp_path):
    folder = tmp_path / "theirs"
    reference.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ours = ClvpModelForConditionalGeneration.from_pretrained(folder)
    assert_close(ours(*prompt).logits_per_text, reference(*prompt).logits_per_text)
    for part in (ClvpConditioningEncoder, ClvpEncoder, ClvpForCausalLM):
        assert part.from_pretrained(folder).num_parameters() > 0
    reference.speech_decoder_model.save_pretrained(tmp_path / "decoder")
    decoder = ClvpForCausalLM.from_pretrained(tmp_path / "decoder")
    assert_close(decoder(prompt[0]).logits, reference.speech_decoder_model(prompt[0]).logits)
    reference.text_encoder_model.save_pretrained(tmp_path / "text")
    text = ClvpEncoder.from_pretrained(tmp_path / "text")
    assert_close(text(prompt[0]).embeds, reference.text_encoder_model(prompt[0]).embeds)


def test_configurations_agree(tmp_path):
    """Every field that both have, over its default and over a file, except for the speech vocabulary."""
    ours, theirs = ClvpConfig().to_dict(), transformers.ClvpConfig().to_dict()
    for part in ("text_config", "speech_config", "decoder_config"):
        differing = {
            name
            for name, value in ours[part].items()
            if name in theirs[part] and json.dumps(value) != json.dumps(theirs[part][name])
        }
        assert differing == ({"vocab_size"} if part == "speech_config" else set())
    transformers.ClvpConfig().save_pretrained(tmp_path)
    read = ClvpConfig.from_pretrained(tmp_path)
    assert read.speech_config.vocab_size == 256  # what the file says
    ClvpConfig().save_pretrained(tmp_path)
    assert transformers.ClvpConfig.from_pretrained(tmp_path).speech_config.vocab_size == 8192


def test_generation_settings_load_in_both(tmp_path):
    written = ClvpGenerationConfig(
        do_sample=True, temperature=0.7, top_k=12, max_new_tokens=9, eos_token_id=3
    )
    written.save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.temperature, theirs.top_k, theirs.max_new_tokens) == (0.7, 12, 9)
    transformers.GenerationConfig(do_sample=True, top_p=0.5, eos_token_id=3).save_pretrained(tmp_path)
    read = ClvpGenerationConfig.from_pretrained(tmp_path)
    assert (read.do_sample, read.top_p, read.top_k, read.eos_token_id) == (True, 0.5, 50, 3)
