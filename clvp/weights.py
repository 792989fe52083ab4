"""Weights: how they get from the files of a checkpoint into a model, and back.

Files are mapped and copied tensor by tensor into a model built on the `meta` device, so that loading needs
the memory of one model and not of two, or of none where the map is to do. Pickles are opened with
`weights_only=True` alone.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clvp.checkpoint import WEIGHT_FILES, CheckpointError, CheckpointSource, weight_map, write_json
from clvp.layers import exact_frequencies

_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_NAMES_SHOWN = 20


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules made in it take no memory: they are on `meta`, where a normal distribution is not drawn, since
    torch would import its compiler for it, for a second.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


def open_pickle(path: Path, section: str | None = None) -> dict[str, Tensor]:
    """The state dict in a `.bin` or `.pth` file, memory-mapped where its format allows it.

    `section` is the key under which it lies, beside others that are not looked at.

    Raises CheckpointError for a damaged file, and for one with anything but tensors, such as code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises half a dozen kinds, by what is wrong with the file
        reason = str(error)
        if "weights_only" in reason:  # torch's own words go on to say how to switch this safety off
            reason = "it holds more than tensors, such as code, which is never run; ask for it as safetensors"
        raise CheckpointError(f"{path} is no readable state dict: {reason}") from None
    if section is not None and isinstance(content, dict):
        content = content.get(section)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        where = "" if section is None else f" under {section!r}"
        raise CheckpointError(f"{path} must hold a state dict{where}: names and tensors, nothing else")
    return content


def _open(path: Path) -> dict[str, Tensor]:
    """The tensors of one weight file, mapped into memory and not read yet."""
    if path.suffix != ".safetensors":
        return open_pickle(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def _weight_paths(source: CheckpointSource, names: Sequence[str]) -> list[Path]:
    for name in names:
        path = source.file(name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = {shard: source.file(shard) for shard in sorted(set(weight_map(path).values()))}
        found = [shard_path for shard_path in shards.values() if shard_path is not None]
        if len(found) < len(shards):
            absent = ", ".join(shard for shard in shards if shards[shard] is None)
            raise CheckpointError(f"{path} lists files that do not exist: {absent}")
        return found
    raise FileNotFoundError(f"{source.location} holds no weights: none of {', '.join(names)}")


def _is_causal_mask(key: str, value: Tensor) -> bool:
    """Older files store the causal mask of every attention block, which is no weight."""
    square = value.dim() == 4 and value.shape[:2] == (1, 1) and value.shape[2] == value.shape[3]
    return (key.endswith(".bias") and square) or (key.endswith(".masked_bias") and value.numel() == 1)


def _select(stored: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the first prefix that occurs, without that prefix; all of them when none occurs."""
    for prefix in prefixes:
        inside = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
        if inside:
            return inside
    return dict(stored)


def check_keys(module: nn.Module, found: Mapping[str, Tensor], origin: str) -> None:
    """Raise one CheckpointError that names every missing, unexpected and misshaped tensor."""
    expected = module.state_dict()
    groups = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshaped": [
            f"{key} (file {list(found[key].shape)}, model {list(value.shape)})"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    lines = []
    for name, keys in groups.items():
        more = f" and {len(keys) - _NAMES_SHOWN} more" if len(keys) > _NAMES_SHOWN else ""
        lines += [f"{name}: {', '.join(keys[:_NAMES_SHOWN])}{more}"] if keys else []
    if lines:
        raise CheckpointError(f"the weights of {origin} do not fit the model; " + "; ".join(lines))


def shape_of(state: Mapping[str, Tensor], key: str, origin: str) -> tuple[int, ...]:
    """The shape of a weight that a file must have; CheckpointError naming it where it is missing."""
    if key not in state:
        raise CheckpointError(f"{origin} lacks {key}: is it the right file?")
    return tuple(state[key].shape)


def count_layers(state: Mapping[str, Tensor], key: str) -> int:
    """How many of the keys with 0, 1, 2 ... in place of `{}` are there."""
    return next(n for n in count() if key.format(n) not in state)


def load_weights(
    module: nn.Module,
    source: CheckpointSource,
    prefixes: Iterable[str] = (),
    *,
    files: Sequence[str] = WEIGHT_FILES,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Sequence[str] = ("",),
    mapped: bool = False,
) -> None:
    """Fill a module built on `meta` from the first of `files` that a checkpoint has.

    `prefixes` are tried in order, so that a part can be read out of the checkpoint of a whole. Floating-point
    weights become `dtype` (None: as stored), but for rotary frequencies, which stay float32. What is in none
    of the `parts` of the module stays on `meta`. `mapped` is for models that do not outlive their files.

    Raises CheckpointError naming the tensors that do not fit, FileNotFoundError when there are no weights.
    """
    stored: dict[str, Tensor] = {}
    for path in _weight_paths(source, files):
        stored.update(_open(path))
    state = {
        key: value for key, value in _select(stored, prefixes).items() if not _is_causal_mask(key, value)
    }
    check_keys(module, state, str(source.location))
    state = {key: value for key, value in state.items() if key.startswith(tuple(parts))}
    for key, value in state.items():
        if key.endswith("inv_freq"):
            value, wanted = exact_frequencies(value), torch.float32
        else:
            wanted = dtype if dtype and value.is_floating_point() else value.dtype
        # A copy, not the mapped file: a model must survive its checkpoint being overwritten.
        state[key] = value.to(device=device, dtype=wanted, copy=not mapped)
    module.load_state_dict(state, assign=True, strict=False)


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU into a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # a link would lead the writing elsewhere
    partial.touch()
    permissions = partial.stat().st_mode
    save_file(dict(state), partial, metadata={"format": "pt"})
    partial.chmod(permissions)  # safetensors leaves its files to their owner alone
    os.replace(partial, path)


def save_weights(module: nn.Module, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write `model.safetensors`, in shards with an index above `max_shard_size` (bytes, or "5GB").

    Each file appears whole or not at all; weight files of an earlier save are removed.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
    for name, keys in split.filename_to_tensors.items():
        write_safetensors(folder / name, {key: state[key] for key in keys})
    index = folder / "model.safetensors.index.json"
    if split.is_sharded:
        write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    else:
        index.unlink(missing_ok=True)
    for path in folder.iterdir():
        stale = _SHARD_NAME.fullmatch(path.name) or path.name == "model.safetensors"
        if stale and path.name not in split.filename_to_tensors:
            path.unlink()
