"""Training on a GPU. Skipped without one, but for `python -m tests.gpu --rehearse`: there a CPU plays it."""

import pytest
import torch

from clvp import ClvpConditioningEncoder, ClvpConfig
from tests.sampling.rehearsal import DEVICE, REHEARSED

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda" and not REHEARSED, reason="needs a GPU")


def gradients(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[weights] of the demo model's conditioning encoder, for 32 clips of 64 frames."""
    torch.manual_seed(0)
    config = ClvpConfig.from_pretrained("demo")
    encoder = ClvpConditioningEncoder(config).to(device).train()
    mel_BMT = torch.randn(32, config.decoder_config.feature_size, 64).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        latent_BD = encoder._latents(mel_BMT)
    latent_BD.float().square().mean().backward()
    weights = [weight for weight in encoder.parameters() if weight.grad is not None]
    return torch.cat([weight.grad.flatten().cpu() for weight in weights if weight.grad is not None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_training_are_right(dtype: torch.dtype) -> None:
    """cuDNN 9 gave some that were no numbers for clips of 64 frames in bfloat16 (H100)."""
    loop = pytest.importorskip("clvp.training.loop", reason="needs pyarrow", exc_type=ImportError)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        with loop.processes():
            found = gradients(DEVICE, dtype)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    exact = gradients(torch.device("cpu"), torch.float32)
    error = (found - exact).norm() / exact.norm()
    assert error < {torch.bfloat16: 0.05, torch.float32: 1e-3}[dtype]
