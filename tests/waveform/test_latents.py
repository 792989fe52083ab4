"""Which tokens become sound, and their latents, against the original and its faults."""

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration
from clvp.tortoise import convert_tortoise
from clvp.waveform.latents import CALM_TOKENS, latent_tokens, mean_log_probability, speech_latents
from tests.waveform.conftest import relative_error

CALM = 83


@pytest.fixture(scope="module")
def model(golden_decode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert_tortoise(golden_decode / "autoregressive.pth", golden_decode / "clvp2.pth", folder)
    return ClvpModelForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
@torch.no_grad()
def prefix(model, golden_tensors):
    voice = golden_tensors["conditioning"]["autoregressive_latent_both"]
    return model.conditioning_encoder.build_prefix(voice, golden_tensors["end_to_end"]["input_ids"])


@pytest.mark.parametrize(
    ("case", "expected", "finished"),
    [
        ("0", "latents", True),
        ("1", "latents", True),  # ends in calm tokens of its own
        ("2", "latents_untrimmed", True),  # a long pause, behind which the original hears nothing
        ("3", "latents_untrimmed", False),  # never ends
    ],
)
def test_golden(model, prefix, golden_tensors, about, case, expected, finished):
    tensors = golden_tensors["end_to_end"]
    tokens = tensors[f"{case}.speech_ids"]
    assert (len(tokens) < about["max_mel_tokens"]) == finished
    latents = speech_latents(model.speech_decoder_model, prefix, tokens, finished)
    expected = tensors[f"{case}.{expected}"]
    assert latents.dtype == torch.float32
    assert len(latents) == len(tokens) + CALM_TOKENS * finished - int(sum(tokens[-3:] == CALM)) * finished
    assert relative_error(latents, expected[: len(latents)]) < 4e-6


@pytest.mark.parametrize("length", [1, 5, 300, 488, 489, 497, 498, 499, 500, 600])
def test_a_finished_candidate_ends_in_eight_calm_tokens(length):
    """Also one so long that the original has no room for them, or overwrites its last tokens."""
    speech = torch.arange(length) % CALM
    for calm in range(13):
        tokens = latent_tokens(torch.cat((speech, torch.full((calm,), CALM))), True, CALM)
        assert tokens.tolist() == speech.tolist() + [CALM] * CALM_TOKENS


@pytest.mark.parametrize("pause", [8, 9, 40])
@pytest.mark.parametrize("finished", [True, False])
def test_a_pause_does_not_end_the_speech(pause, finished):
    tokens = torch.tensor([5, 6, *[CALM] * pause, 7])
    expected = tokens.tolist() + [CALM] * CALM_TOKENS * finished
    assert latent_tokens(tokens, finished, CALM).tolist() == expected


def test_an_unfinished_candidate_gets_no_calm_tokens():
    tokens = torch.tensor([5, 6, CALM, CALM])
    assert torch.equal(latent_tokens(tokens, False, CALM), tokens)


@pytest.mark.parametrize("tokens", [[], [CALM] * 20])
@pytest.mark.parametrize("finished", [True, False])
def test_nothing_said_is_an_error(tokens, finished):
    with pytest.raises(ValueError, match=f"says nothing: none of its {len(tokens)} tokens is speech"):
        latent_tokens(torch.tensor(tokens, dtype=torch.long), finished, CALM)


def test_the_last_position_is_used_and_no_more(model, prefix):
    decoder = model.speech_decoder_model
    limit = decoder.config.max_position_embeddings
    tokens = torch.arange(limit - CALM_TOKENS)
    assert len(speech_latents(decoder, prefix, tokens, True)) == limit
    tokens = torch.arange(limit - CALM_TOKENS + 1)
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens, .* has {limit} positions"):
        speech_latents(decoder, prefix, tokens, True)


def test_the_calm_code_is_the_checkpoints(model, prefix, golden_tensors):
    tokens = golden_tensors["end_to_end"]["0.speech_ids"]
    decoder = model.speech_decoder_model
    assert decoder.config.decoder_fixing_codes[0] == CALM
    ended = torch.cat((tokens, torch.full((5,), CALM)))
    assert torch.equal(
        speech_latents(decoder, prefix, ended, True), speech_latents(decoder, prefix, tokens, True)
    )


def test_latents_are_float32_whatever_the_decoder_is(model, prefix, golden_tensors):
    """The original takes latents of another type for tokens."""
    tensors = golden_tensors["end_to_end"]
    half = type(model)(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    latents = speech_latents(half.speech_decoder_model, prefix.bfloat16(), tensors["0.speech_ids"], True)
    assert latents.dtype == torch.float32
    assert relative_error(latents, tensors["0.latents"]) < 0.1


@pytest.mark.parametrize("finished", [True, False])
@torch.no_grad()
def test_mean_log_probability_is_that_of_token_after_token(model, prefix, golden_tensors, finished):
    """Of the spoken tokens: calm at the end of a finished candidate does not count."""
    decoder = model.speech_decoder_model
    tokens = golden_tensors["end_to_end"]["0.speech_ids"][:9]
    with_calm = torch.cat((tokens, torch.full((3,), CALM)))
    counted = tokens if finished else with_calm
    expected = []
    for i, token in enumerate(counted.tolist()):
        heard = torch.tensor([[decoder.config.bos_token_id, *counted[:i].tolist()]])
        embeds = torch.cat((prefix[None], decoder.mel_embeddings(heard)), dim=1)
        state = decoder.model.decoder.hidden_of(embeds).last_hidden_state[0, -1]
        expected.append(decoder.lm_head(decoder.final_norm(state)).log_softmax(-1)[token])
    latents = speech_latents(decoder, prefix, with_calm, finished)
    found = mean_log_probability(decoder, latents, with_calm, finished)
    assert found == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
