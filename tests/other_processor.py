"""Results on this processor as if it were another, printed as JSON: what a cluster of unlike nodes computes.

Run in a process of its own, since libraries read what they may use when they are loaded.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def results(limits: dict[str, str], threads: int) -> dict[str, Any]:
    """`voices` (digests of log-mels of clips at several rates) and `scores` with these limits."""
    command = [sys.executable, "-m", "tests.other_processor", str(threads)]
    done = subprocess.run(command, env={**os.environ, **limits}, cwd=ROOT, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(threads: int) -> None:
    import numpy as np
    import torch

    from clvp import ClvpModelForConditionalGeneration
    from clvp.audio.clip import resample
    from clvp.audio.mel import log_mel
    from clvp.scoring import score_candidates

    torch.set_num_threads(threads)
    chance = np.random.default_rng(0)
    voices = {}
    for rate in (8_000, 16_000, 22_050, 44_100, 44_101, 48_000):
        times = np.arange(2 * rate) / rate
        tones = sum(np.sin(2 * np.pi * f * times) / f for f in (110.0, 311.7, 1050.3, 3400.1))
        clip = (tones * 20 + chance.normal(size=len(times)) * 0.01).astype(np.float32)
        mel_BMT = log_mel(resample(torch.from_numpy(clip), rate)[None])
        voices[str(rate)] = hashlib.sha256(mel_BMT.numpy().tobytes()).hexdigest()
    golden = Path(os.environ.get("CLVP_GOLDEN_HF") or ROOT / "tests/data/golden_hf")
    model = ClvpModelForConditionalGeneration.from_pretrained(golden)
    vocabulary = model.config.speech_config.vocab_size
    codes_KL = torch.from_numpy(chance.integers(0, vocabulary, size=(5, model.config.scoring_length)))
    scores = score_candidates(*model.encoders, torch.tensor([5, 9, 30, 7]), codes_KL)
    print(json.dumps({"voices": voices, "scores": scores.tolist()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
