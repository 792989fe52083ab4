"""A cluster of unlike nodes: voices are the same to the bit wherever AVX2 is, scores to 1e-5."""

import pytest
import torch

from tests.other_processor import AVX2, results


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor has no AVX2")
def test_voices_are_equal_and_scores_close_on_unlike_processors_and_with_any_threads() -> None:
    """Where there is AVX512 the two processors differ in all their libraries; elsewhere in threads alone."""
    here, there = results({}, threads=1), results(AVX2, threads=2)
    assert len(set(here["voices"].values())) == len(here["voices"])
    assert there["voices"] == here["voices"]
    assert there["scores"] == pytest.approx(here["scores"], abs=1e-5)


@pytest.mark.slow
def test_without_mkls_strict_mode_they_would_differ() -> None:
    """The test above can fail: it is not that all ways of computing agree."""
    strict, loose = results({}, threads=1), results({"MKL_CBWR": "COMPATIBLE"}, threads=1)
    assert strict["voices"] != loose["voices"] or strict["scores"] != loose["scores"]
