"""Conversion of the original Tortoise files: layout, settings, errors. Parity has its own tests."""

import json
from pathlib import Path

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration, ClvpProcessor
from clvp.checkpoint import CheckpointError
from clvp.tortoise import convert_tortoise, decoder_config, encoder_config

SOURCE = Path(__file__).parents[1] / "data" / "golden_tortoise"


@pytest.fixture
def pair() -> list[dict[str, torch.Tensor]]:
    return [torch.load(SOURCE / f"{name}.pth", weights_only=True) for name in ("autoregressive", "clvp2")]


def convert(pair: list[dict[str, torch.Tensor]], folder: Path, **arguments: int) -> Path:
    paths = [folder / "autoregressive.pth", folder / "clvp2.pth"]
    for state, path in zip(pair, paths, strict=True):
        torch.save(state, path)
    return convert_tortoise(*paths, folder / "converted", **arguments)


def test_sizes_are_read_off_the_shapes(golden_tortoise):
    config = golden_tortoise.model.config
    decoder, text, speech = config.decoder_config, config.text_config, config.speech_config
    assert (decoder.vocab_size, decoder.bos_token_id, decoder.eos_token_id) == (202, 200, 201)
    assert (decoder.hidden_size, decoder.num_attention_heads, decoder.num_hidden_layers) == (128, 2, 3)
    assert (decoder.max_position_embeddings, decoder.max_text_tokens) == (128, 64)
    assert decoder.num_mel_attn_blocks == 6
    assert (text.vocab_size, speech.vocab_size) == (256, 200)
    assert (text.num_hidden_layers, text.num_attention_heads, text.intermediate_size) == (3, 2, 256)
    assert text.rms_norm_eps == speech.rms_norm_eps == pytest.approx(1e-16)
    assert text.layer_norm_eps == 1e-5
    assert max(decoder.decoder_fixing_codes) < speech.vocab_size


def test_the_published_sizes():
    """The shapes of the published files give the published configuration."""
    decoder = decoder_config(
        {
            "mel_head.weight": torch.empty(8194, 1024, device="meta"),
            "mel_pos_embedding.emb.weight": torch.empty(608, 1024, device="meta"),
            "text_pos_embedding.emb.weight": torch.empty(404, 1024, device="meta"),
            "gpt.h.0.mlp.c_fc.weight": torch.empty(1024, 4096, device="meta"),
            "conditioning_encoder.init.weight": torch.empty(1024, 80, 1, device="meta"),
            **{f"gpt.h.{i}.ln_1.weight": torch.empty(1024, device="meta") for i in range(30)},
            **{f"conditioning_encoder.attn.{i}.qkv.weight": torch.empty(3, device="meta") for i in range(6)},
        }
    )
    assert (decoder.num_attention_heads, decoder.num_hidden_layers, decoder.n_inner) == (16, 30, 4096)
    stack = "speech_transformer.transformer.attn_layers"
    speech = encoder_config(
        {
            "speech_emb.weight": torch.empty(8192, 768, device="meta"),
            "to_speech_latent.weight": torch.empty(768, 768, device="meta"),
            f"{stack}.layers.1.1.wrap.net.3.weight": torch.empty(768, 1536, device="meta"),
            f"{stack}.rotary_pos_emb.inv_freq": torch.empty(16, device="meta"),
            **{f"{stack}.layers.{i}.0.0.g": torch.empty(768, device="meta") for i in range(40)},
        },
        "speech",
    )
    assert (speech.num_attention_heads, speech.num_hidden_layers, speech.vocab_size) == (12, 20, 8192)


def test_the_folder_is_complete(golden_tortoise):
    """Tortoise's sampling settings, its normalizer, and files that a processor and a model load."""
    settings = ClvpModelForConditionalGeneration.from_pretrained(golden_tortoise.folder).generation_config
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.8, 50, 0.8)
    assert (settings.repetition_penalty, settings.penalized_tokens) == (2.0, (1,))
    assert settings.max_new_tokens == 128  # all positions that this small model has
    processor = ClvpProcessor.from_pretrained(golden_tortoise.folder)
    assert processor.tokenizer.normalizer == "tortoise"
    assert processor(text="1st", return_tensors="pt")["input_ids"].shape[0] == 1
    stored = json.loads((golden_tortoise.folder / "config.json").read_text())
    assert stored["text_config"]["rms_norm_eps"] == pytest.approx(1e-16)


def test_the_documented_program_runs_on_it(golden_tortoise):
    processor = ClvpProcessor.from_pretrained(golden_tortoise.folder)
    samples = torch.randn(30_000, generator=torch.Generator().manual_seed(0)).numpy()
    inputs = processor(
        raw_speech=samples, sampling_rate=22050, text="This is an example text.", return_tensors="pt"
    )
    model = ClvpModelForConditionalGeneration.from_pretrained(golden_tortoise.folder)
    generated = model.generate(**inputs, max_new_tokens=10)
    assert generated.speech_ids.shape == (1, 500)
    assert generated.logits_per_text.shape == generated.logits_per_speech.shape == (1, 1)


def test_stray_weights_of_other_versions_are_dropped(pair, tmp_path, golden_tortoise):
    """Causal masks that older libraries stored, and the text head, which generation does not use."""
    decoder, clvp = pair
    decoder["gpt.h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    decoder["gpt.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    folder = convert([decoder, clvp], tmp_path)
    weights = ClvpModelForConditionalGeneration.from_pretrained(folder).state_dict()
    expected = golden_tortoise.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_half_precision_files_become_float32(pair, tmp_path):
    folder = convert([{k: v.half() for k, v in state.items()} for state in pair], tmp_path)
    model = ClvpModelForConditionalGeneration.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_that_do_not_belong_are_named(pair, tmp_path):
    decoder, clvp = pair
    with pytest.raises(CheckpointError, match=r"vocoder\.bias"):
        convert([{**decoder, "vocoder.bias": torch.zeros(1)}, clvp], tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks mel_head\.weight: is it the right file"):
        convert([clvp, decoder], tmp_path)
    del decoder["gpt.h.1.attn.c_attn.bias"]
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.1\.attn\.q_proj\.bias"):
        convert([decoder, clvp], tmp_path)


def test_a_wrong_shape_is_named(pair, tmp_path):
    pair[1]["temperature"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"logit_scale \(file \[2\], model \[\]\)"):
        convert(pair, tmp_path)


def test_heads_of_another_width_must_be_told(pair, tmp_path):
    """Shapes do not tell heads apart; with the wrong number the rotary frequencies do not fit."""
    folder = convert(pair, tmp_path, decoder_heads=4)
    assert (
        ClvpModelForConditionalGeneration.from_pretrained(folder).config.decoder_config.num_attention_heads
        == 4
    )
    with pytest.raises(CheckpointError, match="say how many heads"):
        convert(pair, tmp_path, encoder_heads=1)
    narrow = {**pair[0], "mel_head.weight": torch.zeros(202, 100)}
    with pytest.raises(CheckpointError, match="100 wide, no multiple of 64"):
        convert([narrow, pair[1]], tmp_path)
