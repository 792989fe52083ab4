"""Golden data of the original modules after CLVP: tiny models in the original files, inputs and outputs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clvp.tortoise import convert_tortoise
from clvp.waveform.convert import UNUSED, convert_waveform, diffusion_config
from clvp.waveform.denoiser import DiffusionDecoder

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
def golden_denoiser(golden_states: dict[str, dict[str, Any]]) -> DiffusionDecoder:
    """Not to be changed."""
    state = {k: w for k, w in golden_states["diffusion_decoder"].items() if not k.startswith(UNUSED)}
    model = DiffusionDecoder(diffusion_config(state, "diffusion_decoder.pth"))
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="session")
def golden_checkpoint(golden_decode: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden files, converted to a folder."""
    folder = tmp_path_factory.mktemp("converted")
    convert_tortoise(golden_decode / "autoregressive.pth", golden_decode / "clvp2.pth", folder)
    return convert_waveform(golden_decode / "diffusion_decoder.pth", golden_decode / "vocoder.pth", folder)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest expected value."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
