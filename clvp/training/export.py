"""Parts of a family that were trained one by one, as one checkpoint folder for the ordinary loader."""

from pathlib import Path
from typing import TypeVar

import torch
import yaml
from torch import nn

from clvp.assets import write_processor_files
from clvp.audio.mel import SAMPLING_RATE
from clvp.checkpoint import RUN_FILE
from clvp.codec import SpeechCodec
from clvp.codec.griffin_lim import HOP
from clvp.generation_config import ClvpGenerationConfig
from clvp.model import ClvpModelForConditionalGeneration
from clvp.training.codec import CodecNetwork
from clvp.training.decoder import LONGEST_REFERENCE, DecoderNetwork
from clvp.training.loop import checkpoint
from clvp.training.pair import PairNetwork
from clvp.training.parts import Sizes

# Few codes repeat often, so that their repetition is no fault.
SAMPLING = {"temperature": 0.3, "top_p": 0.85, "top_k": 0, "repetition_penalty": 1.0}

N = TypeVar("N", bound=nn.Module)


def trained(network: N, run: Path) -> N:
    """A network with the weights of a run's last checkpoint, in evaluation mode."""
    network.load_state_dict(checkpoint(run)["network"])
    return network.eval()


def export(folder: Path, sizes: Sizes, runs: Path) -> Path:
    """Write a checkpoint folder of the last weights of the runs `sound`, `decoder` and `pair`, in float16."""
    config = sizes.family
    model = ClvpModelForConditionalGeneration(config)
    decoder = trained(DecoderNetwork(config, sizes.codec.levels), runs / "decoder")
    decoder.merge()
    state = {**decoder.state_dict(), **trained(PairNetwork(config), runs / "pair").state_dict()}
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    defaults = ClvpGenerationConfig.for_decoder(config.decoder_config, config.scoring_length)
    model.generation_config = defaults.replace(**SAMPLING)
    model.half().save_pretrained(folder)
    write_processor_files(folder)
    results = {
        "sampling": {**SAMPLING, "max_new_tokens": config.scoring_length, "penalized_tokens": []},
        "scoring": {"scoring_length": config.scoring_length},
        "audio_seconds": round(LONGEST_REFERENCE * HOP / SAMPLING_RATE, 2),
    }
    (folder / RUN_FILE).write_text(yaml.safe_dump({"results": results}, sort_keys=False))
    speech = SpeechCodec(sizes.codec)
    sound = trained(CodecNetwork(sizes.codec, sound=True), runs / "sound")
    speech.decoder.load_state_dict(sound.decoder.state_dict())
    speech.save_pretrained(folder, torch.float16)
    return folder
