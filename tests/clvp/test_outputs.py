"""Outputs are read as `transformers`' are."""

import pytest
import torch

from clvp.outputs import ClvpEncoderOutput, ClvpOutput


def test_access():
    embeds, pooled = torch.zeros(1), torch.ones(1)
    output = ClvpEncoderOutput(embeds=embeds, pooler_output=pooled)
    assert output.embeds is output["embeds"] is output[0] is embeds
    assert output["pooler_output"] is output[1] is output[-1] is pooled
    assert output[:2] == output.to_tuple() == (embeds, pooled)
    assert list(output) == list(output.keys()) == ["embeds", "pooler_output"]
    assert dict(output.items()) == {"embeds": embeds, "pooler_output": pooled}
    assert list(output.values()) == [embeds, pooled]
    assert len(output) == 2
    assert "embeds" in output
    assert "attentions" not in output
    assert output.get("attentions", 3) == 3
    assert output.attentions is None
    with pytest.raises(KeyError):
        output["attentions"]
    with pytest.raises(IndexError):
        output[2]


def test_fields_keep_their_order_as_values_come_and_go():
    output = ClvpOutput(logits_per_text=torch.zeros(1))
    output.loss = torch.ones(1)
    assert list(output) == ["loss", "logits_per_text"]
    first, second = output.to_tuple()
    assert (first, second) == (output.loss, output.logits_per_text)
