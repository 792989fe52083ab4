"""What README.md and docs/ tell to type exists: jobs and their options, ray's commands, files, settings."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from jobs.options import REQUIRED, read_run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLUSTER_PAGE = ROOT / "docs" / "cluster.md"

# Commands that a reader types, from blocks of shell and from `code` within sentences.
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


def commands(page: Path, blocks_only: bool = False) -> Iterator[list[str]]:
    """The words of every command line of a page."""
    text = page.read_text()
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield shlex.split(line, comments=True)
    text = "" if blocks_only else re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in _CODE.findall(text):
        if code.startswith(("python -m ", "ray ", "clvp ")):
            yield shlex.split(code)


def job_commands(page: Path, blocks_only: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Module and arguments of every `clvp NAME` or `python -m jobs.NAME` of a page, submitted ones too."""
    for words in commands(page, blocks_only):
        for i, word in enumerate(words[1:], 1):
            if word.startswith("jobs.") and words[i - 1] == "-m" and "…" not in word:
                yield word, words[i + 1 :]
            elif words[i - 1] == "clvp" and word != "…":
                yield f"jobs.{word}", words[i + 1 :]


def parser_of(job: str) -> argparse.ArgumentParser:
    return importlib.import_module(job).make_parser()


def options_of(job: str) -> set[str]:
    """Those that its help shows: no earlier names."""
    shown = [action for action in parser_of(job)._actions if action.help != argparse.SUPPRESS]
    return {option for action in shown for option in action.option_strings}


def page_id(page: Path) -> str:
    return page.name


def unknown_options(job: str, arguments: list[str]) -> set[str]:
    """Options that a job does not have, abbreviations of its own included."""
    return {word.partition("=")[0] for word in arguments if word.startswith("--")} - options_of(job)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_of_every_job_exists(page: Path) -> None:
    found = list(job_commands(page))
    assert found
    for job, arguments in found:
        assert not unknown_options(job, arguments), (job, arguments)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_whole_commands_can_be_parsed(page: Path) -> None:
    """A command in a block of shell is one to type as it stands; one in a sentence may be a part."""
    for job, arguments in job_commands(page, blocks_only=True):
        module, parser = importlib.import_module(job), parser_of(job)
        options = parser.parse_args([*arguments, ">"][: [*arguments, ">"].index(">")])
        if hasattr(module, "TEMPLATE") and not (options.config or options.print_config):
            read_run(parser, options, module.TEMPLATE, REQUIRED if job == "jobs.synthesize" else ())


def test_the_check_finds_what_does_not_exist(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nray jobs list\nray job submit -- python -m jobs.rank \\\n    --top 3\n```\n`ray up --fast`\n"
    )
    assert list(job_commands(page)) == [("jobs.rank", ["--top", "3"])]
    assert unknown_options("jobs.rank", ["--top", "3"]) == {"--top"}
    for words in commands(page):
        if words[:3] != ["ray", "job", "submit"]:
            with pytest.raises(AssertionError):
                check_ray(words)


def check_ray(words: list[str]) -> None:
    """Raise AssertionError for a command or option that `ray` does not have."""
    command: Any = ray_cli
    arguments = words[1:]
    while isinstance(command, click.Group):
        assert arguments, words
        assert arguments[0] in command.commands, words
        command = command.commands[arguments.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    assert {word for word in own if word.startswith("-")} <= options, words


@pytest.mark.parametrize("page", [CLUSTER_PAGE], ids=page_id)
def test_every_ray_command_exists(page: Path) -> None:
    found = [words for words in commands(page) if words[:1] == ["ray"]]
    assert len(found) > 10
    for words in found:
        check_ray(words)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_and_file_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings
    for words in commands(page):
        files = [word for word in words if word.startswith(("examples/", "cluster.yaml"))]
        assert all((ROOT / name).exists() for name in files), words


def test_the_cluster_page_has_every_option_of_execution() -> None:
    text = CLUSTER_PAGE.read_text()
    for job in ("jobs.synthesize", "jobs.plan"):
        for group in parser_of(job)._action_groups:
            if str(group.title).startswith(("never changes", "the trial")):
                names = [action.option_strings[0] for action in group._group_actions]
                assert names
                assert [name for name in names if f"`{name}`" not in text] == []


def test_every_setting_of_the_cluster_page_exists() -> None:
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    table = CLUSTER_PAGE.read_text().split("| `cluster.yaml` |")[1].split("\n\n")[0]
    names = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert len(names) > 8
    for name in names:
        value: Any = launcher
        for part in name.split("."):
            assert part in value, name
            value = value[part]
    rayjob = (ROOT / "examples/kuberay/rayjob.yaml").read_text()
    counterparts = [row.split("|")[2] for row in table.splitlines() if row.count("|") > 3]
    for name in re.findall(r"`([^`]+)`", " ".join(counterparts)):
        if name != "rayjob.yaml":
            assert name in rayjob, name


def test_the_versions_of_the_page_are_those_of_the_manifests() -> None:
    text = CLUSTER_PAGE.read_text()
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert set(re.findall(r"ray\[default\]==([\d.]+)", text)) == {pins["ray"]}
