"""Generation settings: files, copies, limits, seeds."""

import json

import pytest
import torch

from clvp import ClvpDecoderConfig, ClvpGenerationConfig
from clvp.generation_config import check_generation


def test_the_published_file(tmp_path):
    published = {"bos_token_id": 8192, "eos_token_id": 8193, "do_sample": True, "max_new_tokens": 256}
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**published, "return_dict_in_generate": True})
    )
    settings = ClvpGenerationConfig.from_pretrained(tmp_path)
    params = settings.sampling_params()
    assert (params.max_new_tokens, params.do_sample) == (256, True)
    # What the file does not say: transformers' defaults, its hidden top_k included.
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (1.0, 50, 1.0, 1.0)


def test_round_trip(tmp_path):
    settings = ClvpGenerationConfig(do_sample=True, penalized_tokens=(1, 2), seed=3, mel_positions="skip_one")
    settings.save_pretrained(tmp_path)
    assert ClvpGenerationConfig.from_pretrained(tmp_path) == settings
    assert ClvpGenerationConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert ClvpGenerationConfig.from_pretrained(tmp_path, top_k=None).top_k == 0


def test_replace_gives_a_copy_and_knows_its_fields():
    settings = ClvpGenerationConfig()
    assert settings.replace(top_k=3, use_cache=True).top_k == 3
    assert settings.top_k == 50
    with pytest.raises(TypeError, match=r"num_beams, typo; known: max_new_tokens"):
        settings.replace(num_beams=4, typo=1)
    with pytest.raises(ValueError, match="use_cache"):
        settings.replace(use_cache=False)
    for name in ("max_new_tokens", "num_return_sequences"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            settings.replace(**{name: 0})


def test_all_settings_reach_the_sampler():
    changed = {
        "max_new_tokens": 7,
        "min_new_tokens": 2,
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 4,
        "top_p": 0.6,
        "typical_p": 0.7,
        "repetition_penalty": 1.3,
        "seed": 11,
        "mel_positions": "skip_one",
        "penalized_tokens": (5,),
    }
    params = ClvpGenerationConfig(**changed).sampling_params()
    assert {name: getattr(params, name) for name in changed} == changed


def test_seeds_come_from_torch_unless_given():
    settings = ClvpGenerationConfig(do_sample=True)
    torch.manual_seed(1)
    first, second = settings.sampling_params().seed, settings.sampling_params().seed
    assert first != second
    torch.manual_seed(1)
    assert settings.sampling_params().seed == first
    state = torch.get_rng_state()
    ClvpGenerationConfig(do_sample=False).sampling_params()
    ClvpGenerationConfig(do_sample=True, seed=4).sampling_params()
    assert torch.equal(torch.get_rng_state(), state)


def test_limits_of_the_decoder():
    decoder = ClvpDecoderConfig(max_position_embeddings=20)
    assert ClvpGenerationConfig.for_decoder(decoder).max_new_tokens == 20
    assert ClvpGenerationConfig.for_decoder(ClvpDecoderConfig()).max_new_tokens == 500
    check_generation(ClvpGenerationConfig(max_new_tokens=20), decoder)
    with pytest.raises(ValueError, match="max_new_tokens 21 exceeds the model's 20 mel positions"):
        check_generation(ClvpGenerationConfig(max_new_tokens=21), decoder)
    with pytest.raises(ValueError, match="19 mel positions"):
        check_generation(ClvpGenerationConfig(max_new_tokens=20, mel_positions="skip_one"), decoder)
    with pytest.raises(ValueError, match="eos_token_id 5 differs"):
        check_generation(ClvpGenerationConfig(max_new_tokens=5, eos_token_id=5), decoder)


@pytest.mark.parametrize("mel_positions", ["trained", "skip_one"])
def test_all_positions_can_be_used(tiny_model, mel_positions):
    """As many tokens as `check_generation` allows are generated, and predicted in one pass."""
    decoder = tiny_model.speech_decoder_model
    with torch.no_grad():
        decoder.lm_head.bias[101] = -100.0
    count = 64 if mel_positions == "trained" else 63
    prefix = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    tokens = decoder.generate(prefix, do_sample=False, max_new_tokens=count, mel_positions=mel_positions)
    assert tokens.shape == (1, 1 + count)
    latents = decoder.speech_latents(prefix, tokens[:, 1:], mel_positions=mel_positions)
    with torch.no_grad():
        logits = decoder.lm_head(latents)
        logits[..., 100] = -torch.inf  # the start token is never drawn
    assert torch.equal(logits.argmax(dim=-1), tokens[:, 1:])
