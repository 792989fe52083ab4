"""What is wrong in the reference implementations, case by case, and right here."""

import copy

import pytest
import torch
from torch import Tensor

from clvp import ClvpModelForConditionalGeneration
from clvp.layers import ClvpRotaryPositionalEmbedding, inverse_frequencies
from clvp.scoring import pad_and_fix_codes, score_candidates
from tests.sampling.rehearsal import DEVICE, REHEARSED

SAMPLING = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "seed": 3}


@pytest.fixture
def ragged() -> tuple[Tensor, Tensor, Tensor]:
    """Texts of 14 and 6 tokens: ids [2, 14], mask [2, 14], log-mels [2, 80, 30]."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 60, (2, 14), generator=generator)
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[1, 6:] = 0
    return ids * mask, mask, torch.randn(2, 80, 30, generator=generator)


@pytest.mark.parametrize("do_sample", [False, True])
def test_fault_01_a_text_in_a_padded_batch_generates_what_it_does_alone(tiny_model, ragged, do_sample):
    ids, mask, mels = ragged
    settings = {**SAMPLING, "do_sample": do_sample, "num_return_sequences": 2}
    together = tiny_model.generate(ids, mels, mask, **settings)
    alone = tiny_model.generate(ids[1:, :6], mels[1:], **settings)
    first = tiny_model.generate(ids[:1], mels[:1], **settings)
    assert torch.equal(together.speech_ids, torch.cat((first.speech_ids, alone.speech_ids)))
    assert not torch.equal(first.speech_ids, alone.speech_ids)


@torch.no_grad()
def test_fault_02_padding_does_not_reach_the_text_embedding(tiny_model, assert_close, ragged):
    ids, mask, _ = ragged
    together = tiny_model.get_text_features(ids, attention_mask=mask)
    alone = tiny_model.get_text_features(ids[1:, :6])
    assert_close(together.pooler_output[1:], alone.pooler_output, 1e-5)
    assert_close(together.embeds[1:], alone.embeds, 1e-5)


def test_fault_03_a_score_does_not_depend_on_the_other_candidates(tiny_model, prompt):
    text, fixing = prompt[0][0], tiny_model.config.decoder_config.decoder_fixing_codes
    candidates = [torch.arange(length) for length in (7, 11, 23, 39)]
    scores = []
    for batch in ([0], [0, 1], [0, 2], [3, 0]):
        codes = pad_and_fix_codes([candidates[i] for i in batch], [True] * len(batch), 40, fixing)
        scores.append(score_candidates(*tiny_model.encoders, text, codes)[batch.index(0)])
    assert torch.stack(scores).sub(scores[0]).abs().max() < 1e-5
    # The length itself matters, which is why it must be a constant.
    other = score_candidates(
        *tiny_model.encoders, text, pad_and_fix_codes(candidates[:1], [True], 60, fixing)
    )
    assert (other[0] - scores[0]).abs() > 1e-3


@pytest.mark.parametrize("length", [36, 37, 38, 39])
def test_fault_04_no_drawn_code_is_overwritten_by_the_ending(length):
    """The reference writes its last three codes over a candidate that ends where the batch does."""
    tokens = torch.arange(length)
    for batch in ([tokens], [tokens, torch.arange(3)]):
        codes = pad_and_fix_codes(batch, [True] * len(batch), 50)
        assert torch.equal(codes[0, :length], tokens)
        assert codes[0, length:].tolist() == [83] * (47 - length) + [45, 45, 248]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_fault_05_half_precision_loads_and_runs(tiny_model, prompt, tmp_path, dtype):
    tiny_model.save_pretrained(tmp_path)
    half = ClvpModelForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    ids, mels = prompt
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    text, expected = half.get_text_features(ids).embeds, tiny_model.get_text_features(ids).embeds
    assert text.dtype == dtype
    assert (text.float() - expected).norm() / expected.norm() < 0.05
    assert half(ids, mels).logits_per_text.isfinite().all()
    assert half.generate(ids, mels, **SAMPLING).logits_per_text.isfinite().all()


def test_fault_06_positions_stay_distinct_in_half_precision():
    rotary = ClvpRotaryPositionalEmbedding(32).bfloat16()
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, inverse_frequencies(32))
    cos, sin = rotary(torch.arange(500)[None], torch.float32)
    assert torch.cat((cos, sin), dim=-1)[0, 0].unique(dim=0).shape[0] == 500
    # Rounded frequencies, or rounded products, do not tell 500 positions apart.
    angles = torch.arange(500).bfloat16()[:, None] * inverse_frequencies(32).bfloat16()
    assert angles.unique(dim=0).shape[0] < 500


@torch.no_grad()
def test_fault_07_a_model_can_be_cast_after_its_first_call(tiny_model, assert_close, prompt):
    ids, mels = prompt
    expected = tiny_model.get_text_features(ids).embeds
    half = copy.deepcopy(tiny_model).bfloat16()
    assert half(ids, mels).text_embeds.isfinite().all()
    again = half.float()
    # What bfloat16 took from the weights is gone, but no more than that.
    assert_close(again.get_text_features(ids).embeds, expected, 0.05)
    for parameter, original in zip(again.parameters(), tiny_model.parameters(), strict=True):
        parameter.copy_(original)
    assert_close(again.get_text_features(ids).embeds, expected, 1e-6)


@pytest.mark.skipif(DEVICE.type == "cpu" and not REHEARSED, reason="needs a GPU")
@torch.no_grad()
def test_fault_07_a_model_can_be_moved_to_cuda_after_its_first_call(tiny_model, assert_close, prompt):
    ids, _ = prompt
    expected = tiny_model.get_text_features(ids).embeds
    moved = tiny_model.to(DEVICE)
    assert_close(moved.get_text_features(ids.to(DEVICE)).embeds.cpu(), expected, 1e-4)


def test_fault_08_generate_returns_a_tuple_on_request(tiny_model, prompt):
    output = tiny_model.generate(*prompt, **SAMPLING)
    values = tiny_model.generate(*prompt, **SAMPLING, return_dict_in_generate=False)
    assert type(values) is tuple
    names = ["speech_ids", "logits_per_speech", "logits_per_text", "text_embeds", "speech_embeds"]
    for name, value in zip(names, values, strict=False):
        assert torch.equal(output[name], value)


def test_fault_09_text_embeddings_take_the_place_of_ids(tiny_model, prompt):
    ids, mels = prompt
    conditioning = tiny_model.conditioning_encoder.text_token_embedding(ids)
    text = tiny_model.text_encoder_model.token_embedding(ids)
    by_ids = tiny_model(ids, mels)
    by_embeds = tiny_model(
        None, mels, conditioning_encoder_inputs_embeds=conditioning, text_encoder_inputs_embeds=text
    )
    assert torch.equal(by_embeds.logits_per_text, by_ids.logits_per_text)
    assert not torch.equal(
        tiny_model(ids, mels, conditioning_encoder_inputs_embeds=-conditioning).speech_embeds,
        by_ids.speech_embeds,
    )
    settings = {**SAMPLING, "row_ids": ["a", "b"]}
    generated = tiny_model.generate(ids, mels, **settings)
    embedded = tiny_model.generate(
        None,
        mels,
        conditioning_encoder_inputs_embeds=conditioning,
        text_encoder_inputs_embeds=text,
        **settings,
    )
    assert torch.equal(embedded.speech_ids, generated.speech_ids)
    assert torch.equal(embedded.logits_per_text, generated.logits_per_text)


def test_fault_10_settings_of_a_call_do_not_outlive_it(tiny_model, prompt):
    ids, mels = prompt
    before = tiny_model.generation_config
    tiny_model.get_speech_features(input_ids=ids, input_features=mels, max_new_tokens=5)
    tiny_model.generate(ids, mels, max_new_tokens=4, do_sample=False)
    assert tiny_model.generation_config == before
    assert before.max_new_tokens != 5


@torch.no_grad()
def test_fault_11_left_padding_and_zeros_in_the_text(tiny_model, assert_close, ragged):
    ids, mask, mels = ragged
    left_ids, left_mask = ids.clone(), mask.clone()
    left_ids[1], left_mask[1] = ids[1].roll(8), mask[1].roll(8)
    right, left = (tiny_model(i, mels, attention_mask=m) for i, m in ((ids, mask), (left_ids, left_mask)))
    assert_close(left.logits_per_text, right.logits_per_text, 1e-5)
    generated = [tiny_model.generate(i, mels, m, **SAMPLING) for i, m in ((ids, mask), (left_ids, left_mask))]
    assert torch.equal(generated[0].speech_ids, generated[1].speech_ids)
    # A zero inside the text is a token like any other: the stop tokens stand behind the whole text.
    encoder, text = tiny_model.conditioning_encoder, ids[0].clone()
    text[3] = 0
    prefix = encoder.build_prefix(encoder.encode_clip(mels[0]), text)
    around = torch.cat((torch.tensor([63]), text, torch.tensor([0, 0])))
    expected = encoder.text_token_embedding(around) + encoder.text_position_embedding.weight[:17]
    assert torch.equal(prefix[1:], expected)
    assert torch.equal(encoder(mels[:1], text[None])[0], prefix[:-1])


@torch.no_grad()
def test_fault_12_use_cache_is_honoured(tiny_model, prompt):
    decoder = tiny_model.speech_decoder_model
    assert decoder(prompt[0], use_cache=False).past_key_values is None
    assert decoder.model(prompt[0], use_cache=False).past_key_values is None
    assert len(decoder(prompt[0], use_cache=True).past_key_values) == 2
    with pytest.raises(ValueError, match="use_cache"):
        tiny_model.generate(*prompt, use_cache=False)


def test_fault_13_a_sampled_row_is_the_same_alone_and_in_a_batch(tiny_model, prompt):
    ids, mels = prompt
    settings = {**SAMPLING, "num_return_sequences": 3}
    together = tiny_model.generate(ids, mels, **settings)
    for row in range(2):
        alone = tiny_model.generate(ids[row : row + 1], mels[row : row + 1], **settings)
        assert torch.equal(alone.speech_ids, together.speech_ids[3 * row : 3 * row + 3])
    assert together.speech_ids.unique(dim=0).shape[0] == 6
    swapped = tiny_model.generate(ids.flip(0), mels.flip(0), **settings)
    assert torch.equal(swapped.speech_ids, together.speech_ids.roll(3, dims=0))
