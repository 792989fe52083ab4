import dataclasses

import pytest

from clvp.sampling import SamplingParams
from pipeline.rows.memory import MAX_JSON_CONTAINERS
from pipeline.rows.payloads import speech_candidates
from pipeline.settings import (
    MAX_CANDIDATES,
    PRESETS,
    ExecutionSettings,
    ModelSettings,
    Pool,
    RankingSettings,
    ResultSettings,
    Run,
    ScoringSettings,
)


def test_defaults_are_tortoise_s() -> None:
    settings = ResultSettings()
    counts = {name: preset.candidates for name, preset in PRESETS.items()}
    assert counts == {"ultra_fast": 16, "efficient": 96, "fast": 96, "standard": 256, "high_quality": 256}
    assert settings.num_candidates == 16
    sampling = settings.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (
        0.8,
        0.8,
        50,
        2.0,
    )
    assert (sampling.max_new_tokens, sampling.penalized_tokens, sampling.mel_positions) == (
        500,
        (1,),
        "trained",
    )
    assert settings.scoring.scoring_length == 500
    assert settings.model.normalizer == "tortoise"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ResultSettings(num_candidates=0), "num_candidates"),
        (lambda: ResultSettings(num_candidates=MAX_CANDIDATES + 1), "num_candidates"),
        (lambda: Run((), "out", "model", RankingSettings(), extend="earlier"), "extend"),
        (lambda: ResultSettings(audio_seconds=0), "audio_seconds"),
        (lambda: ResultSettings(scoring=ScoringSettings(scoring_length=400)), "max_new_tokens=500 exceeds"),
        (lambda: ScoringSettings(keep=0), "keep"),
        (lambda: ModelSettings(dtype="int8"), "dtype"),  # type: ignore[arg-type]
        (lambda: ModelSettings(normalizer="none"), "normalizer"),  # type: ignore[arg-type]
        (lambda: Pool(min_size=0), "min_size"),
        (lambda: Pool(min_size=3, max_size=2), "max_size"),
        (lambda: Pool(num_gpus=-1), "num_gpus"),
        (lambda: ExecutionSettings(rows_per_block=0), "rows_per_block"),
        (lambda: SamplingParams(temperature=0), "temperature"),
    ],
)
def test_a_value_out_of_range_is_named(make: object, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()  # type: ignore[operator]


def test_no_setting_is_both_of_results_and_of_execution() -> None:
    names = {field.name for field in dataclasses.fields(ExecutionSettings)}
    nested = (ResultSettings, ScoringSettings, ModelSettings, SamplingParams)
    assert not names & {field.name for kind in nested for field in dataclasses.fields(kind)}


def test_as_many_candidates_as_a_run_may_have_can_be_ranked_again() -> None:
    """In any form, and with the longest candidates that the model has positions for."""
    most = ResultSettings(num_candidates=MAX_CANDIDATES).num_candidates
    stored = [{"candidate": k, "finished": True, "speech_ids": [8191] * 608} for k in range(most)]
    assert speech_candidates(stored, "") == stored
    assert 2 * most + 1 <= MAX_JSON_CONTAINERS
