"""The original files to a checkpoint folder that makes sound, and back into models; errors on the way."""

import shutil

import pytest
import torch

from clvp import ClvpModelForConditionalGeneration
from clvp.checkpoint import CheckpointError
from clvp.random_checkpoint import random_waveform_models, write_random_checkpoint
from clvp.tortoise import convert_tortoise
from clvp.waveform.convert import convert_waveform, diffusion_config, fold_weight_norm
from clvp.waveform.denoiser import DiffusionConfig, DiffusionDecoder
from clvp.waveform.files import load_waveform_models
from clvp.weights import check_keys
from jobs import convert


@pytest.fixture(scope="module")
def tokens_only(golden_decode, tmp_path_factory):
    """A checkpoint folder that chooses tokens and makes no sound."""
    folder = tmp_path_factory.mktemp("tokens_only")
    return convert_tortoise(golden_decode / "autoregressive.pth", golden_decode / "clvp2.pth", folder)


@pytest.fixture
def checkpoint(tokens_only, tmp_path):
    return shutil.copytree(tokens_only, tmp_path / "checkpoint")


@pytest.fixture
def pair(golden_decode):
    return [golden_decode / "diffusion_decoder.pth", golden_decode / "vocoder.pth"]


@pytest.fixture
def voices(golden_decode):
    return [golden_decode / "rlg_diffuser.pth"] * 2  # both latents of the golden models are of its width


def test_a_folder_gains_sound(checkpoint, pair, voices, golden_states):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert convert_waveform(*pair, checkpoint) == checkpoint
    assert all((checkpoint / name).read_bytes() == content for name, content in before.items())
    models = load_waveform_models(checkpoint)
    assert models.random_voices is None
    original = golden_states["diffusion_decoder"]
    kept = models.diffusion.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in kept.items())
    dropped = {key.split(".")[0] for key in original.keys() - kept.keys()}
    assert dropped == {"code_embedding", "code_converter", "mel_head"}
    expected = fold_weight_norm(golden_states["vocoder"]["model_g"])
    assert all(torch.equal(value, expected[key]) for key, value in models.vocoder.state_dict().items())
    assert not models.diffusion.training
    assert not models.vocoder.training
    convert_waveform(*pair, checkpoint, voices)
    latents = load_waveform_models(checkpoint).random_voices
    assert torch.equal(latents.decoder.layers[5].weight, golden_states["rlg_diffuser"]["layers.5.weight"])


def test_sizes_are_read_off_the_shapes(golden_states, about, full_size_keys):
    config = diffusion_config(golden_states["diffusion_decoder"], "diffusion_decoder.pth")
    assert config.num_heads == about["heads"]
    assert config.num_layers < DiffusionConfig().num_layers
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in full_size_keys["diffusion_decoder"].items()}
        model = DiffusionDecoder(DiffusionConfig())
    assert diffusion_config(state, "") == DiffusionConfig()
    unused = ("code_embedding", "code_converter", "mel_head")
    check_keys(model, {k: v for k, v in state.items() if not k.startswith(unused)}, "the published file")
    assert sum(weight.numel() for weight in model.parameters()) == 271_034_568


def test_a_checkpoint_without_sound_says_how_to_get_it(tokens_only):
    with pytest.raises(FileNotFoundError, match=r"no files for sound.*jobs\.convert --diffusion"):
        load_waveform_models(tokens_only)


def test_weights_that_do_not_belong_are_named(checkpoint, pair, golden_states, tmp_path):
    state = dict(golden_states["diffusion_decoder"])
    changed = tmp_path / "diffusion_decoder.pth"
    torch.save({**state, "layers.99.bias": torch.zeros(1)}, changed)
    with pytest.raises(CheckpointError, match=r"diffusion_decoder\.pth .* unexpected: layers\.99\.bias"):
        convert_waveform(changed, pair[1], checkpoint)
    del state["out.0.bias"]
    torch.save(state, changed)
    with pytest.raises(CheckpointError, match=r"missing: out\.0\.bias"):
        convert_waveform(changed, pair[1], checkpoint)
    flat = tmp_path / "vocoder.pth"
    torch.save(golden_states["vocoder"]["model_g"], flat)
    with pytest.raises(CheckpointError, match=r"vocoder\.pth lacks inp_block\.weight: is it the right file"):
        convert_waveform(flat, pair[1], checkpoint)
    with pytest.raises(CheckpointError, match="must hold a state dict under 'model_g'"):
        convert_waveform(pair[0], flat, checkpoint)
    assert not list(checkpoint.glob("*diffusion*"))  # nothing is written by halves


def test_only_the_generator_of_the_vocoder_is_read(checkpoint, pair, golden_states, tmp_path):
    stored = golden_states["vocoder"]
    torch.save({"model_d": "anything", "step": 7, "model_g": stored["model_g"]}, tmp_path / "vocoder.pth")
    convert_waveform(pair[0], tmp_path / "vocoder.pth", checkpoint)


def test_half_precision_files_become_float32(checkpoint, pair, golden_states, tmp_path):
    state = {key: value.half() for key, value in golden_states["diffusion_decoder"].items()}
    torch.save(state, tmp_path / "half.pth")
    convert_waveform(tmp_path / "half.pth", pair[1], checkpoint)
    weights = load_waveform_models(checkpoint).diffusion.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_a_decoder_of_another_width_is_refused(pair, tmp_path):
    """The tiny random checkpoint's latents are as wide as the golden ones; a wider one's do not fit."""
    folder = write_random_checkpoint(tmp_path / "random")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 128'))
    with pytest.raises(CheckpointError, match=r"takes latents of width 64, .* makes them 128 wide"):
        convert_waveform(*pair, folder)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        convert_waveform(*pair, tmp_path)


def test_damaged_files_are_named(checkpoint, pair):
    convert_waveform(*pair, checkpoint)
    (checkpoint / "vocoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocoder\.safetensors"):
        load_waveform_models(checkpoint)


def test_command_line(golden_decode, pair, voices, tmp_path, capsys):
    ours = ["--autoregressive", str(golden_decode / "autoregressive.pth")]
    ours += ["--clvp", str(golden_decode / "clvp2.pth")]
    sound = ["--diffusion", str(pair[0]), "--vocoder", str(pair[1])]
    both = ["--output", str(tmp_path / "both")]
    random_voices = ["--random-voices", *map(str, voices)]
    assert convert.main([*ours, *sound, *random_voices, *both]) == 0
    assert load_waveform_models(tmp_path / "both").random_voices is not None
    later = ["--output", str(tmp_path / "later")]
    assert convert.main([*sound, *later]) == 1  # no checkpoint is there yet
    assert convert.main([*ours, *later]) == 0
    assert convert.main([*sound, *later]) == 0
    files = ["diffusion_decoder.safetensors", "vocoder.safetensors", "waveform_config.json", "config.json"]
    for name in files:
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    capsys.readouterr()
    for wrong in ([], ours[:2], [*ours, *sound[:2]], [*ours, *random_voices]):
        with pytest.raises(SystemExit, match="2"):
            convert.main([*wrong, *later])
        assert "--diffusion and --vocoder" in capsys.readouterr().err


@torch.no_grad()
def test_a_random_checkpoint_makes_noise(tmp_path):
    folder = write_random_checkpoint(tmp_path, seed=3, audio=True)
    models, again = load_waveform_models(folder), random_waveform_models("tiny", 3)
    for name, model in models.by_file.items():
        state = again.by_file[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    decoder, diffusion = models.random_voices.voice("anna")
    assert (
        len(decoder)
        == ClvpModelForConditionalGeneration.from_pretrained(folder).config.decoder_config.hidden_size
    )
    aligned = models.diffusion.align(torch.randn(5, len(decoder)), diffusion)
    assert len(aligned) == 21
    assert models.vocoder.synthesize(torch.randn(100, 9), torch.randn(64, 19)).std() > 1e-3


def test_full_size_random_models_have_the_published_shapes():
    with torch.device("meta"):
        models = random_waveform_models("full")
    counts = [sum(weight.numel() for weight in model.parameters()) for model in models.by_file.values()]
    assert counts == [271_034_568, 14_789_153, 6_297_600 + 25_178_112]
