"""Tortoise's `diffusion_decoder.pth`, `vocoder.pth` and random voices to the files of a checkpoint folder.

Names of weights stay as they are, and all sizes but the vocoder's dilations are read off shapes.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clvp.checkpoint import CheckpointError
from clvp.config import ClvpConfig
from clvp.waveform.denoiser import DiffusionConfig
from clvp.waveform.files import WaveformModels
from clvp.waveform.vocoder import VocoderConfig
from clvp.weights import check_keys, count_layers, open_pickle, shape_of, shapes_alone

State = Mapping[str, Tensor]
StrPath = str | os.PathLike[str]

# They served in training alone.
UNUSED = ("code_embedding.", "code_converter.", "mel_head.")


def diffusion_config(state: State, origin: str) -> DiffusionConfig:
    """Sizes of a diffusion decoder."""
    hidden_size, num_mels, _ = shape_of(state, "inp_block.weight", origin)
    table = "layers.0.attn.relative_pos_embeddings.relative_attention_bias.weight"
    return DiffusionConfig(
        num_mels=num_mels,
        hidden_size=hidden_size,
        latent_size=shape_of(state, "latent_conditioner.0.weight", origin)[1],
        num_layers=count_layers(state, "layers.{}.attn.qkv.weight"),
        num_heads=shape_of(state, table, origin)[1],
    )


def vocoder_config(state: State, origin: str) -> VocoderConfig:
    """Sizes of a vocoder whose weight norm is folded."""
    hidden_channels, noise_channels, _ = shape_of(state, "conv_pre.weight", origin)
    predictor = "res_stack.0.kernel_predictor.input_conv.0.weight"
    predictor_channels, num_mels, _ = shape_of(state, predictor, origin)
    stretch = "res_stack.{}.convt_pre.1.weight"  # as wide as two strides
    return VocoderConfig(
        num_mels=num_mels,
        noise_channels=noise_channels,
        hidden_channels=hidden_channels,
        predictor_channels=predictor_channels,
        strides=tuple(state[stretch.format(i)].shape[2] // 2 for i in range(count_layers(state, stretch))),
    )


def fold_weight_norm(state: State) -> dict[str, Tensor]:
    """Float32 weights in place of their lengths and directions: g * v / |v|.

    Of both names that torch has for these (Salimans and Kingma, "Weight Normalization", 2016).
    """
    parametrized = "parametrizations.weight.original"
    folded = {
        key.replace(f"{parametrized}0", "weight_g").replace(f"{parametrized}1", "weight_v"): value.float()
        for key, value in state.items()
    }
    for key in [key for key in folded if key.endswith("weight_g") and f"{key[:-1]}v" in folded]:
        g, v = folded.pop(key), folded.pop(f"{key[:-1]}v")
        folded[key.removesuffix("_g")] = v * (g / v.norm(dim=tuple(range(1, v.dim())), keepdim=True))
    return folded


def convert_waveform(
    diffusion_decoder: StrPath,
    vocoder: StrPath,
    checkpoint_folder: StrPath,
    random_voices: tuple[StrPath, StrPath] | None = None,
) -> Path:
    """Write the files for sound into a checkpoint folder, and return it.

    `random_voices` are `rlg_auto.pth` and `rlg_diffuser.pth`. Raises CheckpointError naming the weights that
    are missing, unknown or misshaped, FileNotFoundError where the folder is no checkpoint.
    """
    decoder = ClvpConfig.from_pretrained(checkpoint_folder).decoder_config
    origins = [str(diffusion_decoder), str(vocoder)]
    states = [
        {k: v for k, v in open_pickle(Path(diffusion_decoder)).items() if not k.startswith(UNUSED)},
        fold_weight_norm(open_pickle(Path(vocoder), "model_g")),
    ]
    diffusion = diffusion_config(states[0], origins[0])
    if diffusion.latent_size != decoder.hidden_size:
        raise CheckpointError(
            f"{diffusion_decoder} takes latents of width {diffusion.latent_size}, and the speech decoder of "
            f"{checkpoint_folder} makes them {decoder.hidden_size} wide"
        )
    if random_voices is not None:
        parts = {"decoder": random_voices[0], "diffusion": random_voices[1]}
        origins.append(" and ".join(map(str, random_voices)))
        states.append(
            {f"{part}.{k}": v for part, path in parts.items() for k, v in open_pickle(Path(path)).items()}
        )
    with shapes_alone():
        config = vocoder_config(states[1], origins[1])
        models = WaveformModels.empty(diffusion, config, random_voices is not None)
    for model, state, origin in zip(models.by_file.values(), states, origins, strict=True):
        check_keys(model, state, origin)
        model.load_state_dict({k: v.float().contiguous() for k, v in state.items()}, assign=True)
    models.save(Path(checkpoint_folder))
    return Path(checkpoint_folder)
