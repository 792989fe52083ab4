"""The published sizes: keys, shapes and numbers of weights, on `meta`; and the layout of older hub files."""

import pytest
import torch

from clvp import ClvpConfig, ClvpModelForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> ClvpModelForConditionalGeneration:
    with torch.device("meta"):
        return ClvpModelForConditionalGeneration(ClvpConfig())


def test_numbers_of_weights(model):
    assert model.num_parameters() == 665_110_531
    parts = {
        "conditioning_encoder": 25_961_472,
        "speech_decoder_model": 395_302_914,
        "text_encoder_model": 118_875_648,
        "speech_encoder_model": 124_970_496,
    }
    for name, count in parts.items():
        assert getattr(model, name).num_parameters() == count


def published_shapes() -> dict[str, list[int]]:
    """The published checkpoint's weights, written out from its description."""
    shapes: dict[str, list[int]] = {"logit_scale": []}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = [outputs, inputs]
        if bias:
            shapes[f"{name}.bias"] = [outputs]

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [width]

    shapes["conditioning_encoder.text_token_embedding.weight"] = [256, 1024]
    shapes["conditioning_encoder.text_position_embedding.weight"] = [404, 1024]
    shapes["conditioning_encoder.mel_conv.weight"] = [1024, 80, 1]
    shapes["conditioning_encoder.mel_conv.bias"] = [1024]
    for i in range(6):
        norm(f"conditioning_encoder.group_norms.{i}", 1024)
        for part in ("q", "k", "v", "out"):
            linear(f"conditioning_encoder.mel_attn_blocks.{i}.{part}_proj", 1024, 1024)
    decoder = "speech_decoder_model.model.decoder"
    shapes[f"{decoder}.input_embeds_layer.weight"] = [8194, 1024]
    shapes[f"{decoder}.position_embeds_layer.weight"] = [608, 1024]
    norm(f"{decoder}.layer_norm", 1024)
    norm("speech_decoder_model.final_norm", 1024)
    linear("speech_decoder_model.lm_head", 8194, 1024)
    for i in range(30):
        norm(f"{decoder}.layers.{i}.input_layernorm", 1024)
        norm(f"{decoder}.layers.{i}.post_attention_layernorm", 1024)
        for part in ("q", "k", "v", "out"):
            linear(f"{decoder}.layers.{i}.attn.{part}_proj", 1024, 1024)
        shapes[f"{decoder}.layers.{i}.mlp.c_fc.weight"] = [1024, 4096]
        shapes[f"{decoder}.layers.{i}.mlp.c_fc.bias"] = [4096]
        shapes[f"{decoder}.layers.{i}.mlp.c_proj.weight"] = [4096, 1024]
        shapes[f"{decoder}.layers.{i}.mlp.c_proj.bias"] = [1024]
    for kind, vocabulary in (("text", 256), ("speech", 8192)):
        encoder = f"{kind}_encoder_model"
        shapes[f"{encoder}.token_embedding.weight"] = [vocabulary, 768]
        shapes[f"{encoder}.rotary_pos_emb.inv_freq"] = [16]
        norm(f"{encoder}.final_layer_norm", 768)
        linear(f"{encoder}.projection", 768, 768, bias=False)
        for i in range(20):
            for part in ("q", "k", "v"):
                linear(f"{encoder}.layers.{i}.self_attn.{part}_proj", 768, 768, bias=False)
            linear(f"{encoder}.layers.{i}.self_attn.out_proj", 768, 768)
            linear(f"{encoder}.layers.{i}.mlp.fc1.proj", 3072, 768)
            linear(f"{encoder}.layers.{i}.mlp.fc2", 768, 1536)
            shapes[f"{encoder}.layers.{i}.input_rmsnorm.weight"] = [768]
            shapes[f"{encoder}.layers.{i}.post_attention_rmsnorm.weight"] = [768]
    return shapes


def test_keys_and_shapes(model):
    actual = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert len(actual) == 1003
    assert actual == published_shapes()
