"""Checkpoint folders: every file layout, every misfit named, nothing run from a pickle."""

import json
import os
import pickle
import traceback
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from clvp import (
    ClvpConditioningEncoder,
    ClvpDecoder,
    ClvpEncoder,
    ClvpForCausalLM,
    ClvpModel,
    ClvpModelForConditionalGeneration,
)
from clvp.checkpoint import CheckpointError, CheckpointSource
from clvp.layers import inverse_frequencies
from clvp.weights import open_pickle

MODEL = "model.safetensors"


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    return tmp_path


def assert_same_weights(loaded: torch.nn.Module, expected: torch.nn.Module) -> None:
    state = loaded.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key


def test_round_trip(folder, tiny_model):
    loaded = ClvpModelForConditionalGeneration.from_pretrained(folder)
    assert_same_weights(loaded, tiny_model)
    assert loaded.config == tiny_model.config
    assert loaded.generation_config == tiny_model.generation_config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["ClvpModelForConditionalGeneration"]
    assert written["dtype"] == "float32"
    assert (folder / MODEL).stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(folder, tiny_model, shards, zipped):
    """`pytorch_model.bin`, in one file or in several, in torch's format of today and of before 1.6."""
    (folder / MODEL).unlink()
    items = list(tiny_model.state_dict().items())
    weight_map = {}
    for shard in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(items[shard::shards])
        torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_weights(ClvpModelForConditionalGeneration.from_pretrained(folder), tiny_model)


def test_every_part_has_a_checkpoint_of_its_own(folder, tmp_path):
    for part in (ClvpConditioningEncoder, ClvpEncoder, ClvpDecoder, ClvpModel, ClvpForCausalLM):
        whole = part.from_pretrained(folder)
        whole.save_pretrained(tmp_path / part.__name__)
        alone = part.from_pretrained(tmp_path / part.__name__)
        assert_same_weights(alone, whole)
        assert alone.config == whole.config


def test_what_is_not_asked_for_has_no_memory(folder, tiny_model):
    loaded = ClvpModelForConditionalGeneration.from_pretrained(
        folder, parts=("text_encoder_model", "logit_scale")
    )
    assert_same_weights(loaded.text_encoder_model, tiny_model.text_encoder_model)
    assert torch.equal(loaded.logit_scale, tiny_model.logit_scale)
    absent = [name for name, value in loaded.state_dict().items() if value.is_meta]
    assert absent == [
        name for name in tiny_model.state_dict() if not name.startswith(("text_encoder", "logit_scale"))
    ]


def test_shards_come_and_go(folder, tiny_model):
    tiny_model.save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / MODEL).exists()
    first = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(first) > 2
    assert all(path.stat().st_size < 150_000 for path in folder.glob("model-*.safetensors"))
    assert_same_weights(ClvpModelForConditionalGeneration.from_pretrained(folder), tiny_model)
    tiny_model.save_pretrained(folder, max_shard_size=200_000)
    assert not first & {path.name for path in folder.glob("model-*.safetensors")}
    tiny_model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "generation_config.json", MODEL]


def test_a_loaded_model_survives_its_checkpoint(folder, tiny_model):
    """A model can be saved over the files that it was loaded from."""
    loaded = ClvpModelForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        loaded.logit_scale.fill_(1.25)
    loaded.save_pretrained(folder)
    again = ClvpModelForConditionalGeneration.from_pretrained(folder)
    assert_same_weights(again, loaded)
    (folder / MODEL).write_bytes(b"\0" * (folder / MODEL).stat().st_size)
    assert_same_weights(again, loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "torch.float32", "auto", None])
def test_dtypes(folder, dtype):
    expected = {"float16": torch.float16, torch.bfloat16: torch.bfloat16}.get(dtype, torch.float32)
    loaded = ClvpModelForConditionalGeneration.from_pretrained(folder, dtype=dtype, device="cpu")
    assert loaded.dtype == expected
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.text_encoder_model.rotary_pos_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "float33", torch.int64])
def test_dtypes_that_are_none(folder, dtype):
    with pytest.raises(ValueError, match="dtype must be"):
        ClvpModelForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def test_half_precision_files_keep_exact_frequencies(folder, tiny_model, tmp_path):
    """Ours store them in float32; rounded ones in others' files are computed anew."""
    half = ClvpModelForConditionalGeneration.from_pretrained(folder, dtype="bfloat16")
    half.save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half" / MODEL)
    key = "text_encoder_model.rotary_pos_emb.inv_freq"
    assert stored[key].dtype == torch.float32
    stored[key] = stored[key].bfloat16()
    save_file(stored, tmp_path / "half" / MODEL)
    loaded = ClvpModelForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.text_encoder_model.rotary_pos_emb.inv_freq, inverse_frequencies(32))


def test_every_misfit_is_in_one_error(folder):
    state = load_file(folder / MODEL)
    del state["logit_scale"]
    state["text_encoder_model.projection.weight"] = torch.zeros(3, 64)
    state["vocoder.weight"] = torch.zeros(1)
    save_file(state, folder / MODEL)
    with pytest.raises(CheckpointError) as caught:
        ClvpModelForConditionalGeneration.from_pretrained(folder)
    message = str(caught.value)
    assert "missing: logit_scale" in message
    assert "unexpected: vocoder.weight" in message
    assert "text_encoder_model.projection.weight (file [3, 64], model [48, 64])" in message
    # A part looks at its own weights alone.
    assert ClvpForCausalLM.from_pretrained(folder).num_parameters() > 0
    with pytest.raises(CheckpointError, match=r"misshaped: projection\.weight"):
        ClvpEncoder.from_pretrained(folder)


def test_causal_masks_of_older_files_are_ignored(folder, tiny_model):
    state = load_file(folder / MODEL)
    state["speech_decoder_model.model.decoder.layers.0.attn.bias"] = torch.ones(
        1, 1, 64, 64, dtype=torch.bool
    )
    state["speech_decoder_model.model.decoder.layers.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, folder / MODEL)
    assert_same_weights(ClvpModelForConditionalGeneration.from_pretrained(folder), tiny_model)
    state["speech_decoder_model.model.decoder.layers.0.attn.bias"] = torch.ones(1, 1, 64, 63)
    save_file(state, folder / MODEL)
    with pytest.raises(CheckpointError, match=r"unexpected: .*attn\.bias"):
        ClvpModelForConditionalGeneration.from_pretrained(folder)


class Command:
    """Runs when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


def test_pickles_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.bin"):
        open_pickle(path)
    torch.save({"weight": Command()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.bin"):
        open_pickle(path)
    assert not (tmp_path / "unpickled").exists()
    torch.save({"weight": 3}, path)
    with pytest.raises(CheckpointError, match="names and tensors"):
        open_pickle(path)


def test_a_refusal_does_not_say_how_to_load_it_all_the_same(tmp_path):
    """Pickles with code, old and new, and a TorchScript archive: torch advises `weights_only=False`."""
    names = [tmp_path / name for name in ("old.pth", "new.pth", "script.pth")]
    torch.save({"weight": Command()}, names[0], _use_new_zipfile_serialization=False)
    torch.save({"weight": Command()}, names[1])
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), names[2])
    for path in names:
        with pytest.raises(CheckpointError, match="which is never run") as refused:
            open_pickle(path)
        shown = "".join(traceback.format_exception(refused.value))
        assert "torch.load" not in str(refused.value)
        assert "Re-running" not in shown
        assert "weights_only=False" not in shown


def test_a_link_beside_a_checkpoint_is_not_written_through(folder, tiny_model, tmp_path):
    (tmp_path / "mine").write_text("years of work")
    for name in ("config.json", MODEL):
        (folder / f".{name}.partial").symlink_to(tmp_path / "mine")
    tiny_model.save_pretrained(folder)
    assert (tmp_path / "mine").read_text() == "years of work"
    assert not (folder / MODEL).is_symlink()


def test_absent_and_damaged_files_are_named(folder, tmp_path):
    (folder / MODEL).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=MODEL):
        ClvpModelForConditionalGeneration.from_pretrained(folder)
    (folder / MODEL).unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        ClvpModelForConditionalGeneration.from_pretrained(folder)
    index = {"weight_map": {"logit_scale": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors"):
        ClvpModelForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        ClvpModelForConditionalGeneration.from_pretrained(folder)


def test_unknown_arguments_are_named(folder):
    with pytest.raises(TypeError, match="torch_dtipe"):
        ClvpModelForConditionalGeneration.from_pretrained(folder, torch_dtipe="float16")


def test_hub_ids(folder, tiny_model, monkeypatch, tmp_path):
    """Each file that is needed is asked for with the caller's options, and none else."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def download(repo: str, name: str, **options: object) -> str:
        asked.append((repo, name, options["revision"], options["local_files_only"]))
        if repo == "nobody/home":
            raise LocalEntryNotFoundError("offline")
        if not (folder / name).exists():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    loaded = ClvpModelForConditionalGeneration.from_pretrained(
        "someone/clvp", revision="v2", local_files_only=True
    )
    assert_same_weights(loaded, tiny_model)
    names = {"config.json", "generation_config.json", MODEL}
    assert set(asked) == {("someone/clvp", name, "v2", True) for name in names}
    with pytest.raises(FileNotFoundError, match="nobody/home is no local folder"):
        ClvpModelForConditionalGeneration.from_pretrained("nobody/home")


def test_a_cached_hub_id_loads_without_a_connection(folder, tiny_model, tmp_path):
    """From a cache that holds a pickle and no generation settings, as that of the published model may."""
    commit = "0" * 40
    repo = tmp_path / "cache" / "models--someone--clvp"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text((folder / "config.json").read_text())
    torch.save(tiny_model.state_dict(), snapshot / "pytorch_model.bin")
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    loaded = ClvpModelForConditionalGeneration.from_pretrained("someone/clvp", **options)
    assert_same_weights(loaded, tiny_model)
    assert loaded.generation_config == ClvpModelForConditionalGeneration(tiny_model.config).generation_config
    with pytest.raises(FileNotFoundError, match="someone/else"):
        ClvpModelForConditionalGeneration.from_pretrained("someone/else", **options)


def test_a_path_that_is_neither_folder_nor_id():
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        CheckpointSource("/no/such/folder").file("config.json")
