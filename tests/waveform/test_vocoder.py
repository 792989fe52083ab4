"""UnivNet against the original and against the one of `transformers`."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import UnivNetConfig, UnivNetModel

from clvp.checkpoint import CheckpointError
from clvp.waveform.convert import fold_weight_norm, vocoder_config
from clvp.waveform.vocoder import UnivNet, VocoderConfig
from clvp.weights import check_keys
from tests.waveform.conftest import relative_error


@pytest.fixture(scope="module")
def vocoder(golden_states, about):
    state = fold_weight_norm(golden_states["vocoder"]["model_g"])
    config = vocoder_config(state, "vocoder.pth")
    assert config.strides == tuple(about["strides"])
    model = UnivNet(replace(config, dilations=tuple(about["dilations"])))
    check_keys(model, state, "vocoder.pth")
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def cases(golden_tensors):
    """Names of the golden mels: their lengths."""
    return sorted({key.split(".")[0] for key in golden_tensors["vocoder"]})


@torch.no_grad()
def test_golden(vocoder, golden_tensors, cases):
    assert len(cases) > 1
    for case in cases:
        mel, z, forward, waveform = (
            golden_tensors["vocoder"][f"{case}.{name}"] for name in ("mel", "z", "forward", "waveform")
        )
        assert relative_error(vocoder(mel, z[:, : mel.shape[1]]), forward) < 2e-6
        assert relative_error(vocoder.synthesize(mel, z), waveform) < 2e-6


def transformers_twin(vocoder: UnivNet) -> UnivNetModel:
    config = vocoder.config
    twin = UnivNetModel(
        UnivNetConfig(
            model_in_channels=config.noise_channels,
            model_hidden_channels=config.hidden_channels,
            num_mel_bins=config.num_mels,
            kernel_predictor_hidden_channels=config.predictor_channels,
            resblock_kernel_sizes=[3] * len(config.strides),
            resblock_stride_sizes=list(config.strides),
            resblock_dilation_sizes=[list(config.dilations)] * len(config.strides),
        )
    )
    renames = {
        r"^res_stack": "resblocks",
        r"input_conv\.0": "input_conv",
        r"residual_convs\.(\d+)\.1": r"resblocks.\1.conv1",
        r"residual_convs\.(\d+)\.3": r"resblocks.\1.conv2",
        r"convt_pre\.1": "convt_pre",
        r"conv_blocks\.(\d+)\.1": r"resblocks.\1.conv",
        r"conv_post\.1": "conv_post",
    }
    state = {}
    for key, value in vocoder.state_dict().items():
        for pattern, name in renames.items():
            key = re.sub(pattern, name, key)
        state[key] = value
    twin.load_state_dict(state)
    return twin.eval()


@pytest.mark.parametrize("strides", [(8, 8, 4), (4, 64)])
@torch.no_grad()
def test_transformers_agrees(strides):
    torch.manual_seed(0)
    vocoder = UnivNet(VocoderConfig(num_mels=20, hidden_channels=8, strides=strides)).eval()
    mel, noise = torch.randn(20, 31), torch.randn(64, 31)
    expected = transformers_twin(vocoder)(mel.T[None], noise_sequence=noise.T[None]).waveforms[0]
    assert expected.std() > 1e-3
    assert relative_error(vocoder(mel, noise), expected) < 2e-6


def test_published_keys(full_size_keys):
    with torch.device("meta"):
        model = UnivNet(VocoderConfig())
        state = {key: torch.empty(shape) for key, shape in full_size_keys["vocoder.model_g"].items()}
        folded = {key: torch.empty(s) for key, s in full_size_keys["vocoder_without_weight_norm"].items()}
    check_keys(model, fold_weight_norm(state), "the published file")
    check_keys(model, folded, "the published file without weight norm")
    assert vocoder_config(folded, "") == VocoderConfig()
    assert sum(weight.numel() for weight in model.parameters()) == 14_789_153


def test_both_names_of_weight_norm_give_torchs_weights():
    torch.manual_seed(0)
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(4, 3, 8))
    conv.parametrizations.weight.original0.data.mul_(1.7)
    new = conv.state_dict()
    old = {key.replace("parametrizations.weight.original0", "weight_g"): value for key, value in new.items()}
    old = {key.replace("parametrizations.weight.original1", "weight_v"): value for key, value in old.items()}
    for state in (old, new):
        folded = fold_weight_norm(state)
        assert folded.keys() == {"weight", "bias"}
        torch.testing.assert_close(folded["weight"], conv.weight)


def test_a_length_without_its_direction_is_named(golden_states):
    state = dict(golden_states["vocoder"]["model_g"])
    del state["conv_post.1.weight_v"]
    folded = fold_weight_norm(state)
    with torch.device("meta"):
        model = UnivNet(vocoder_config(folded, "vocoder.pth"))
    with pytest.raises(CheckpointError, match=r"missing: conv_post\.1\.weight; unexpected: conv_post.*_g"):
        check_keys(model, folded, "vocoder.pth")
