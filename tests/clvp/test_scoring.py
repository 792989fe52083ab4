"""Padding, fixing and scoring of speech codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clvp import ClvpDecoderConfig
from clvp.scoring import FIXING_CODES, encode_speech, fix_rows, pad_and_fix_codes, score_candidates


def fixed_by_tortoise(tokens: list[int], length: int, stop: int) -> list[int]:
    """Tortoise's padding and `fix_autoregressive_output` as its documentation tells it, on lists."""
    codes = tokens + [stop] * (length - len(tokens))
    if stop not in codes:
        return codes
    first = codes.index(stop)
    codes = [FIXING_CODES[0] if index >= first else code for index, code in enumerate(codes)]
    if first - 3 < length:
        codes[-3:] = FIXING_CODES[1:]
    return codes


@given(
    length=st.integers(4, 30),
    rows=st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=4),
)
def test_candidates_are_fixed_as_tortoise_fixes_them(length, rows):
    rows = [row[:length] for row in rows]
    finished = [len(row) < length for row in rows]
    codes = pad_and_fix_codes([torch.tensor(row, dtype=torch.long) for row in rows], finished, length)
    assert codes.tolist() == [fixed_by_tortoise(row, length, stop=101) for row in rows]


def test_a_full_candidate_is_closed_when_it_finished():
    tokens = torch.arange(6)
    assert pad_and_fix_codes([tokens], [False], 6).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert pad_and_fix_codes([tokens], [True], 6).tolist() == [[0, 1, 2, 45, 45, 248]]
    assert pad_and_fix_codes([tokens[:0]], [True], 6).tolist() == [[83, 83, 83, 45, 45, 248]]
    assert pad_and_fix_codes([tokens[:0]], [True], 2).tolist() == [[45, 248]]


def test_candidates_longer_than_what_is_scored_are_named():
    with pytest.raises(ValueError, match="candidate 1 has 7 tokens, more than the scoring length 6"):
        pad_and_fix_codes([torch.arange(3), torch.arange(7)], [True, True], 6)


def test_rows_of_different_lengths_are_fixed_to_their_own_end():
    codes = torch.tensor([[1, 9, 2, 3, 4, 5], [1, 9, 2, 3, 4, 9]])
    decoder = ClvpDecoderConfig(eos_token_id=9, decoder_fixing_codes=(0, 6, 7, 8))
    fixed = fix_rows(codes, [6, 4], decoder)
    assert fixed.tolist() == [[1, 0, 0, 6, 7, 8], [1, 6, 7, 8, 4, 9]]
    assert codes[0, 1] == 9  # the input is left alone


def test_scores_are_scaled_cosines(tiny_model, prompt, assert_close, monkeypatch):
    text = prompt[0][0]
    codes = torch.randint(0, 100, (5, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stopped = torch.cat((text, torch.tensor([0])))[None]
        text_embeds = tiny_model.get_text_features(stopped).embeds
        speech_embeds = tiny_model.get_speech_features(codes)
        cosine = torch.nn.functional.cosine_similarity(text_embeds, speech_embeds)
        tiny_model.logit_scale.fill_(0.5)
    scores = score_candidates(*tiny_model.encoders, text, codes)
    assert_close(scores, cosine * torch.tensor(0.5).exp(), 1e-5)
    monkeypatch.setattr("clvp.scoring.SCORING_BATCH", 2)
    assert_close(score_candidates(*tiny_model.encoders, text, codes), scores, 1e-5)


@pytest.mark.parametrize("code", [-1, 100, 101])
def test_codes_outside_the_vocabulary_are_named(tiny_model, prompt, code):
    codes = torch.zeros(3, 5, dtype=torch.long)
    codes[1, 2] = code
    with pytest.raises(ValueError, match="candidate 1 has a code outside the speech vocabulary of 100"):
        score_candidates(*tiny_model.encoders, prompt[0][0], codes)


def test_half_precision_scores_are_float32(tiny_model, prompt):
    codes = torch.zeros(3, 5, dtype=torch.long)
    half = tiny_model.bfloat16()
    assert score_candidates(*half.encoders, prompt[0][0], codes).dtype == torch.float32
    assert encode_speech(half.speech_encoder_model, codes).embeds.dtype == torch.bfloat16
