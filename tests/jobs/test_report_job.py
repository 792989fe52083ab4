"""The report job: its files, what it prints, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import report
from tests.pipeline.synthetic_output import make_rows, write_data, write_run


def test_the_report_is_written_into_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, count=30, candidates=4)
    assert report.main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert lines[:3] == ["rows 30", "failed rows 9 (23 %)", "candidates 120"]
    assert lines[-2:] == [f"report {tmp_path / 'report.html'}", f"figures {tmp_path / 'report.json'}"]
    assert json.loads((tmp_path / "report.json").read_text())["rows"]["done"] == 30
    # No temporary file is left behind.
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "run.json",
        "report.html",
        "report.json",
    }


def test_the_files_can_go_elsewhere(tmp_path: Path) -> None:
    write_data(tmp_path / "out", make_rows(3, 2))
    html, figures = tmp_path / "a" / "x.html", tmp_path / "b" / "x.json"
    options = ["--output", str(tmp_path / "out"), "--html", str(html), "--json", str(figures)]
    assert report.main(options) == 0
    assert html.read_text().startswith("<!doctype html>")
    assert json.loads(figures.read_text())["report_version"] == 1
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "_scratch"] == ["data"]


def test_an_output_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--output", str(tmp_path / "nothing")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m jobs.report: error: ")
    assert printed.err.count("\n") == 1
    assert "holds no run" in printed.err


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, make_rows(3, 2))
    (tmp_path / "file").write_text("")
    assert report.main(["--output", str(tmp_path), "--html", str(tmp_path / "file" / "x.html")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("python -m jobs.report: error: ")
    assert printed.err.count("\n") == 1


def test_it_loads_neither_ray_nor_torch() -> None:
    code = "import sys, jobs.report; print([name for name in ('ray', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_output_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main([])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err
