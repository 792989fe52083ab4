"""Runs that are killed and started again, shorter than `python -m tests.soak` does it."""

from pathlib import Path

import pytest

from tests.s3_server import S3Server
from tests.soak.moments import VICTIMS, Kill, draw_kills
from tests.soak.output import Stored
from tests.soak.soak import soak
from tests.soak.workload import Workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = {
    "local": [
        Kill("driver", "streaming", share=0.2, delay=0.3),
        Kill("sampler", "publishing", share=0.4, delay=0.0),
        Kill("ray", "end", share=1.0, delay=0.1),
    ],
    "s3": [
        Kill("ranker", "streaming", share=0.1, delay=0.2),
        Kill("driver", "publishing", share=0.3, delay=0.05),
    ],
}


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.proof)])
def test_killed_runs_continue_to_the_same_output(
    place: str, workload: Workload, undisturbed: Stored, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = str(tmp_path / "out")
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3")
        output = server.uri("killed")
    result = soak(workload, output, KILLS[place], undisturbed, seed=1)
    assert result.killed + result.too_late == KILLS[place]
    late = [kill for kill in result.too_late if kill.phase != "end"]
    assert not late, "the rows must be enough for the moments"


def test_moments_are_drawn_from_the_seed() -> None:
    kills = draw_kills(14, seed=3)
    assert kills == draw_kills(14, seed=3) != draw_kills(14, seed=4)
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert {kill.phase for kill in kills} == {"startup", "streaming", "publishing", "end"}
    assert [kill.share for kill in kills] == sorted(kill.share for kill in kills)
