"""Small and full-size checkpoints with seeded random weights: real layout, real tokenizer, noise for speech.

    python -m clvp.random_checkpoint FOLDER --size full --audio --seed 0

The head is scaled so that tokens differ in probability, and the stop token is likely enough that candidates
end at different lengths, as those of a trained model do.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from clvp.assets import write_processor_files
from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.model import ClvpModelForConditionalGeneration
from clvp.waveform.denoiser import DiffusionConfig
from clvp.waveform.files import WaveformModels
from clvp.waveform.vocoder import VocoderConfig

Size = Literal["tiny", "full"]

# Among 8194 tokens with logits of unit variance, the 50 most probable lie above 2.5.
_STOP_BIAS = 2.7


def tiny_config() -> ClvpConfig:
    """The real vocabularies and positions, with few and narrow layers: 1.8 million weights."""
    text = ClvpEncoderConfig(
        hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2, num_attention_heads=2
    )
    decoder = ClvpDecoderConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_mel_attn_blocks=2
    )
    return ClvpConfig(text, replace(text, vocab_size=8192), decoder, projection_dim=64)


def random_model(config: ClvpConfig, seed: int = 0) -> ClvpModelForConditionalGeneration:
    """A model in evaluation mode whose weights depend on the configuration and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClvpModelForConditionalGeneration(config).eval()
        head = model.speech_decoder_model.lm_head
        nn.init.normal_(head.weight, std=config.decoder_config.hidden_size**-0.5)
        with torch.no_grad():
            head.bias[config.decoder_config.eos_token_id] = _STOP_BIAS
    return model


def random_waveform_models(size: Size, seed: int = 0) -> WaveformModels:
    """Models that make noise of the latents of `random_model`, in the published sizes or in tiny ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if size == "full":
            return WaveformModels.empty(DiffusionConfig(), VocoderConfig())
        diffusion = DiffusionConfig(hidden_size=64, latent_size=64, num_layers=2, num_heads=2)
        return WaveformModels.empty(diffusion, VocoderConfig(hidden_channels=4, predictor_channels=8))


def write_random_checkpoint(
    folder: str | os.PathLike[str], size: Size = "tiny", seed: int = 0, audio: bool = False
) -> Path:
    """Write weights, configurations, tokenizer and preprocessor files into a folder, and return it.

    "full" has the 665,110,531 weights of the published model (2.7 GB), with `audio` also those that make
    sound (1.3 GB). Raises ValueError for another size.
    """
    if size not in ("tiny", "full"):
        raise ValueError(f'size must be "tiny" or "full", not {size!r}')
    model = random_model(tiny_config() if size == "tiny" else ClvpConfig(), seed)
    model.save_pretrained(folder)
    write_processor_files(Path(folder))
    if audio:
        random_waveform_models(size, seed).save(Path(folder))
    return Path(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights in the real layout.")
    parser.add_argument("folder", help="where to write it")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="full: 665 million weights")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--audio", action="store_true", help="with what makes sound of the tokens")
    arguments = parser.parse_args(argv)
    folder = write_random_checkpoint(arguments.folder, arguments.size, arguments.seed, arguments.audio)
    print(f"wrote {folder}: the weights are random, what they say is noise")


if __name__ == "__main__":
    main()
