"""The composite model: generation over batches, audios and candidates; training; errors."""

import dataclasses

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration
from clvp.generation import row_names
from clvp.sampling import EngineConfig
from clvp.scoring import pad_and_fix_codes, score_candidates

SAMPLING = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "seed": 3}


@pytest.fixture
def stopping_model(tiny_model) -> ClvpModelForConditionalGeneration:
    """Draws the stop token now and then."""
    with torch.no_grad():
        tiny_model.speech_decoder_model.lm_head.bias[101] = 1.5
    return tiny_model


def test_candidates_of_a_text_are_its_columns(stopping_model, prompt, assert_close):
    ids, mels = prompt
    output = stopping_model.generate(ids, mels, num_return_sequences=5, **SAMPLING)
    assert output.speech_ids.shape == (10, 40)
    assert output.logits_per_text.shape == (2, 10)
    assert torch.equal(output.logits_per_speech, output.logits_per_text.T)
    assert len(set(output.finished.tolist())) == 2
    for text in range(2):
        own = slice(5 * text, 5 * text + 5)
        alone = stopping_model.generate(ids[[text]], mels[[text]], num_return_sequences=5, **SAMPLING)
        assert torch.equal(output.speech_ids[own], alone.speech_ids)
        scores = score_candidates(*stopping_model.encoders, ids[text], output.speech_ids[own])
        assert_close(output.logits_per_text[text, own], scores, 1e-5)


def test_codes_are_the_decoders_tokens_padded_and_fixed(stopping_model, prompt):
    ids, mels = prompt
    settings = {**SAMPLING, "num_return_sequences": 4}
    encoder, decoder = stopping_model.conditioning_encoder, stopping_model.speech_decoder_model
    with torch.no_grad():
        prefix = encoder.build_prefix(encoder.encode_clip(mels[0]), ids[0])
    output = stopping_model.generate(ids[:1], mels[:1], row_ids=["x"], **settings)
    drawn = decoder.generate([prefix], row_ids=["x"], return_dict_in_generate=True, **settings)
    tokens = [row[1:] for row in drawn.sequences]
    tokens = [row[: (row == 101).nonzero()[0]] if (row == 101).any() else row for row in tokens]
    expected = pad_and_fix_codes(tokens, drawn.finished.tolist(), 40, (83, 45, 45, 48))
    assert torch.equal(output.speech_ids, expected)
    assert torch.equal(output.finished, drawn.finished)


def test_one_text_with_many_voices_and_one_voice_with_many_texts(tiny_model, prompt):
    ids, mels = prompt
    voices = tiny_model.generate(ids[:1], mels, **SAMPLING)
    assert voices.speech_ids.shape == (2, 40)
    assert voices.logits_per_text.shape == (1, 2)
    texts = tiny_model.generate(ids, mels[:1], **SAMPLING)
    assert texts.logits_per_text.shape == (2, 2)
    assert torch.equal(voices.speech_ids[0], texts.speech_ids[0])
    assert not torch.equal(voices.speech_ids[1], texts.speech_ids[1])
    with pytest.raises(ValueError, match="got 2 and 3"):
        tiny_model.generate(ids, [*mels, mels[0]], **SAMPLING)


def test_several_clips_of_a_voice(tiny_model, prompt):
    ids, mels = prompt
    clips = [[mels[0], mels[1][:, :20]], mels[1][None]]
    output = tiny_model.generate(ids, clips, **SAMPLING)
    second = tiny_model.generate(ids[1:], mels[1:], **SAMPLING)
    assert torch.equal(output.speech_ids[1:], second.speech_ids)
    first = tiny_model.generate(ids[:1], mels[:1], **SAMPLING)
    assert not torch.equal(output.speech_ids[:1], first.speech_ids)
    assert tiny_model(ids, clips).logits_per_text.shape == (2, 2)


def test_equal_rows_are_no_copies(tiny_model, prompt):
    ids, mels = prompt
    output = tiny_model.generate(ids[[0, 0]], mels[[0, 0]], **SAMPLING)
    assert not torch.equal(output.speech_ids[0], output.speech_ids[1])
    alone = tiny_model.generate(ids[:1], mels[:1], **SAMPLING)
    assert torch.equal(output.speech_ids[:1], alone.speech_ids)


def test_names_of_rows_depend_on_text_and_audio():
    text, other = torch.tensor([1, 2]), torch.tensor([1, 3])
    clip, noise = torch.zeros(80, 3), torch.ones(80, 3)
    names = row_names([text, other, text, text, text], [[clip], [clip], [noise], [clip, clip], [clip]])
    assert len(set(names)) == 5
    assert row_names([text], [[clip]]) == names[:1]
    assert row_names([text.int()], [[clip.double()]]) == names[:1]


def test_seeds(tiny_model, prompt):
    settings = {**SAMPLING, "seed": None}
    torch.manual_seed(7)
    first, second = (tiny_model.generate(*prompt, **settings).speech_ids for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(tiny_model.generate(*prompt, **settings).speech_ids, first)
    other = tiny_model.generate(*prompt, **{**SAMPLING, "seed": 4}).speech_ids
    assert not torch.equal(tiny_model.generate(*prompt, **SAMPLING).speech_ids, other)


def test_scored_length(tiny_model, prompt):
    """Constant, or one less than the reference's argument; never less than could be generated."""
    for tokens in (3, 9):
        settings = {**SAMPLING, "max_new_tokens": tokens}
        assert tiny_model.generate(*prompt, **settings).speech_ids.shape == (2, 40)
        padded = tiny_model.generate(*prompt, pad_to_max_mel_tokens=31, **settings)
        assert padded.speech_ids.shape == (2, 30)
    with pytest.raises(ValueError, match="max_new_tokens 20 exceeds the 19 codes"):
        tiny_model.generate(*prompt, pad_to_max_mel_tokens=20, **SAMPLING)
    with pytest.raises(ValueError, match="max_new_tokens 41 exceeds the 40 codes"):
        tiny_model.get_speech_features(input_ids=prompt[0], input_features=prompt[1], max_new_tokens=41)


def test_hidden_states_of_a_generation(stopping_model, prompt, assert_close):
    """Decoder states predict the tokens that were drawn; nothing stands behind a candidate's end."""
    ids, mels = prompt
    settings = {**SAMPLING, "do_sample": False}
    output = stopping_model.generate(ids, mels, output_hidden_states=True, **settings)
    decoder = stopping_model.speech_decoder_model
    states = output.decoder_hidden_states
    assert len(states) == 3
    assert len(output.text_encoder_hidden_states) == len(output.speech_encoder_hidden_states) == 3
    assert output.speech_encoder_hidden_states[0].shape == (2, 40, 64)
    with torch.no_grad():
        logits = decoder.lm_head(decoder.final_norm(states[-1]))
        logits[..., 100] = -torch.inf  # the start token is never drawn
    for row in range(2):
        count = int((states[-1][row].abs().sum(dim=-1) > 0).sum())
        assert states[-1][row, count:].abs().sum() == 0
        assert torch.equal(logits[row, :count].argmax(dim=-1), output.speech_ids[row, :count])
    assert states[0].shape == (2, states[0].shape[1], 64)


def test_speech_features_of_generated_speech(tiny_model, prompt, assert_close):
    ids, mels = prompt
    output = tiny_model.generate(ids, mels, **SAMPLING)
    features = tiny_model.get_speech_features(input_ids=ids, input_features=mels, **SAMPLING)
    assert_close(torch.nn.functional.normalize(features), output.speech_embeds, 1e-5)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 9:] = 0
    masked = tiny_model.get_speech_features(output.speech_ids, attention_mask=mask)
    assert_close(masked[1:], tiny_model.get_speech_features(output.speech_ids[1:, :9]), 1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_training_reaches_the_encoders_and_not_the_decoder(tiny_model, prompt, padded):
    """The most probable tokens carry no gradient, whether or not layers are computed twice."""
    ids, mels = prompt
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 4:] = 0
    tiny_model.train()

    def gradients() -> dict[str, torch.Tensor | None]:
        tiny_model.zero_grad()
        output = tiny_model(ids, mels, attention_mask=mask, return_loss=True)
        assert output.loss.dim() == 0
        output.loss.backward()
        return {name: parameter.grad for name, parameter in tiny_model.named_parameters()}

    plain = gradients()
    tiny_model.gradient_checkpointing_enable()
    again = gradients()
    for name, gradient in plain.items():
        if name.startswith(("speech_decoder_model", "conditioning_encoder")):
            assert gradient is None
        else:
            assert gradient.abs().max() > 0, name
            assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_forward_in_a_padded_batch(tiny_model, prompt, assert_close):
    ids, mels = prompt
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    together = tiny_model(ids, mels, attention_mask=mask, output_hidden_states=True)
    alone = tiny_model(ids[1:, :4], mels[1:])
    assert_close(together.speech_embeds[1:], alone.speech_embeds, 1e-5)
    assert_close(together.text_embeds[1:], alone.text_embeds, 1e-5)
    for name in ("decoder_hidden_states", "text_encoder_hidden_states", "speech_encoder_hidden_states"):
        assert len(together[name]) == 3


@torch.no_grad()
def test_forward_never_takes_the_start_token_for_speech(tiny_model, prompt):
    tiny_model.speech_decoder_model.lm_head.bias[100] = 1000.0
    assert tiny_model(*prompt).logits_per_text.isfinite().all()


def test_a_model_in_training_generates_and_scores_as_in_evaluation(tiny_config, prompt):
    """Dropout would change latents, tokens and scores from call to call."""
    parts = {
        name: dataclasses.replace(getattr(tiny_config, name), attention_dropout=0.5, **rates)
        for name, rates in {
            "text_config": {"dropout": 0.5},
            "speech_config": {"dropout": 0.5},
            "decoder_config": {"embd_pdrop": 0.5},
        }.items()
    }
    model = ClvpModelForConditionalGeneration(dataclasses.replace(tiny_config, **parts))
    frozen = model.text_encoder_model.layers[0].eval()
    modes = {name: part.training for name, part in model.named_modules()}
    settings = {**SAMPLING, "output_hidden_states": True}
    once, again = (model.generate(*prompt, **settings) for _ in range(2))
    codes = once.speech_ids
    scores = [score_candidates(*model.encoders, prompt[0][0], codes) for _ in range(2)]
    with pytest.raises(ValueError, match="input_features"):
        model.generate(prompt[0])
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert model.training
    assert not frozen.training
    expected = model.eval().generate(*prompt, **settings)
    for output in (once, again):
        assert torch.equal(output.speech_ids, expected.speech_ids)
        assert torch.equal(output.logits_per_text, expected.logits_per_text)
        for state, right in zip(output.decoder_hidden_states, expected.decoder_hidden_states, strict=True):
            assert torch.equal(state, right)
    for found in scores:
        assert torch.equal(found, score_candidates(*model.encoders, prompt[0][0], codes))


def test_empty_texts_are_named(tiny_model, prompt):
    empty = torch.empty(2, 0, dtype=torch.long)
    for call in (
        lambda: tiny_model(empty, prompt[1]),
        lambda: tiny_model.get_text_features(empty),
        lambda: tiny_model.get_text_features(text_encoder_inputs_embeds=torch.empty(2, 0, 64)),
        lambda: tiny_model.speech_decoder_model(empty),
    ):
        with pytest.raises(ValueError, match=r"shape \[2, 0.* holds no token"):
            call()


def test_missing_and_unpaired_inputs_are_named(tiny_model, prompt):
    ids, mels = prompt
    with pytest.raises(ValueError, match="input_features"):
        tiny_model.generate(ids)
    with pytest.raises(ValueError, match="input_features"):
        tiny_model(ids)
    embeds = tiny_model.conditioning_encoder.text_token_embedding(ids)
    with pytest.raises(ValueError, match="text_encoder_inputs_embeds"):
        tiny_model.generate(None, mels, conditioning_encoder_inputs_embeds=embeds)
    with pytest.raises(ValueError, match="pairs texts with audios"):
        tiny_model(ids[:1], mels, return_loss=True)
    with pytest.raises(TypeError, match="num_beams"):
        tiny_model.generate(ids, mels, num_beams=2)
    with pytest.raises(ValueError, match=r"row 0: the text has 22 tokens; the model takes at most 21"):
        tiny_model.generate(torch.ones(1, 22, dtype=torch.long), mels[:1])


def test_half_precision_generation_and_its_own_settings(tiny_model, prompt):
    """The model's settings come from its file; a settings object in a call replaces them."""
    tiny_model.generation_config = dataclasses.replace(tiny_model.generation_config, max_new_tokens=6, seed=1)
    by_model = tiny_model.generate(*prompt)
    by_call = tiny_model.generate(*prompt, generation_config=tiny_model.generation_config)
    assert torch.equal(by_model.speech_ids, by_call.speech_ids)
    assert (by_model.speech_ids[:, 6:37] == 83).all()


def test_generation_follows_the_weights_and_not_the_engine(tiny_model, prompt):
    once = tiny_model.generate(*prompt, **SAMPLING)
    narrow = tiny_model.generate(*prompt, engine_config=EngineConfig(lanes=1), **SAMPLING)
    assert torch.equal(narrow.speech_ids, once.speech_ids)
    with torch.no_grad():
        tiny_model.speech_decoder_model.lm_head.weight.neg_()
    changed = tiny_model.generate(*prompt, **SAMPLING)
    assert not torch.equal(changed.speech_ids, once.speech_ids)
    moved = tiny_model.bfloat16().generate(*prompt, **SAMPLING)
    assert moved.logits_per_text.isfinite().all()


def test_input_embeddings_can_be_replaced(tiny_model):
    decoder = tiny_model.speech_decoder_model
    for part in (tiny_model.conditioning_encoder, tiny_model.text_encoder_model, decoder, decoder.model):
        replacement = torch.nn.Embedding(8, 64)
        part.set_input_embeddings(replacement)
        assert part.get_input_embeddings() is replacement
    assert decoder.get_input_embeddings() is decoder.model.decoder.input_embeds_layer


def test_generation_leaves_the_weights_alone(tiny_model, prompt):
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    tiny_model.generate(*prompt, **SAMPLING)
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(value, before[key]), key
