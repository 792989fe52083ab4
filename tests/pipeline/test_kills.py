"""Runs that are killed and started again, shorter than `python -m tests.soak` does it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_server import S3Server
from tests.soak.moments import VICTIMS, Kill, draw_kills
from tests.soak.output import Stored
from tests.soak.soak import run_undisturbed, soak
from tests.soak.workload import Workload, make_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = {
    "local": [
        Kill("decoder", "publishing", share=0.4, delay=0.0),
        Kill("ray", "end", share=1.0, delay=0.1),
    ],
    "s3": [
        Kill("ranker", "streaming", share=0.1, delay=0.2),
        Kill("driver", "publishing", share=0.3, delay=0.05),
    ],
}


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, Stored]:
    """Rows whose candidates become sound and are ranked by a measure, and what an undisturbed run stores."""
    folder = tmp_path_factory.mktemp("sounding")
    workload = make_workload(folder, rows=24, sound=True)
    measured = {
        "--measure": "tests.pipeline.fake_measures:Loudness",
        "--audio": "all",
        "--rank-by": "1 - loud",
    }
    workload = replace(workload, options={**workload.options, **measured})
    return workload, run_undisturbed(workload, str(folder / "undisturbed"))


@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.proof)])
def test_killed_runs_continue_to_the_same_tokens_and_the_same_sound(
    place: str, sounding: tuple[Workload, Stored], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    workload, undisturbed = sounding
    assert undisturbed.data["audio"].null_count == 0
    assert all(len(row) == 3 for row in undisturbed.data["measures"].to_pylist())
    output = str(tmp_path / "out")
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3")
        output = server.uri("killed")
    result = soak(workload, output, KILLS[place], undisturbed, seed=1)
    assert result.killed + result.too_late == KILLS[place]
    late = [kill for kill in result.too_late if kill.phase != "end"]
    assert not late, "the rows must be enough for the moments"


def test_moments_are_drawn_from_the_seed() -> None:
    kills = draw_kills(16, seed=3)
    assert kills == draw_kills(16, seed=3) != draw_kills(16, seed=4)
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert {kill.phase for kill in kills} == {"startup", "streaming", "publishing", "end"}
    assert [kill.share for kill in kills] == sorted(kill.share for kill in kills)
