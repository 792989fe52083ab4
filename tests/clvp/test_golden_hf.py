"""Parity with outputs of transformers 4.46.3 on a small checkpoint."""

import pytest
import torch

from clvp import ClvpConditioningEncoder, ClvpEncoder, ClvpForCausalLM

CASES = ["0", "1", "2"]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_prefix(golden_hf, assert_close, case):
    """With the two stop tokens of `generate`: the encoder's own, and one that the caller adds."""
    encoder, tensors = golden_hf.model.conditioning_encoder, golden_hf.tensors
    ids, features = tensors[f"{case}.input_ids"], tensors[f"{case}.input_features"]
    latent = encoder.encode_clip(features[0])
    assert_close(encoder.build_prefix(latent, ids[0])[None], tensors[f"{case}.conditioning"])
    stopped = torch.nn.functional.pad(ids, (0, 1))
    assert_close(encoder(features, stopped), tensors[f"{case}.conditioning"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_features(golden_hf, assert_close, case):
    model, tensors = golden_hf.model, golden_hf.tensors
    text = model.get_text_features(tensors[f"{case}.input_ids"])
    assert_close(text.embeds, tensors[f"{case}.text_features"])
    assert_close(model.get_speech_features(tensors[f"{case}.codes"]), tensors[f"{case}.speech_features"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_causal_lm(golden_hf, assert_close, case):
    codes = golden_hf.tensors[f"{case}.codes"]
    output = golden_hf.model.speech_decoder_model(codes, labels=codes)
    assert_close(output.logits, golden_hf.tensors[f"{case}.causal_lm_logits"])
    assert_close(output.loss[None], golden_hf.tensors[f"{case}.causal_lm_loss"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forward(golden_hf, assert_close, case):
    tensors = golden_hf.tensors
    output = golden_hf.model(tensors[f"{case}.input_ids"], tensors[f"{case}.input_features"])
    for name in ("logits_per_text", "text_embeds", "speech_embeds"):
        assert_close(output[name], tensors[f"{case}.forward_{name}"])


@torch.no_grad()
def test_batch_and_contrastive_loss(golden_hf, assert_close):
    tensors = golden_hf.tensors
    output = golden_hf.model(tensors["batch.input_ids"], tensors["batch.input_features"], return_loss=True)
    assert_close(output.logits_per_text, tensors["batch.logits_per_text"])
    assert_close(output.logits_per_speech, tensors["batch.logits_per_text"].T)
    assert_close(output.loss[None], tensors["batch.contrastive_loss"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("key", "mel_positions"),
    [("greedy_training_positions", "trained"), ("greedy_skip_position_1", "skip_one")],
)
@torch.no_grad()
def test_one_pass_predicts_every_greedy_token(golden_hf, assert_close, case, key, mel_positions):
    """The states for later use are those that the tokens were drawn from."""
    decoder, tensors = golden_hf.model.speech_decoder_model, golden_hf.tensors
    tokens = tensors[f"{case}.{key}"][:, 1:]
    latents = decoder.speech_latents(tensors[f"{case}.conditioning"], tokens, mel_positions=mel_positions)
    logits = decoder.lm_head(latents)
    assert torch.equal(logits.argmax(dim=-1), tokens)
    if mel_positions == "trained":
        assert_close(logits[:, -1], tensors[f"{case}.last_logits_training_positions"])


@torch.no_grad()
def test_parts_load_out_of_the_whole(golden_hf, assert_close):
    tensors, folder = golden_hf.tensors, golden_hf.folder
    conditioning = ClvpConditioningEncoder.from_pretrained(folder)
    stopped = torch.nn.functional.pad(tensors["0.input_ids"], (0, 1))
    assert_close(conditioning(tensors["0.input_features"], stopped), tensors["0.conditioning"])
    text = ClvpEncoder.from_pretrained(folder)
    assert_close(text(tensors["0.input_ids"]).embeds, tensors["0.text_features"])
    speech = ClvpEncoder.from_pretrained(folder, config_type="speech_config")
    assert_close(speech(tensors["0.codes"]).embeds, tensors["0.speech_features"])
    decoder = ClvpForCausalLM.from_pretrained(folder)
    assert_close(decoder(tensors["0.codes"]).logits, tensors["0.causal_lm_logits"])
    assert decoder.generation_config.max_new_tokens == 40
