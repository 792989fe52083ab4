"""Small random decoders and prompts for the tests of the sampling engine."""

import random
from collections.abc import Sequence

import torch

from clvp.config import ClvpDecoderConfig
from clvp.generation import ClvpForCausalLM
from clvp.sampling import Candidate, PromptRow

WIDTH = 64
START, STOP, VOCABULARY = 200, 201, 202
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def small_decoder(
    *, heads: int = 2, layers: int = 3, stop_bias: float = 1.5, seed: int = 0
) -> ClvpForCausalLM:
    """A decoder whose tokens depend strongly on what went before, and whose lengths vary."""
    torch.manual_seed(seed)
    config = ClvpDecoderConfig(
        vocab_size=VOCABULARY,
        bos_token_id=START,
        eos_token_id=STOP,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=160,
        max_text_tokens=80,
    )
    model = ClvpForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        assert model.lm_head.bias is not None
        model.lm_head.bias[STOP] += stop_bias
    return model


def prompt(number: int, candidates: Sequence[int] | None = None) -> PromptRow:
    """The prompt of a number, always the same: 3 to 70 positions, 1, 4, 11 or 20 candidates."""
    generator = torch.Generator().manual_seed(number)
    length = random.Random(number).randint(3, 70)
    wanted = candidates if candidates is not None else range([1, 4, 11, 20][number % 4])
    return PromptRow(f"row{number}", torch.randn(length, WIDTH, generator=generator), wanted)


Tokens = list[tuple[int, tuple[int, ...], bool]]


def plain(candidates: Sequence[Candidate]) -> Tokens:
    """(candidate, tokens, finished) of each, comparable."""
    return [(c.candidate, tuple(c.tokens.tolist()), c.finished) for c in candidates]
