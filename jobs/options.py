"""Options, their help and configuration files, all derived from the fields of a `Run` and their comments.

A job hands in a *template*, a run whose paths are empty. Each setting in it is an option named like its
field; a pool has `--samplers MIN[:MAX]` and `--gpus-per-sampler`. A configuration file holds the fields as
they are nested in a run: `--print-config` writes one. A checkpoint folder may hold one, `run.yaml`, with what
its model needs in place of Tortoise's defaults.
"""

import argparse
import dataclasses
import inspect
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from clvp.checkpoint import DEMO, DEMO_FOLDER, RUN_FILE
from clvp.waveform.params import PRESETS
from pipeline import storage
from pipeline.errors import shown
from pipeline.settings import Pool, ResultSettings, Run

GROUPS = {
    "": "input and output (paths or URIs such as s3://bucket/folder)",
    "reading": "how the manifest is to be understood",
    "results": "changes results",
    "execution": "never changes results",
}
REQUIRED = ("manifest", "output", "model")

# Earlier names of options: what they set, and to what if they take no value.
OLD_OPTIONS: Mapping[str, tuple[str, bool | None]] = {
    "--max-speech-tokens": ("results.sampling.max_new_tokens", None),
    "--sample-top-k": ("results.sampling.top_k", None),
    "--greedy": ("results.sampling.do_sample", False),
    "--rank-unfinished": ("results.scoring.unfinished_last", False),
}

_FIELD = re.compile(r"\s+(\w+): .+?(?:  # (.*))?")
_COMMENT = re.compile(r"\s+# (.*)")
_NONE = re.compile(r"(.*?)(?:; )?None: (.*)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field that holds a value, not further fields."""

    path: str  # names of the fields that lead to it, with dots
    flag: str
    kind: Any
    default: Any
    comment: str
    none: str  # what None stands for, in words

    def read(self, value: Any, where: str) -> Any:
        """The value that a word or a file's value stands for. Raises ValueError naming `where`."""
        if value in ("none", self.none or "none") and type(None) in get_args(self.kind):
            return None
        if isinstance(self.default, tuple) and not isinstance(value, list):
            value = [value]
        try:
            found = TypeAdapter(self.kind).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{where}: invalid value {shown(value)}: {error.errors()[0]['msg']}") from None
        texts = found if isinstance(found, tuple) else (found,)
        if any(text == "" or "\0" in text for text in texts if isinstance(text, str)):
            raise ValueError(f"{where}: invalid value {shown(value)}: it names nothing")
        return found

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        how: dict[str, Any] = {"metavar": self._metavar()}
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        if self.kind is bool:
            how, values = {"action": argparse.BooleanOptionalAction}, ("on",) if self.default else ()
        elif bool in get_args(self.kind):  # on, or a value
            how, values = {**how, "nargs": "?", "const": "true"}, ()
        elif isinstance(self.default, tuple):
            how["nargs"] = "*" if self.default else "+"
        default = self.none or " ".join(str(value) for value in values if value is not None)
        text = (self.comment + (f" (default: {default})" if default else "")).strip().replace("%", "%%")
        group.add_argument(self.flag, dest=self.path, default=argparse.SUPPRESS, help=text, **how)

    def _metavar(self) -> str:
        if self.path.endswith(".min_size"):
            return "MIN[:MAX]"
        kinds = (self.kind, *get_args(self.kind))
        for choices in (get_args(kind) for kind in kinds if get_origin(kind) is Literal):
            return "{" + ",".join(choices) + "}" + ("|N" if int in kinds else "")
        if int in kinds:
            return f"N|{self.none}" if self.none.isidentifier() else "N"
        return "X" if float in kinds else self.path.rpartition(".")[2].upper()


def settings_of(template: Any, path: str = "", pool: str = "") -> Iterator[Setting]:
    """The settings in a run, in their order. `pool` is set within one, to its option."""
    hints, notes = get_type_hints(type(template)), comments(type(template))  # type: ignore[arg-type]
    for field in dataclasses.fields(template):
        place, value = f"{path}{field.name}", getattr(template, field.name)
        flag, note = f"--{field.name.replace('_', '-')}", notes.get(field.name, "")
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{place}.", flag if isinstance(value, Pool) else "")
            continue
        if pool:
            flag = pool if flag.endswith("-size") else flag.replace("num-", "") + f"-per-{pool[2:-1]}"
        found = _NONE.fullmatch(note)
        text, none = (found[1], found[2]) if found else (note, "")
        yield Setting(place, flag, hints[field.name], value, text, none)


@cache
def comments(kind: type) -> dict[str, str]:
    """What the source of a dataclass says about each field: above it, or behind it."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, kind.__mro__):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if comment := _COMMENT.fullmatch(line):
                above.append(comment[1])
                continue
            if field := _FIELD.fullmatch(line):
                found.setdefault(field[1], " ".join(above) or field[2] or "")
            above = []
    return found


def add_options(parser: argparse.ArgumentParser, template: Run, without: Collection[str] = ()) -> None:
    """An option for every setting of the template but those in `without`."""
    parser.usage = "%(prog)s [options]"  # all of them would hide the message below
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    settings = {setting.path: setting for setting in settings_of(template) if setting.path not in without}
    if isinstance(template.results, ResultSettings):
        presets = ", ".join(
            f"{name} {p.candidates}/{p.waveform.diffusion_steps}" for name, p in PRESETS.items()
        )
        groups["results"].add_argument(
            "--preset", choices=PRESETS, help=f"candidates per row and steps of diffusion by name: {presets}"
        )
    for path, setting in settings.items():
        if not path.endswith(".max_size"):  # given with the smallest size
            setting.add_to(groups[path.rpartition(".")[0].partition(".")[0]])
    for flag, (path, constant) in OLD_OPTIONS.items():
        if path in settings:
            how: dict[str, Any] = {} if constant is None else {"action": "store_const", "const": constant}
            parser.add_argument(flag, dest=path, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)
    groups[""].add_argument(
        "--config", metavar="FILE", help="YAML or TOML with any of these settings; options go before it"
    )
    groups[""].add_argument(
        "--print-config", action="store_true", help="print all settings, as --config reads them, and end"
    )


def read_run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    template: Run,
    required: Collection[str] = REQUIRED,
) -> Run:
    """The run that options and configuration file describe. Ends the program where they are wrong."""
    settings = {setting.path: setting for setting in settings_of(template)}
    values: dict[str, Any] = {}
    try:
        if options.config:
            values |= _file_values(options.config, settings)
        if model := getattr(options, "model", values.get("model")):
            values = _model_values(model) | values
        if getattr(options, "preset", None):
            preset = PRESETS[options.preset]
            values["results.num_candidates"] = preset.candidates
            values |= {f"results.waveform.{name}": value for name, value in vars(preset.waveform).items()}
        for path, value in _given(options):
            if path in settings:
                values[path] = settings[path].read(value, f"argument {settings[path].flag}")
        missing = [settings[name].flag for name in required if not values.get(name)]
        if missing and not options.print_config:
            raise ValueError(f"the following arguments are required: {', '.join(missing)}")
        run = _build(template, values, settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.print_config:
        given = {name: value for name, value in dataclasses.asdict(run).items() if value not in ("", ())}
        print(yaml.safe_dump(json.loads(json.dumps(given)), sort_keys=False, allow_unicode=True), end="")
        parser.exit()
    return run


def _given(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for path, value in vars(options).items():
        if path.endswith(".min_size"):
            value, _, high = value.partition(":")
            yield path.replace(".min_size", ".max_size"), high or value
        yield path, value


def _model_values(model: str) -> dict[str, Any]:
    """What a checkpoint folder on this machine says of results; a job has no use for all of it."""
    path = os.path.join(DEMO_FOLDER if model == DEMO else model, RUN_FILE)
    known = settings_of(Run((), "", "", ResultSettings()))
    of_results = {setting.path: setting for setting in known if setting.path.startswith("results.")}
    return _file_values(path, of_results) if os.path.isfile(path) else {}


def _file_values(uri: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Raises ValueError naming the file and the key at fault."""
    data = storage.read_bytes(storage.absolute(uri))
    try:
        content = tomllib.loads(data.decode()) if uri.endswith(".toml") else yaml.safe_load(data)
        found = list(_flat(content or {}))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{uri}: {' '.join(str(error).split())}") from error
    values = {}
    for path, value in found:
        if path not in settings:
            raise ValueError(f"{uri}: there is no setting {path!r}")
        values[path] = settings[path].read(value, f"{uri}: {path}")
    return values


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _build(template: Any, values: Mapping[str, Any], settings: Mapping[str, Setting], path: str = "") -> Any:
    """The template with other values. Raises ValueError naming the option of one that is out of range."""
    changes = {}
    for field in dataclasses.fields(template):
        place, value = f"{path}{field.name}", getattr(template, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _build(value, values, settings, f"{place}.")
        elif place in values:
            changes[field.name] = values[place]
    try:
        return dataclasses.replace(template, **changes)
    except ValueError as error:  # begins with the field's name
        setting = settings.get(path + str(error).partition("=")[0])
        raise ValueError(f"argument {setting.flag}: {error}" if setting else f"{error}") from None
