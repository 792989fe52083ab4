"""Voices that belong to nobody: latents made of normal numbers, as Tortoise does without reference clips.

W width of a latent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.sampling.noise import candidate_keys
from clvp.waveform.noise import normal

SLOPE, LEARNING_RATE, GAIN = 0.2, 0.1, 2**0.5


class RandomLatent(nn.Module):
    """Normal numbers to a latent: the mapping of StyleGAN2 (Karras et al., 2020), then a linear layer.

    Names of weights are those of `rlg_auto.pth` and `rlg_diffuser.pth`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(6))
        for layer in self.layers[:-1]:
            nn.init.normal_(layer.get_parameter("weight"), std=1 / LEARNING_RATE)

    def forward(self, noise_W: Tensor) -> Tensor:
        """[W]. The first layers' weights lie as they were trained, and are scaled in use.

        In float64, so that its rounding to float32 is the same on unlike processors.
        """
        *mapping, last = self.layers.children()
        scale, x_W = LEARNING_RATE / len(noise_W) ** 0.5, noise_W.double()
        for layer in mapping:
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            x_W = functional.linear(x_W, weight.double() * scale, bias.double() * LEARNING_RATE)
            x_W = functional.leaky_relu(x_W, SLOPE) * GAIN
        weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
        return functional.linear(x_W, weight.double(), bias.double()).float()


class RandomVoices(nn.Module):
    """Both latents of a voice: of the speech decoder [W] and of the diffusion decoder [twice its width]."""

    def __init__(self, decoder_width: int, diffusion_width: int) -> None:
        super().__init__()
        self.decoder = RandomLatent(decoder_width)
        self.diffusion = RandomLatent(2 * diffusion_width)

    @torch.no_grad()
    def voice(self, name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The latents of the voice of this name and seed, the same ones each time."""
        device = self.decoder.layers[0].get_parameter("weight").device
        key_decoder, key_diffusion = candidate_keys(seed, name, range(2), b"voice").to(device).split(1)

        def latent(model: RandomLatent, key_1: Tensor) -> Tensor:
            return model(normal(key_1, "mel", step=0, frames=1, channels=model.width).flatten())

        return latent(self.decoder, key_decoder), latent(self.diffusion, key_diffusion)
