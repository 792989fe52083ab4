"""Options and configuration files, derived from the settings and their comments."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from jobs import rank, synthesize
from jobs.cli import job_parser
from jobs.options import add_options, read_run, settings_of
from pipeline.checkpoint import Checkpoint
from pipeline.description import describe
from pipeline.settings import Pool, RankingSettings, ResultSettings, Run, ScoringSettings

PATHS = ["--manifest", "m.csv", "--output", "out", "--model", "model"]


def read(*arguments: str, template: Run = synthesize.TEMPLATE) -> Run:
    parser = job_parser("test", None)
    add_options(parser, template)
    return read_run(parser, parser.parse_args(arguments), template)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read(*arguments, "--print-config")
    assert not ended.value.code
    return capsys.readouterr().out


def test_every_setting_is_an_option_of_its_own_with_help() -> None:
    settings = list(settings_of(synthesize.TEMPLATE))
    flags = [setting.flag for setting in settings if not setting.path.endswith(".max_size")]
    assert len(set(flags)) == len(flags)
    assert [s.path for s in settings if not s.comment and not s.none] == []


def test_an_option_with_or_without_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, in a file, and as it is printed."""
    told: list[tuple[list[str], int | bool]] = [
        ([], False),
        (["--split-text"], True),
        (["--split-text", "150"], 150),
    ]
    for words, value in told:
        file = tmp_path / "run.yaml"
        file.write_text(printed(capsys, *words, *PATHS))
        assert repr(read(*words, *PATHS).reading.split_text) == repr(value), "True is no 1"
        assert read("--config", str(file)).reading == read(*words, *PATHS).reading
    assert "--split-text: split_text=7 is out of range" in refusal(capsys, "--split-text", "7", *PATHS)
    assert "--voice: voice='ada' needs" in refusal(capsys, "--voice", "ada", *PATHS)


@dataclass(frozen=True)
class MoreScoring(ScoringSettings):
    # how much a laugh is worth
    laughter: float = 0.5
    humour: str | None = None  # kind of jokes; None: dry


def test_a_field_that_is_added_is_everywhere_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Option, help, configuration file, run.json; the fields it inherits as well."""
    template = dataclasses.replace(synthesize.TEMPLATE, results=RankingSettings(scoring=MoreScoring()))
    scoring = read(*PATHS, "--laughter", "0.75", template=template).results.scoring
    assert scoring == MoreScoring(laughter=0.75)
    (tmp_path / "run.yaml").write_text("results: {scoring: {laughter: 0.25, humour: slapstick, keep: 3}}")
    arguments = [*PATHS, "--config", str(tmp_path / "run.yaml")]
    assert read(*arguments, template=template).results.scoring == MoreScoring(
        keep=3, laughter=0.25, humour="slapstick"
    )
    assert read(*arguments, "--humour", "dry", template=template).results.scoring.humour is None  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        read("--help", template=template)
    text = " ".join(capsys.readouterr().out.split())
    assert "--laughter X how much a laugh is worth (default: 0.5)" in text
    assert "--humour HUMOUR kind of jokes (default: dry)" in text
    run = dataclasses.replace(template, results=RankingSettings(scoring=scoring))
    described = describe(run, Checkpoint("/m", {}), pa.schema([]))
    assert described.settings["scoring"]["laughter"] == 0.75


def test_help_has_what_changes_results_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    paths, results, execution = (
        text.index(title) for title in ("input and output", "\nchanges results", "\nnever changes results")
    )
    assert paths < text.index("--manifest") < text.index("--config") < results
    assert results < text.index("--preset") < text.index("--temperature") < text.index("--keep") < execution
    assert (
        execution < text.index("--samplers MIN[:MAX]") < text.index("--lanes") < text.index("--worker-logs")
    )


def test_what_is_printed_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*PATHS, "--preset", "fast", "--keep", "3", "--samplers", "2:8", "--penalized-tokens", "1", "2"]
    given += ["--retry-failed", "--no-do-sample", "--audio-root", "/voices", "--manifest", "a.csv", "b.csv"]
    text = printed(capsys, *given)
    (tmp_path / "run.yaml").write_text(text)
    assert read("--config", str(tmp_path / "run.yaml")) == read(*given)
    assert printed(capsys, "--config", str(tmp_path / "run.yaml")) == text
    assert set(yaml.safe_load(text)) == {field.name for field in dataclasses.fields(Run)}


def test_a_checkpoint_folder_brings_settings_of_results_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brought = {
        "results": {"scoring": {"scoring_length": 100}, "sampling": {"max_new_tokens": 90, "top_k": 7}}
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(brought))
    paths = ["--manifest", "m.csv", "--output", "out", "--model", str(tmp_path)]
    results = read(*paths, "--top-k", "5").results
    assert isinstance(results, ResultSettings)
    assert (results.scoring.scoring_length, results.sampling.max_new_tokens) == (100, 90)
    assert results.sampling.top_k == 5, "what is told goes before what is brought"
    ranked = read(*paths, template=rank.TEMPLATE).results
    assert ranked.scoring.scoring_length == 100, "a job has no use for all of it"
    (tmp_path / "run.yaml").write_text("output: /elsewhere")
    assert "there is no setting 'output'" in refusal(capsys, *paths)


def test_a_configuration_can_be_printed_before_the_paths_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = yaml.safe_load(printed(capsys, "--seed", "5"))
    assert "manifest" not in values
    assert values["results"]["sampling"]["seed"] == 5
    assert values["results"]["scoring"] == dataclasses.asdict(ScoringSettings())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.yaml",
            "manifest: m.csv\noutput: out\nmodel: model\n"
            "results: {num_candidates: 4, sampling: {temperature: 1e-1, max_new_tokens: 600}}\n"
            "execution: {samplers: {max_size: 2, num_gpus: null}}\n",
        ),
        (
            "run.toml",
            'manifest = ["m.csv"]\noutput = "out"\nmodel = "model"\n[results]\nnum_candidates = 4\n'
            "[results.sampling]\ntemperature = 0.1\nmax_new_tokens = 600\n"
            "[execution.samplers]\nmax_size = 2\n",
        ),
    ],
)
def test_options_go_before_the_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    run = read("--config", str(path), "--scoring-length", "700", "--seed", "3", "--gpus-per-sampler", "0.5")
    assert (run.manifest, run.output, run.model) == (("m.csv",), "out", "model")
    assert run.execution.samplers == Pool(1, 2, 0.5)
    results = run.results
    assert isinstance(results, ResultSettings)
    # 600 tokens alone would be more than can be scored: only the whole is judged.
    assert (results.sampling.max_new_tokens, results.scoring.scoring_length) == (600, 700)
    assert (results.num_candidates, results.sampling.temperature, results.sampling.seed) == (4, 0.1, 3)
    assert results.sampling.penalized_tokens == (1,)
    overridden = read("--config", str(path), "--preset", "fast", "--scoring-length", "700").results
    assert isinstance(overridden, ResultSettings)
    assert overridden.num_candidates == 96


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("results: {sampling: {temprature: 1}}", "there is no setting 'results.sampling.temprature'"),
        ("colour: blue", "there is no setting 'colour'"),
        ("results: 5", "there is no setting 'results'"),
        ("[1, 2]", "there is no setting ''"),
        ("results: {num_candidates: many}", "results.num_candidates: invalid value 'many'"),
        ("results: {num_candidates: null}", "results.num_candidates: invalid value None"),
        ("results: {model: {dtype: int8}}", "results.model.dtype: invalid value 'int8'"),
        ("execution: {gpus: [1]}", "execution.gpus: invalid value [1]"),
        ("results: {", "while parsing"),
    ],
)
def test_a_bad_file_is_named_with_the_key(
    tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    message = refusal(capsys, *PATHS, "--config", str(path)).splitlines()[-1]
    assert f"error: {path}: " in message
    assert expected in message
    assert str(tmp_path / "none") in refusal(capsys, *PATHS, "--config", str(tmp_path / "none"))


def test_what_is_required_may_stand_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("output: out\n")
    message = refusal(capsys, "--config", str(tmp_path / "run.yaml"))
    assert "the following arguments are required: --manifest, --model\n" in message


def test_earlier_names_still_work() -> None:
    old = read(*PATHS, "--max-speech-tokens", "300", "--sample-top-k", "7", "--greedy", "--rank-unfinished")
    new = read(*PATHS, "--max-new-tokens=300", "--top-k=7", "--no-do-sample", "--no-unfinished-last")
    assert old == new
    assert isinstance(new.results, ResultSettings)
    assert (new.results.sampling.top_k, new.results.scoring.keep) == (7, None)
