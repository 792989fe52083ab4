"""Calls as code written for transformers makes them, and refusals that say where to read what there is."""

import json

import numpy as np
import pytest
import torch

from clvp import (
    ClvpConfig,
    ClvpFeatureExtractor,
    ClvpForCausalLM,
    ClvpGenerationConfig,
    ClvpModelForConditionalGeneration,
    ClvpTokenizer,
)
from tests.clvp.conftest import DATA

transformers = pytest.importorskip("transformers")
PAGE = r"docs/transformers\.md"
SAMPLING = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "seed": 3}


# ---- generate ----


def test_one_beam_is_no_beam_search(tiny_model, prompt):
    expected = tiny_model.generate(*prompt, **SAMPLING).speech_ids
    for settings in ({"num_beams": 1}, {"num_beams": None, "streamer": None, "logits_processor": None}):
        assert torch.equal(tiny_model.generate(*prompt, **settings, **SAMPLING).speech_ids, expected)
    for settings in ({"num_beams": 4}, {"streamer": object()}, {"no_repeat_ngram_size": 2}):
        with pytest.raises(TypeError, match=f"{next(iter(settings))}.*{PAGE}"):
            tiny_model.generate(*prompt, **settings, **SAMPLING)


def test_max_length_is_that_of_the_sequences(tiny_model):
    decoder = tiny_model.speech_decoder_model
    prefix = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    settings = {"do_sample": False, "min_new_tokens": 8}
    assert decoder.generate(prefix, max_length=9, **settings).shape == (1, 9)
    assert decoder.generate(prefix, max_length=9, max_new_tokens=None, **settings).shape == (1, 9)
    assert decoder.generate(prefix, max_length=30, max_new_tokens=8, **settings).shape == (1, 9)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        decoder.generate(prefix, max_length=1)


def test_a_generation_config_of_transformers_sets_what_it_says(tiny_model, prompt):
    """Over the model's own settings, as transformers does; what is none of its defaults must be known."""
    ids, mels = prompt
    tiny_model.generation_config = tiny_model.generation_config.replace(seed=3, top_k=0, max_new_tokens=12)
    theirs = transformers.GenerationConfig(do_sample=True, top_p=0.5, temperature=0.7, num_beams=1)
    settings = {"top_p": 0.5, "temperature": 0.7}
    expected = tiny_model.generate(ids, mels, **settings).speech_ids
    assert torch.equal(tiny_model.generate(ids, mels, generation_config=theirs).speech_ids, expected)
    assert not torch.equal(tiny_model.generate(ids, mels).speech_ids, expected)
    other = tiny_model.generate(ids, mels, generation_config=theirs, seed=4).speech_ids
    assert torch.equal(other, tiny_model.generate(ids, mels, seed=4, **settings).speech_ids)
    features = tiny_model.get_speech_features(input_ids=ids, input_features=mels, generation_config=theirs)
    assert torch.equal(features, tiny_model.get_speech_features(expected))
    decoder, prefix = tiny_model.speech_decoder_model, torch.randn(1, 5, 64)
    short = transformers.GenerationConfig(do_sample=False, min_new_tokens=4, max_length=5)
    assert decoder.generate(prefix, generation_config=short).shape == (1, 5)
    with pytest.raises(TypeError, match=f"num_beams.*{PAGE}"):
        decoder.generate(prefix, generation_config=transformers.GenerationConfig(num_beams=2))
    with pytest.raises(TypeError, match="must be a ClvpGenerationConfig, not a dict"):
        decoder.generate(prefix, generation_config={"top_k": 3})


def test_a_generation_config_survives_both_libraries(tmp_path):
    """Read by transformers from our file, and given to our model: the same settings, ours alone included."""
    written = ClvpGenerationConfig(do_sample=True, top_k=7, seed=5, penalized_tokens=(1, 2))
    written.save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert ClvpGenerationConfig().for_call(theirs) == written


# ---- from_pretrained ----


def test_names_of_loading_options(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    load = ClvpModelForConditionalGeneration.from_pretrained
    for name in ("dtype", "torch_dtype"):
        for dtype in (torch.bfloat16, "bfloat16"):
            assert load(tmp_path, **{name: dtype}).dtype == torch.bfloat16
    assert load(tmp_path, torch_dtype="auto").dtype == torch.float32
    for device_map in ("cpu", torch.device("cpu"), {"": "cpu"}):
        for attention in ("sdpa", "eager"):
            model = load(
                tmp_path, device_map=device_map, attn_implementation=attention, low_cpu_mem_usage=True
            )
            assert model.device.type == "cpu"
    assert load(tmp_path, device_map="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert load(tmp_path, device_map="meta").device.type == "meta"
    for device_map in ("balanced", {"text_encoder_model": 0, "speech_encoder_model": 1}):
        with pytest.raises(ValueError, match=f"one device as a whole.*{PAGE}"):
            load(tmp_path, device_map=device_map)
    with pytest.raises(ValueError, match=f"flash_attention_2.*{PAGE}"):
        load(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(TypeError, match=f"quantization_config.*{PAGE}"):
        load(tmp_path, quantization_config={})


def test_unknown_entries_of_a_configuration_are_kept(tiny_model, tmp_path):
    """By a configuration, by its parts, and by a model, as transformers keeps them."""
    content = tiny_model.config.to_dict()
    content |= {"task": {"name": "x"}, "torch_dtype": "float16", "extra": 1}
    content["text_config"] |= {"languages": ["en"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ours, theirs = ClvpConfig.from_pretrained(tmp_path), transformers.ClvpConfig.from_pretrained(tmp_path)
    assert ours == tiny_model.config
    for config in (ours, theirs):
        config.save_pretrained(tmp_path / "again")
        found = json.loads((tmp_path / "again" / "config.json").read_text())
        assert (found["task"], found["extra"]) == ({"name": "x"}, 1)
        assert found["text_config"]["languages"] == ["en"]
    assert ours.extra["task"] == {"name": "x"}
    ClvpModelForConditionalGeneration(ours).save_pretrained(tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (found["task"], found["dtype"]) == ({"name": "x"}, "float32")
    assert "torch_dtype" not in found  # it said what the weights were, and they no longer are
    assert ClvpForCausalLM.from_pretrained(tmp_path / "model").config == ours.decoder_config
    with pytest.raises(TypeError, match="typo"):
        ClvpConfig.from_pretrained(tmp_path, typo=1)


# ---- models ----


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_options_of_gradient_checkpointing(tiny_model, prompt, options):
    decoder = tiny_model.speech_decoder_model.train()

    def gradient() -> torch.Tensor:
        decoder.zero_grad()
        decoder(prompt[0], labels=prompt[0]).loss.backward()
        return decoder.model.decoder.layers[0].attn.v_proj.weight.grad

    plain = gradient()
    decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert torch.allclose(gradient(), plain, rtol=1e-4, atol=1e-6)
    decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"typo": 1})
    with pytest.raises(TypeError, match="typo"):
        gradient()


def test_output_embeddings(tiny_model):
    decoder = tiny_model.speech_decoder_model
    assert decoder.get_output_embeddings() is decoder.lm_head
    assert tiny_model.get_output_embeddings() is None
    assert tiny_model.text_encoder_model.get_output_embeddings() is None


def test_calls_that_do_not_exist_say_where_to_read(tiny_model):
    for name in ("resize_token_embeddings", "push_to_hub", "add_adapter"):
        with pytest.raises(AttributeError, match=f"{name}.*{PAGE}"):
            getattr(tiny_model, name)
        assert not hasattr(tiny_model, name)


# ---- pad ----


@pytest.fixture(scope="module")
def tokenizers():
    folder = DATA / "clvp_dev"
    return ClvpTokenizer.from_pretrained(folder), transformers.ClvpTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_tensors": "pt"},
        {"return_tensors": "np", "padding_side": "left"},
        {"padding": "max_length", "max_length": 12},
        {"padding": False},
        {"pad_to_multiple_of": 8, "return_attention_mask": True},
        {"return_attention_mask": False},
    ],
)
@pytest.mark.parametrize("form", ["batch", "rows", "rows without mask", "tensors", "one"])
def test_pad_of_the_tokenizer(tokenizers, arguments, form):
    ours, theirs = tokenizers

    def padded(tokenizer):
        texts = ["some words", "a", "some more words than that"]
        rows = [dict(tokenizer(text)) for text in texts]
        if form == "rows without mask":
            rows = [{"input_ids": row["input_ids"]} for row in rows]
        if form == "tensors":
            rows = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
        encoded = {"batch": dict(tokenizer(texts)), "one": rows[0]}.get(form, rows)
        return tokenizer.pad(encoded, **arguments)

    if form == "tensors" and arguments.get("padding") is False:
        with pytest.raises(ValueError, match="pad them"):
            padded(ours)
        return
    if arguments.get("return_attention_mask") is False:  # transformers leaves one that is there, unpadded
        assert list(padded(ours)) == ["input_ids"]
        return
    found, expected = padded(ours), padded(theirs)
    assert found.keys() == expected.keys()
    for name in found:
        assert type(found[name]) is type(expected[name])
        assert np.array_equal(np.asarray(found[name], object), np.asarray(expected[name], object))


def test_pad_keeps_other_entries(tokenizers):
    rows = [{**tokenizers[0](text), "labels": number} for number, text in enumerate(["one", "two words"])]
    assert tokenizers[0].pad(rows)["labels"] == [0, 1]
    batch = tokenizers[0].pad(rows, return_tensors="pt")
    assert torch.equal(batch.labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="input_ids, and got labels"):
        tokenizers[0].pad({"labels": [1]})
    with pytest.raises(ValueError, match="no row to pad"):
        tokenizers[0].pad([])


@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_pad_of_the_feature_extractor(tensors):
    ours, theirs = ClvpFeatureExtractor(), transformers.ClvpFeatureExtractor()
    clips = [np.sin(np.arange(length) / 20).astype(np.float32) for length in (9000, 20_000)]

    def batched(extractor):
        rows = [extractor(clip, sampling_rate=22050, return_tensors="np") for clip in clips]
        return extractor.pad(
            [{name: value[0] for name, value in row.items()} for row in rows], return_tensors=tensors
        )

    found, expected = batched(ours), batched(theirs)
    assert found.keys() == expected.keys()
    for name in found:
        assert type(found[name]) is type(expected[name])
        assert np.allclose(np.asarray(found[name]), np.asarray(expected[name]), atol=1e-3)
    rows = [{"input_features": torch.zeros(80, frames)} for frames in (30, 40)]
    with pytest.raises(ValueError, match="lengths of 30 to 40"):
        ours.pad(rows)
    assert ours.pad({"input_features": rows[0]["input_features"][None]}).input_features.shape == (1, 80, 30)
