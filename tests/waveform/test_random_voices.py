"""Random voices: the original's arithmetic, and latents that follow from a name."""

import torch

from clvp.waveform.random_voices import RandomLatent, RandomVoices
from clvp.weights import check_keys
from tests.waveform.conftest import relative_error


@torch.no_grad()
def test_golden(golden_states, golden_tensors):
    noise, latent = (golden_tensors["conditioning"][f"random_latent.{name}"] for name in ("noise", "latent"))
    model = RandomLatent(len(noise))
    model.load_state_dict(golden_states["rlg_diffuser"])
    assert relative_error(model(noise), latent) < 2e-6


def test_published_keys(full_size_keys):
    with torch.device("meta"):
        voices = RandomVoices(1024, 1024)
        state = {key: torch.empty(shape) for key, shape in full_size_keys["rlg_diffuser"].items()}
    check_keys(voices.diffusion, state, "the published file")
    assert sum(weight.numel() for weight in voices.decoder.parameters()) == 6_297_600


def test_a_name_is_a_voice():
    torch.manual_seed(0)
    voices = RandomVoices(16, 8)
    seeded = torch.get_rng_state()
    decoder, diffusion = voices.voice("anna")
    again = voices.voice("anna")
    assert torch.equal(torch.get_rng_state(), seeded)
    assert (len(decoder), len(diffusion)) == (16, 16)
    assert torch.equal(decoder, again[0])
    assert torch.equal(diffusion, again[1])
    other = voices.voice("bert")
    assert not torch.equal(decoder, other[0])
    assert not torch.equal(diffusion, other[1])
    voices.diffusion.load_state_dict(voices.decoder.state_dict())
    decoder, diffusion = voices.voice("anna")
    assert not torch.equal(decoder, diffusion)  # each from noise of its own
