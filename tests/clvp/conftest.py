"""Golden data of the references, and small models with seeded random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clvp import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig, ClvpModelForConditionalGeneration
from clvp.tortoise import convert_tortoise

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Golden:
    """A small checkpoint with the inputs and outputs that a reference made from it."""

    model: ClvpModelForConditionalGeneration
    tensors: dict[str, Tensor]
    folder: Path


@pytest.fixture(scope="session")
def golden_hf() -> Golden:
    """Made with transformers 4.46.3, the last release that generates correctly."""
    folder = DATA / "golden_hf"
    model = ClvpModelForConditionalGeneration.from_pretrained(folder)
    return Golden(model, load_file(folder / "golden.safetensors"), folder)


@pytest.fixture(scope="session")
def golden_tortoise(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Made with the original Tortoise modules; the model is the converted pair of files."""
    source = DATA / "golden_tortoise"
    folder = tmp_path_factory.mktemp("converted")
    convert_tortoise(source / "autoregressive.pth", source / "clvp2.pth", folder)
    model = ClvpModelForConditionalGeneration.from_pretrained(folder)
    return Golden(model, load_file(source / "golden.safetensors"), folder)


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Tensor, Tensor], None]:
    """Equal shapes, and no element further off than 1e-4 of the largest expected one."""

    def check(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
        assert actual.shape == expected.shape
        error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error <= tolerance, f"relative error {error:.2e}"

    return check


@pytest.fixture
def tiny_config() -> ClvpConfig:
    """Two narrow layers everywhere, dropout off."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "projection_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return ClvpConfig(
        ClvpEncoderConfig.from_dict(sizes, vocab_size=64, bos_token_id=63),
        ClvpEncoderConfig.from_dict(sizes, vocab_size=100),
        ClvpDecoderConfig(
            vocab_size=102,
            max_position_embeddings=64,
            max_text_tokens=24,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_mel_attn_blocks=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attention_dropout=0.0,
            bos_token_id=100,
            eos_token_id=101,
            decoder_fixing_codes=(83, 45, 45, 48),
        ),
        scoring_length=40,
    )


@pytest.fixture
def tiny_model(tiny_config: ClvpConfig) -> ClvpModelForConditionalGeneration:
    """In evaluation mode, with weights large enough that outputs differ clearly between inputs."""
    torch.manual_seed(0)
    model = ClvpModelForConditionalGeneration(tiny_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def prompt() -> tuple[Tensor, Tensor]:
    """Token ids [2, 7] and log-mels [2, 80, 30] for the tiny model, without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (2, 7), generator=generator)
    return ids, torch.randn(2, 80, 30, generator=generator)
