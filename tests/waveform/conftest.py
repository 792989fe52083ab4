"""Golden data of the original modules after CLVP: tiny models in the original files, inputs and outputs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clvp.waveform.denoiser import DiffusionConfig, DiffusionDecoder

GOLDEN = Path(os.environ.get("CLVP_GOLDEN_DECODE", Path(__file__).parents[1] / "data" / "golden_decode"))


@pytest.fixture(scope="session")
def golden_decode() -> Path:
    """The folder."""
    return GOLDEN


@pytest.fixture(scope="session")
def about() -> dict[str, Any]:
    """Heads, tokens, steps, dilations of the golden models."""
    return json.loads((GOLDEN / "about.json").read_text())


@pytest.fixture(scope="session")
def golden_tensors() -> dict[str, dict[str, Tensor]]:
    """By the names of files, then of tensors."""
    return {path.stem: load_file(path) for path in GOLDEN.glob("*.safetensors")}


@pytest.fixture(scope="session")
def golden_states() -> dict[str, dict[str, Any]]:
    """The original files' state dicts by the names of files."""
    return {path.stem: torch.load(path, weights_only=True) for path in GOLDEN.glob("*.pth")}


@pytest.fixture(scope="session")
def full_size_keys() -> dict[str, dict[str, list[int]]]:
    """Shapes of the published files' weights."""
    return json.loads((GOLDEN / "full_size_keys.json").read_text())


@pytest.fixture(scope="session")
def golden_denoiser(golden_states: dict[str, dict[str, Any]], about: dict[str, Any]) -> DiffusionDecoder:
    """Not to be changed."""
    unused = ("code_embedding.", "code_converter.", "mel_head.")
    state = {key: w for key, w in golden_states["diffusion_decoder"].items() if not key.startswith(unused)}
    width, latent_size, _ = state["latent_conditioner.0.weight"].shape
    layers = sum(key.startswith("layers.") and key.endswith(".attn.norm.weight") for key in state)
    config = DiffusionConfig(
        hidden_size=width, latent_size=latent_size, num_layers=layers, num_heads=about["heads"]
    )
    model = DiffusionDecoder(config)
    model.load_state_dict(state)
    return model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest expected value."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
