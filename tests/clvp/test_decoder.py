"""The decoder beyond its parity: cache, masks, losses, training, sequences of its generation."""

import pytest
import torch

from clvp import ClvpDecoder, ClvpDecoderConfig, ClvpForCausalLM, ClvpModel
from clvp.sampling.lanes import positions_of

CONFIG = ClvpDecoderConfig(
    vocab_size=300,
    max_position_embeddings=16,
    max_text_tokens=16,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    n_inner=37,
    num_mel_attn_blocks=2,
    bos_token_id=298,
    eos_token_id=299,
)


@pytest.fixture
def decoder() -> ClvpForCausalLM:
    torch.manual_seed(0)
    return ClvpForCausalLM(CONFIG).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 298, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_shapes(decoder, ids, assert_close):
    output = decoder(ids[:, :3], output_hidden_states=True, output_attentions=True)
    assert output.logits.shape == (2, 3, 300)
    assert [states.shape for states in output.hidden_states] == [(2, 3, 128)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 2, 3, 3)] * 2
    assert [keys.shape for keys, _ in output.past_key_values] == [(2, 2, 3, 64)] * 2
    bare = decoder(ids[:, :3], use_cache=False, return_dict=False)
    assert_close(bare[0], output.logits, 1e-5)
    assert len(bare) == 1


@torch.no_grad()
def test_steps_with_a_cache_compute_what_one_pass_does(decoder, ids, assert_close):
    whole = decoder(ids).logits
    cache, pieces = None, []
    for piece in ids.split([4, 1, 3, 1], dim=1):  # several tokens at once, with and without a past
        output = decoder(piece, past_key_values=cache, use_cache=True)
        cache, pieces = output.past_key_values, [*pieces, output.logits]
    assert_close(torch.cat(pieces, dim=1), whole, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_token(decoder, ids, assert_close, side):
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    padded, shift = ids.clone(), 0
    if side == "left":
        shift = 4
        mask[1], padded[1] = mask[1].roll(4), ids[1].roll(4)
    output = decoder(padded, attention_mask=mask)
    alone = decoder(ids[1:, :5])
    assert_close(output.logits[1:, shift : shift + 5], alone.logits, 1e-5)
    # And so with a cache over the padding.
    first = decoder(padded[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
    last = decoder(padded[:, -1:], attention_mask=mask, past_key_values=first.past_key_values)
    assert_close(last.logits[:, 0], output.logits[:, -1], 1e-5)


@torch.no_grad()
def test_inputs_that_do_not_fit_are_named(decoder, ids):
    with pytest.raises(ValueError, match="exactly one"):
        decoder()
    with pytest.raises(ValueError, match="18 positions are more than the 16"):
        decoder(torch.cat((ids, ids), dim=1))
    with pytest.raises(ValueError, match=r"\[2, 9\], not \[2, 8\]"):
        decoder(ids, attention_mask=torch.ones(2, 8))


@torch.no_grad()
def test_the_bare_decoder_and_the_model_around_it(decoder, ids):
    states = decoder.model(ids).last_hidden_state
    assert torch.equal(states, decoder.model.decoder(ids).last_hidden_state)
    assert torch.equal(decoder.lm_head(decoder.final_norm(states)), decoder(ids).logits)
    embedded = decoder(inputs_embeds=decoder.get_input_embeddings()(ids))
    assert torch.equal(embedded.logits, decoder(ids).logits)


@torch.no_grad()
def test_parts_load_from_each_others_files(decoder, ids, tmp_path):
    decoder.save_pretrained(tmp_path / "head")
    decoder.model.save_pretrained(tmp_path / "model")
    expected = decoder.model(ids).last_hidden_state
    for part, folder in ((ClvpModel, "head"), (ClvpDecoder, "head"), (ClvpDecoder, "model")):
        loaded = part.from_pretrained(tmp_path / folder)
        assert torch.equal(loaded(ids).last_hidden_state, expected)


@torch.no_grad()
def test_loss_ignores_masked_labels(decoder, ids):
    labels = ids.clone()
    labels[:, 5:] = -100
    assert torch.allclose(decoder(ids, labels=labels).loss, decoder(ids[:, :5], labels=ids[:, :5]).loss)
    logits = decoder(ids[:, :2]).logits[:, 0]
    assert torch.allclose(
        decoder(ids[:, :2], labels=ids[:, :2]).loss, -logits.log_softmax(-1).gather(1, ids[:, 1:2]).mean()
    )


def test_gradients_with_and_without_checkpointing(ids):
    torch.manual_seed(0)
    decoder = ClvpForCausalLM(CONFIG).train()

    def gradients() -> list[torch.Tensor]:
        decoder.zero_grad()
        torch.manual_seed(1)  # of the dropout
        decoder(ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in decoder.parameters()]

    plain = gradients()
    decoder.gradient_checkpointing_enable()
    assert decoder(ids).past_key_values is None  # a cache cannot be computed twice
    for once, twice in zip(plain, gradients(), strict=True):
        assert once.abs().max() > 0
        assert torch.allclose(once, twice, rtol=1e-5, atol=1e-7)


def test_mel_positions(decoder, ids):
    assert positions_of(torch.arange(4), "trained").tolist() == [0, 1, 2, 3]
    assert positions_of(torch.arange(4), "skip_one").tolist() == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="odd"):
        decoder.mel_embeddings(ids, "odd")


@torch.no_grad()
def test_latents_of_padded_prefixes(decoder, ids, assert_close):
    prefix = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6)
    mask[1, 4:] = 0
    together = decoder.speech_latents(prefix, ids, mask)
    alone = decoder.speech_latents(prefix[1:, :4], ids[1:])
    assert_close(together[1:], alone, 1e-5)
    assert decoder.speech_latents(prefix, ids[:, :0]).shape == (2, 0, 128)


def test_generated_sequences_start_stop_and_pad(tiny_model):
    """Rows end in their stop token, and the shorter ones are padded."""
    decoder = tiny_model.speech_decoder_model
    with torch.no_grad():
        decoder.lm_head.bias[101] = 4.0
    prefixes = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "num_return_sequences": 4, "seed": 1}
    output = decoder.generate(prefixes, return_dict_in_generate=True, pad_token_id=7, **settings)
    lengths = []
    for row, finished in zip(output.sequences.tolist(), output.finished.tolist(), strict=True):
        assert row[0] == 100
        assert (101 in row) == finished
        length = row.index(101) + 1 if finished else 13
        assert set(row[length:]) <= {7}
        assert 100 not in row[1:]
        lengths.append(length)
    assert output.sequences.shape == (12, max(lengths))
    assert len(set(lengths)) > 2
    tensor = decoder.generate(prefixes, **settings)
    padded_with_stop = output.sequences.clone()
    for row, length in zip(padded_with_stop, lengths, strict=True):
        row[length:] = 101
    assert torch.equal(tensor, padded_with_stop)
    listed = decoder.generate(list(prefixes), **settings)
    assert torch.equal(listed, tensor)


def test_equal_prefixes_sample_different_tokens(tiny_model):
    decoder = tiny_model.speech_decoder_model
    prefix = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "seed": 1}
    twice = decoder.generate(prefix.expand(2, -1, -1), **settings)
    assert not torch.equal(twice[0], twice[1])
    named = decoder.generate(prefix.expand(2, -1, -1), row_ids=["a", "a"], **settings)
    assert torch.equal(named[0], named[1])
    with pytest.raises(ValueError, match="3 row_ids do not name 2 rows"):
        decoder.generate(prefix.expand(2, -1, -1), row_ids=["a", "b", "c"], **settings)


def test_padded_prefixes_generate_what_they_do_alone(tiny_model):
    decoder = tiny_model.speech_decoder_model
    prefixes = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    settings = {"do_sample": False, "max_new_tokens": 12}
    together = decoder.generate(prefixes, attention_mask=mask, **settings)
    assert torch.equal(together[1:], decoder.generate(prefixes[1:, 2:], **settings))
