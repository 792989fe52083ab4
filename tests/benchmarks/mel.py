"""Log-mel spectrograms: clips per second beside `transformers`' feature extractor, and the difference."""

import json
from pathlib import Path

import numpy as np
import transformers

from clvp import ClvpFeatureExtractor

from .harness import Table, interleaved, tell
from .report import main
from .workload import Workload

SETTINGS = Path(__file__).parents[1] / "data" / "clvp_dev" / "preprocessor_config.json"
CLIPS = 32
SECONDS = 6
REPETITIONS = 5


def clips(seed: int) -> list[np.ndarray]:
    """Noise under gliding tones, loud and soft, float32 at 22,050 Hz; each clip is different."""
    draw = np.random.default_rng(seed)
    time_N = np.arange(22050 * SECONDS) / 22050
    result = []
    for _ in range(CLIPS):
        low, high = draw.uniform(80, 400), draw.uniform(1000, 7000)
        glide_N = np.sin(2 * np.pi * (low * time_N + (high - low) * time_N**2 / (2 * SECONDS)))
        loudness_N = np.abs(np.sin(2 * np.pi * draw.uniform(0.5, 3) * time_N))
        wave_N = loudness_N * (0.5 * glide_N + 0.05 * draw.standard_normal(len(time_N)))
        result.append(wave_N.astype(np.float32))
    return result


def run(workload: Workload) -> list[Table]:
    """One table."""
    options = workload.options
    tell(f"mel: {CLIPS} clips of {SECONDS} s")
    settings = json.loads(SETTINGS.read_text())
    ours = ClvpFeatureExtractor.from_dict(settings)
    theirs = transformers.ClvpFeatureExtractor.from_dict(settings)
    waves = clips(options.seed)
    mels: dict[str, list[np.ndarray]] = {}

    def extract(name: str, extractor: ClvpFeatureExtractor) -> float:
        mels[name] = [
            extractor(wave, sampling_rate=22050, return_tensors="np")["input_features"][0] for wave in waves
        ]
        return len(waves)

    contestants = {"ours": lambda: extract("ours", ours), "theirs": lambda: extract("theirs", theirs)}
    rates = interleaved(contestants, options.repeat(REPETITIONS), options.device)
    difference = max(np.abs(a - b).max() for a, b in zip(mels["ours"], mels["theirs"], strict=True))
    return [
        Table(
            title="Mel extraction",
            columns=["", "clips/s", "ratio", "largest difference"],
            rows=[
                ["ours", str(rates["ours"]), f"{rates['ours'].median / rates['theirs'].median:.1f}×", ""],
                ["transformers", str(rates["theirs"]), "", f"{difference:.1e}"],
            ],
            notes=f"{CLIPS} clips of {SECONDS} s, one at a time, on the CPU.",
        )
    ]


if __name__ == "__main__":
    main(run, __doc__)
