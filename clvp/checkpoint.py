"""Reading and writing checkpoint folders: where the files lie, and how weights get into a model.

A checkpoint is a local folder or a Hugging Face hub id that holds `config.json` and either
`model.safetensors` or `pytorch_model.bin`, each of them one file or several with an index. Weights are read
one tensor at a time into a model built on the `meta` device, so that loading needs the memory of one model
and not of two. Pickles are opened with `weights_only=True` alone.
"""

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, split_torch_state_dict_into_shards, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clvp.layers import exact_frequencies

# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_NAMES_SHOWN = 20


class CheckpointError(ValueError):
    """The files of a checkpoint do not fit the model: missing, unexpected or misshaped weights, unreadable
    files.
    """


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint lies: a local folder, or a hub id with the options of `huggingface_hub`."""

    location: str | os.PathLike[str]
    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @classmethod
    def parse(
        cls, location: str | os.PathLike[str], options: Mapping[str, Any]
    ) -> "tuple[CheckpointSource, dict[str, Any]]":
        """A source from a mix of hub options and other keyword arguments, and those others."""
        source = cls(location, **{key: value for key, value in options.items() if key in HUB_OPTIONS})
        return source, {key: value for key, value in options.items() if key not in HUB_OPTIONS}

    def file(self, name: str) -> Path | None:
        """Local path of the file `name`, downloaded when the source is a hub id; None when there is no such
        file.

        Raises FileNotFoundError when the location is neither a folder nor a hub id, or the hub cannot be
        reached.
        """
        folder = Path(self.location)
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        try:
            return Path(
                hf_hub_download(
                    str(self.location),
                    name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    local_files_only=self.local_files_only,
                )
            )
        except LocalEntryNotFoundError as error:
            if self._is_cached():  # without a connection, what was downloaded is all there is
                return None
            raise FileNotFoundError(
                f"{self.location} is no local folder, and {name} can neither be downloaded from the hub nor "
                "found in its cache"
            ) from error
        except EntryNotFoundError:
            return None
        except (HFValidationError, HfHubHTTPError) as error:
            raise FileNotFoundError(
                f"{self.location} is neither a local folder nor a readable hub id"
            ) from error

    def _is_cached(self) -> bool:
        """Whether the hub's cache holds this checkpoint's configuration, and so the rest of it."""
        cached = try_to_load_from_cache(
            str(self.location), "config.json", cache_dir=self.cache_dir, revision=self.revision
        )
        return isinstance(cached, str)

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`, or None when there is no such file."""
        path = self.file(name)
        return None if path is None else read_json(path)


HUB_OPTIONS = frozenset(item.name for item in fields(CheckpointSource)) - {"location"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.bin` or `.pth` file, memory-mapped where its format allows it.

    Raises CheckpointError when the file is damaged, holds anything but tensors, or anything that would run
    code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises half a dozen kinds, by what is wrong with the file
        raise CheckpointError(f"{path} is no readable state dict: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} must hold a state dict: names and tensors, nothing else")
    return content


def _open_safetensors(path: Path, opened: ExitStack) -> dict[str, StoredTensor]:
    try:
        file = opened.enter_context(safe_open(path, framework="pt", device="cpu"))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    return {
        key: StoredTensor(tuple(file.get_slice(key).get_shape()), lambda key=key: file.get_tensor(key))  # type: ignore[misc]
        for key in file.keys()  # noqa: SIM118 (no mapping)
    }


def _open_shard(path: Path, opened: ExitStack) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return _open_safetensors(path, opened)
    return {
        key: StoredTensor(tuple(value.shape), lambda value=value: value)  # type: ignore[misc]
        for key, value in open_pickle(path).items()
    }


def _weight_paths(source: CheckpointSource) -> list[Path]:
    for name in WEIGHT_FILES:
        path = source.file(name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [path]
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path} has no weight_map")
        shards = {shard: source.file(shard) for shard in sorted(set(weight_map.values()))}
        absent = [shard for shard, shard_path in shards.items() if shard_path is None]
        if absent:
            raise CheckpointError(f"{path} lists files that do not exist: {', '.join(absent)}")
        return [shard_path for shard_path in shards.values() if shard_path is not None]
    raise FileNotFoundError(f"{source.location} holds no weights: none of {', '.join(WEIGHT_FILES)}")


def _is_causal_mask(key: str, shape: tuple[int, ...]) -> bool:
    """Older files store the causal mask of every attention block, which is no weight."""
    square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return (key.endswith(".bias") and square) or (key.endswith(".masked_bias") and shape in ((), (1,)))


def _select(stored: Mapping[str, StoredTensor], prefixes: Iterable[str]) -> dict[str, StoredTensor]:
    """The tensors under the first prefix that occurs, without that prefix; all of them when none occurs."""
    for prefix in prefixes:
        inside = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
        if inside:
            return inside
    return dict(stored)


def check_keys(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raise one CheckpointError that names every missing, unexpected and misshaped tensor."""
    misshaped = [
        f"{key} (file {list(found[key])}, model {list(shape)})"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    groups = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshaped": misshaped,
    }
    lines = [f"{name}: {_shortened(keys)}" for name, keys in groups.items() if keys]
    if lines:
        raise CheckpointError(f"the weights of {origin} do not fit the model; " + "; ".join(lines))


def _shortened(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def load_weights(
    module: nn.Module,
    source: CheckpointSource,
    prefixes: Iterable[str] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Fill a module built on `meta` from a checkpoint, tensor by tensor.

    `prefixes` are tried in order, so that a part can be read out of the checkpoint of a whole. Floating-point
    weights become `dtype` (None: as stored), but for rotary frequencies, which stay float32.

    Raises CheckpointError naming the tensors that do not fit, FileNotFoundError when there are no weights.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    with ExitStack() as opened:
        stored: dict[str, StoredTensor] = {}
        for path in _weight_paths(source):
            stored.update(_open_shard(path, opened))
        selected = _select(stored, prefixes)
        weights = {key: tensor for key, tensor in selected.items() if not _is_causal_mask(key, tensor.shape)}
        check_keys(expected, {key: tensor.shape for key, tensor in weights.items()}, str(source.location))
        state: dict[str, Tensor] = {}
        for key, tensor in weights.items():
            value = tensor.read()
            if key.endswith("inv_freq"):
                state[key] = exact_frequencies(value).to(device, copy=True)
                continue
            wanted = dtype if value.is_floating_point() else None
            # A copy, never the mapped file itself: a model must survive its checkpoint being overwritten.
            state[key] = value.to(device=device, dtype=wanted or value.dtype, copy=True)
    module.load_state_dict(state, assign=True)


def save_weights(module: nn.Module, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write `model.safetensors`, in shards with an index above `max_shard_size` (bytes, or text such as
    "5GB").

    Each file appears whole or not at all; weight files of an earlier save that are no longer part are
    removed.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
    for name, keys in split.filename_to_tensors.items():
        partial = folder / f".{name}.partial"
        save_file({key: state[key] for key in keys}, partial, metadata={"format": "pt"})
        partial.chmod(0o666 & ~_umask())  # safetensors leaves its files to their owner alone
        os.replace(partial, folder / name)
    index = folder / "model.safetensors.index.json"
    if split.is_sharded:
        write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    else:
        index.unlink(missing_ok=True)
    for path in folder.iterdir():
        stale = _SHARD_NAME.fullmatch(path.name) or path.name == "model.safetensors"
        if stale and path.name not in split.filename_to_tensors:
            path.unlink()


def _umask() -> int:
    """Permissions that new files lack; they can only be read by being set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
