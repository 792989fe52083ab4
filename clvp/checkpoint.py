"""Checkpoint folders: where the files lie, and the JSON among them. Loads no torch.

A checkpoint is a local folder or a Hugging Face hub id that holds `config.json` and either
`model.safetensors` or `pytorch_model.bin`, each of them one file or several with an index
(`clvp.weights`). One that makes sound has three files more (`clvp.waveform.files`).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# The model that comes with the package, by its name.
DEMO, DEMO_FOLDER = "demo", Path(__file__).parent / "assets" / "demo"
WAVEFORM_CONFIG_FILE = "waveform_config.json"
DIFFUSION_FILE = "diffusion_decoder.safetensors"
VOCODER_FILE = "vocoder.safetensors"
RANDOM_VOICES_FILE = "random_voices.safetensors"
CODEC_CONFIG_FILE = "codec_config.json"
CODEC_FILE = "codec.safetensors"
RUN_FILE = "run.yaml"  # settings of a run that the model needs in place of Tortoise's


class CheckpointError(ValueError):
    """The files of a checkpoint cannot be read, or their weights do not fit the model."""


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint lies: "demo", a local folder, or a hub id with the options of `huggingface_hub`."""

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
        """Local path of a file, downloaded when the source is a hub id; None when there is no such file.

        Raises FileNotFoundError for neither a folder nor a hub id, or a hub that cannot be reached.
        """
        folder = DEMO_FOLDER if self.location == DEMO else Path(self.location)
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

        options: dict[str, Any] = {option: getattr(self, option) for option in HUB_OPTIONS}
        try:
            return Path(hf_hub_download(str(self.location), name, **options))
        except errors.LocalEntryNotFoundError as error:
            cached = try_to_load_from_cache(
                str(self.location), "config.json", cache_dir=self.cache_dir, revision=self.revision
            )
            if isinstance(cached, str):
                return None  # without a connection, what was downloaded is all there is
            raise FileNotFoundError(
                f"{self.location} is no local folder, and {name} can neither be downloaded from the hub nor "
                "found in its cache"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except (errors.HFValidationError, errors.HfHubHTTPError) as error:
            raise FileNotFoundError(
                f"{self.location} is neither a local folder nor a readable hub id"
            ) from error

    def json(self, name: str, values: Any = Any) -> dict[str, Any] | None:
        """The JSON object in the file `name`, with values of a type, or None when there is no such file."""
        path = self.file(name)
        return None if path is None else read_json(path, values)


HUB_OPTIONS = frozenset(item.name for item in fields(CheckpointSource)) - {"location"}


def read_json(path: Path, values: Any = Any) -> dict[str, Any]:
    """The JSON object in a file, with values of a type.

    Raises CheckpointError when it holds anything else, or is nested 200 levels deep.
    """
    try:
        content = from_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    try:
        return TypeAdapter(dict[str, values]).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CheckpointError(f"{path}: {problem['loc'][0]!r}: {problem['msg']}") from error


def weight_map(path: Path) -> dict[str, str]:
    """The file of each tensor, by an index of weights; CheckpointError when it is none."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{path} has no weight_map")
    return found


@contextmanager
def content_of(name: str, source: "CheckpointSource") -> Iterator[None]:
    """What is wrong with the content of a file, as a CheckpointError that names it."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{name} of {source.location}: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold, whole or not at all, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # a link would lead the writing elsewhere
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
