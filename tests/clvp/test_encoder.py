"""The text and speech encoder beyond its parity: shapes, pooling, positions, precision, training."""

import dataclasses

import pytest
import torch

from clvp import ClvpEncoder, ClvpEncoderConfig
from clvp.encoder import summarize

CONFIG = ClvpEncoderConfig(
    vocab_size=50,
    hidden_size=128,
    intermediate_size=32,
    projection_dim=16,
    num_hidden_layers=2,
    num_attention_heads=4,
)


@pytest.fixture
def encoder() -> ClvpEncoder:
    torch.manual_seed(0)
    return ClvpEncoder(CONFIG).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def test_shapes(encoder, ids):
    output = encoder(ids, output_hidden_states=True, output_attentions=True)
    assert output.last_hidden_state.shape == (2, 7, 128)
    assert output.pooler_output.shape == (2, 128)
    assert output.embeds.shape == (2, 16)
    assert [states.shape for states in output.hidden_states] == [(2, 7, 128)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 4, 7, 7)] * 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert len(encoder(ids, return_dict=False)) == 3


def test_attention_weights_are_those_that_were_used(encoder, ids, assert_close):
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    plain = encoder(ids, attention_mask=mask)
    shown = encoder(ids, attention_mask=mask, output_attentions=True)
    assert_close(shown.embeds, plain.embeds, 1e-5)
    assert_close(shown.attentions[0].sum(dim=-1), torch.ones(2, 4, 7), 1e-5)
    assert shown.attentions[0][1, :, :, 4:].abs().max() == 0


def test_inputs_are_ids_or_embeddings(encoder, ids):
    embedded = encoder(inputs_embeds=encoder.get_input_embeddings()(ids))
    assert torch.equal(embedded.embeds, encoder(ids).embeds)
    with pytest.raises(ValueError, match="exactly one"):
        encoder()
    with pytest.raises(ValueError, match="exactly one"):
        encoder(ids, inputs_embeds=embedded.last_hidden_state)


def test_positions_matter_to_the_values_too(encoder, ids):
    """Rotary positions are relative in queries and keys, but values are turned as well."""
    moved = encoder(ids, position_ids=torch.arange(7)[None] + 5)
    assert (moved.embeds - encoder(ids).embeds).abs().max() > 1e-5
    counted = encoder(ids, position_ids=torch.arange(7)[None])
    assert torch.equal(counted.embeds, encoder(ids).embeds)


def test_masks_that_do_not_fit_are_named(encoder, ids):
    with pytest.raises(ValueError, match=r"\[2, 7\], not \[2, 6\]"):
        encoder(ids, attention_mask=torch.ones(2, 6))
    mask = torch.ones(2, 7)
    mask[1] = 0
    with pytest.raises(ValueError, match="row 1 has no token"):
        encoder(ids, attention_mask=mask)


@pytest.mark.parametrize(
    ("summary_type", "columns"),
    [("mean", [1, 2]), ("first", [1]), ("last", [2]), ("cls_index", [2])],
)
def test_summaries_see_tokens_only(summary_type, columns):
    states = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[False, True, True, False]])
    assert torch.equal(summarize(states, mask, summary_type)[0], states[0, columns].mean(dim=0))


def test_unknown_choices_are_named(ids):
    with pytest.raises(ValueError, match="attn"):
        ClvpEncoder(dataclasses.replace(CONFIG, summary_type="attn"))(ids)
    with pytest.raises(ValueError, match="swish9"):
        ClvpEncoder(dataclasses.replace(CONFIG, hidden_act="swish9"))
    with pytest.raises(ValueError, match="rotary"):
        dataclasses.replace(CONFIG, num_attention_heads=8)
    with pytest.raises(TypeError, match="ClvpEncoderConfig"):
        ClvpEncoder({"vocab_size": 3})


def test_without_rotary_positions_order_does_not_matter(ids, assert_close):
    encoder = ClvpEncoder(dataclasses.replace(CONFIG, use_rotary_embedding=False)).eval()
    assert "rotary_pos_emb.inv_freq" not in encoder.state_dict()
    assert_close(encoder(ids.flip(1)).embeds, encoder(ids).embeds, 1e-5)


def test_eps_of_the_root_mean_square_is_its_own(encoder, ids):
    """It changes embeddings at the published weights' scale, and is apart from the layer norm's."""
    exact = ClvpEncoder(dataclasses.replace(CONFIG, rms_norm_eps=1e-16)).eval()
    exact.load_state_dict(encoder.state_dict())
    difference = (exact(ids).embeds - encoder(ids).embeds).norm() / encoder(ids).embeds.norm()
    assert 1e-4 < difference < 0.2


def test_gradients_reach_every_weight_with_and_without_checkpointing(ids):
    torch.manual_seed(0)
    encoder = ClvpEncoder(CONFIG).train()

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        torch.manual_seed(1)  # of the dropout
        encoder(ids).embeds.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    plain = gradients()
    encoder.gradient_checkpointing_enable()
    assert encoder.gradient_checkpointing
    recomputed = gradients()
    encoder.gradient_checkpointing_disable()
    assert not encoder.gradient_checkpointing
    for once, twice in zip(plain, recomputed, strict=True):
        assert once.abs().max() > 0
        assert torch.allclose(once, twice, rtol=1e-5, atol=1e-7)
