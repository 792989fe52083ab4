"""Parity with the original Tortoise modules, through the conversion of their weights."""

import pytest
import torch

from clvp.scoring import score_candidates

CASES = ["0", "1", "2"]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_latents_of_one_and_two_clips(golden_tortoise, assert_close, case):
    encoder, tensors = golden_tortoise.model.conditioning_encoder, golden_tortoise.tensors
    clips = list(tensors[f"{case}.clips"][0])
    first = tensors[f"{case}.conditioning_latent_first_clip"][0]
    both = tensors[f"{case}.conditioning_latent_two_clips"][0]
    assert_close(encoder.encode_clip(clips[0]), first)
    assert_close(encoder.average_clips(clips), both)
    prefix = encoder.build_prefix(both, tensors[f"{case}.input_ids"][0])
    assert_close(prefix[None], tensors[f"{case}.conditioning_embeds_two_clips"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_speech_latents(golden_tortoise, assert_close, case):
    """What the diffusion model takes as input."""
    tensors = golden_tortoise.tensors
    prefix, tokens = tensors[f"{case}.conditioning_embeds_two_clips"], tensors[f"{case}.speech_ids"]
    latents = golden_tortoise.model.speech_decoder_model.speech_latents(prefix, tokens)
    assert_close(latents, tensors[f"{case}.mel_latents"])


@pytest.mark.parametrize("case", CASES)
def test_score(golden_tortoise, assert_close, case):
    """The embeddings and the scale, with the root mean square of the original: all codes count, unfixed."""
    model, tensors = golden_tortoise.model, golden_tortoise.tensors
    score = score_candidates(*model.encoders, tensors[f"{case}.input_ids"][0], tensors[f"{case}.speech_ids"])
    assert_close(score, tensors[f"{case}.clvp_score_text_with_one_stop"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("cached", "mel_positions"), [("False", "trained"), ("True", "skip_one")])
@torch.no_grad()
def test_one_pass_predicts_every_greedy_token(golden_tortoise, case, cached, mel_positions):
    """Tortoise's cache skips mel position 1."""
    tensors, decoder = golden_tortoise.tensors, golden_tortoise.model.speech_decoder_model
    tokens = tensors[f"{case}.greedy_kv_cache_{cached}"]
    prefix = tensors[f"{case}.conditioning_embeds_two_clips"]
    latents = decoder.speech_latents(prefix, tokens, mel_positions=mel_positions)
    assert torch.equal(decoder.lm_head(latents).argmax(dim=-1), tokens)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("cached", "mel_positions"), [("False", "trained"), ("True", "skip_one")])
def test_greedy_generation(golden_tortoise, case, cached, mel_positions):
    decoder = golden_tortoise.model.speech_decoder_model
    expected = golden_tortoise.tensors[f"{case}.greedy_kv_cache_{cached}"][0]
    generated = decoder.generate(
        golden_tortoise.tensors[f"{case}.conditioning_embeds_two_clips"],
        max_new_tokens=40,
        do_sample=False,
        mel_positions=mel_positions,
    )[0, 1:]
    starts = (expected == decoder.config.bos_token_id).nonzero()
    if len(starts):  # the original draws the start token there, and leaves its vocabulary
        assert (case, cached) == ("2", "False")
        expected, generated = expected[: starts[0]], generated[: starts[0]]
    assert torch.equal(generated, expected)
