"""The conditioning encoder: clips, prefixes, padding, limits."""

import pytest
import torch

from clvp.conditioning import groupnorm_groups


@pytest.fixture
def mels() -> list[torch.Tensor]:
    """Three clips of 20, 33 and 47 frames."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(80, frames, generator=generator) for frames in (20, 33, 47)]


@torch.no_grad()
def test_a_latent_is_the_same_bits_in_every_batch(tiny_model, mels):
    encoder = tiny_model.conditioning_encoder
    latent = encoder.encode_clip(mels[0])
    assert latent.shape == (64,)
    ids = torch.arange(1, 6)[None]
    for batch in ([mels[0]], [mels[0], mels[1]], [mels[0]] * 7):
        assert torch.equal(encoder(batch, ids)[0, 0], latent)
    assert torch.equal(encoder(torch.stack([mels[0]] * 3), ids)[2, 0], latent)
    assert torch.equal(encoder.average_clips(mels[:1]), latent)


@torch.no_grad()
def test_several_clips_of_a_voice_average(tiny_model, mels):
    encoder, ids = tiny_model.conditioning_encoder, torch.arange(1, 6).expand(2, 5)
    expected = torch.stack([encoder.encode_clip(mel) for mel in mels]).mean(dim=0)
    assert torch.equal(encoder.average_clips(mels), expected)
    equal = torch.stack([mels[0], mels[0].flip(1)])
    rows = encoder([mels, equal], ids)
    assert torch.equal(rows[0, 0], expected)
    assert torch.equal(rows[1, 0], encoder.average_clips(list(equal)))


@torch.no_grad()
def test_rows_are_packed_to_the_right_of_their_latent(tiny_model, mels):
    """Wherever the padding is, row i holds latent, start, its n tokens and a stop, then zeros."""
    encoder = tiny_model.conditioning_encoder
    ids = torch.tensor([[5, 6, 7, 8], [9, 9, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    rows = encoder(mels[0][None], ids, attention_mask=mask)
    assert rows.shape == (2, 7, 64)
    alone = encoder(mels[0][None], ids[1:, 2:])
    assert torch.equal(rows[1, :5], alone[0])
    assert rows[1, 5:].abs().max() == 0


@torch.no_grad()
def test_text_embeddings(tiny_model, mels):
    encoder, ids = tiny_model.conditioning_encoder, torch.tensor([[5, 6, 7]])
    embeds = encoder.text_token_embedding(ids)
    assert torch.equal(encoder(mels[0][None], inputs_embeds=embeds), encoder(mels[0][None], ids))
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one"):
            encoder(mels[0][None], **arguments)


def test_numbers_of_texts_and_audios_must_agree(tiny_model, mels):
    ids = torch.tensor([[5, 6, 7]] * 2)
    with pytest.raises(ValueError, match="got 2 and 3"):
        tiny_model.conditioning_encoder(mels, ids)


def test_the_longest_text(tiny_model, mels):
    """24 text positions: a generation takes 21 tokens, one stop token less takes 22."""
    encoder = tiny_model.conditioning_encoder
    latent = encoder.encode_clip(mels[0])
    assert encoder.build_prefix(latent, torch.ones(21, dtype=torch.long)).shape == (25, 64)
    with pytest.raises(ValueError, match="22 tokens; the model takes at most 21"):
        encoder.build_prefix(latent, torch.ones(22, dtype=torch.long))
    assert encoder(mels[:1], torch.ones(1, 22, dtype=torch.long)).shape == (1, 25, 64)
    with pytest.raises(ValueError, match="23 tokens; the model takes at most 22"):
        encoder(mels[:1], torch.ones(1, 23, dtype=torch.long))


@pytest.mark.parametrize("shape", [(79, 20), (80, 0), (1, 80, 20)])
def test_log_mels_of_a_wrong_shape_are_named(tiny_model, shape):
    with pytest.raises(ValueError, match=r"\[80, frames\]"):
        tiny_model.conditioning_encoder.encode_clip(torch.zeros(shape))


def test_a_row_needs_a_clip(tiny_model):
    with pytest.raises(ValueError, match="one or more clips"):
        tiny_model.conditioning_encoder([[]], torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one clip"):
        tiny_model.conditioning_encoder.average_clips([])


def test_gradients_reach_every_weight(tiny_model, prompt):
    ids, features = prompt
    encoder = tiny_model.conditioning_encoder.train()

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        encoder(features, ids).square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    plain = gradients()
    encoder.gradient_checkpointing_enable()
    for (name, _), once, twice in zip(encoder.named_parameters(), plain, gradients(), strict=True):
        # A constant added to all keys leaves a softmax as it is.
        assert once.abs().max() > 0 or name.endswith("k_proj.bias")
        assert torch.allclose(once, twice, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(16, 8), (64, 16), (128, 32), (1024, 32), (80, 16), (24, 8)]
)
def test_groups_of_the_norm(channels, groups):
    assert groupnorm_groups(channels) == groups


def test_a_width_without_groups_is_named():
    with pytest.raises(ValueError, match="hidden_size 34"):
        groupnorm_groups(34)
