"""Token-exact generation: the sequences that transformers 4.46.3 generated."""

import pytest
import torch

CASES = ["0", "1", "2"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("greedy_training_positions", {}),
        ("greedy_skip_position_1", {"mel_positions": "skip_one"}),
        (
            "greedy_skip_position_1_repetition_penalty_2",
            {"mel_positions": "skip_one", "repetition_penalty": 2.0},
        ),
    ],
)
def test_decoder_generates_the_references_tokens(golden_hf, case, key, settings):
    decoder = golden_hf.model.speech_decoder_model
    prefix = golden_hf.tensors[f"{case}.conditioning"]
    generated = decoder.generate(
        conditioning_embeds=prefix, generation_config=golden_hf.model.generation_config, **settings
    )
    assert torch.equal(generated.sequences, golden_hf.tensors[f"{case}.{key}"])
    assert generated.finished.tolist() == [False]


@pytest.mark.parametrize("case", CASES)
def test_composite_generate(golden_hf, assert_close, case):
    """The reference scored its 40 codes unpadded: what `pad_to_max_mel_tokens=41` asks for."""
    tensors = golden_hf.tensors
    output = golden_hf.model.generate(
        tensors[f"{case}.input_ids"],
        tensors[f"{case}.input_features"],
        pad_to_max_mel_tokens=41,
        mel_positions="skip_one",
    )
    assert torch.equal(output.speech_ids, tensors[f"{case}.generate_speech_ids"])
    for name in ("logits_per_text", "text_embeds", "speech_embeds"):
        assert_close(output[name], tensors[f"{case}.generate_{name}"])


def test_a_batch_generates_what_its_rows_do(golden_hf):
    """Three texts of 9, 4 and 23 tokens and three voices at once: no row notices the others."""
    tensors = golden_hf.tensors
    rows = [tensors[f"{case}.input_ids"][0] for case in CASES]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    clips = [tensors[f"{case}.input_features"][0] for case in CASES]
    output = golden_hf.model.generate(
        ids, clips, mask.long(), pad_to_max_mel_tokens=41, mel_positions="skip_one"
    )
    expected = torch.cat([tensors[f"{case}.generate_speech_ids"] for case in CASES])
    assert torch.equal(output.speech_ids, expected)
