"""The embedded model speaks, and a recognizer that others trained understands it: tests that listen.

Each bug of a kind that once turned speech into noise somewhere is put in here, and heard.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clvp.audio.mel import SAMPLING_RATE as CLIP_RATE
from clvp.waveform import CodecWaveformDecoder, Preset, Speaker, WaveformParams
from clvp.waveform.speaker import read_audio
from clvp.waveform.vocoder import SAMPLING_RATE

transcribe = pytest.importorskip("clvp.quality.transcribe", reason="needs pip install clvp[measures]")

CLIPS = Path(__file__).parents[1] / "examples" / "demo" / "audio"
# Of the words that its training has, in combinations that it has not.
SENTENCES = {
    "the museum opens at nine every morning": "ada_16khz.wav",
    "it was windy all week in the north": "ada_16khz.wav",
    "thursday will be warm and sunny": "cleo_48khz_24bit.wav",
    "please bring the old clock after dinner": "ben_44khz_stereo.flac",
    "the taxi from dublin arrives at twelve thirty": "dan_24khz_1.ogg",
    "i can see nine green boats near the river": "cleo_48khz_24bit.wav",
}
FEW = Preset(4, WaveformParams())


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker.from_pretrained("demo")


@pytest.fixture(scope="module")
def recognizer() -> "Callable[[str, torch.Tensor], tuple[int, int]]":
    """Wrong words and words of a text in a waveform."""
    try:
        measure = transcribe.Transcribe()
    except FileNotFoundError as error:
        pytest.skip(str(error))

    def count(text: str, waveform_N: torch.Tensor) -> tuple[int, int]:
        found = measure(waveform_N.numpy(), SAMPLING_RATE, text, np.zeros(0, np.float32))
        return round(found["wer"] * found["words"]), found["words"]

    return count


def wrong_share(speaker: Speaker, recognizer: Callable[[str, torch.Tensor], tuple[int, int]]) -> float:
    """Of the words of all sentences."""
    counts = np.array(
        [recognizer(text, speaker.speak(text, CLIPS / clip, preset=FEW)) for text, clip in SENTENCES.items()]
    )
    wrong, words = counts.sum(axis=0)
    return float(wrong / words)


MOST_WRONG = 0.5  # the model as it is has 0.18 of 45 words; noise and other sentences have about 1


def test_most_words_are_understood(speaker: Speaker, recognizer: Callable) -> None:
    assert wrong_share(speaker, recognizer) < MOST_WRONG


def shift_the_codes(speaker: Speaker) -> None:
    assert isinstance(speaker.decoder, CodecWaveformDecoder)
    places = speaker.decoder.codec.decoder.quantizer
    values = places.values
    places.values = lambda codes: values((codes + 1) % places.levels.prod())  # type: ignore[method-assign]


def drop_the_mel_norms(speaker: Speaker) -> None:
    extractor = speaker.processor.feature_extractor
    extractor.mel_norms = np.ones_like(extractor.mel_norms)


def skip_a_text_position(speaker: Speaker) -> None:
    weight = speaker.model.conditioning_encoder.text_position_embedding.weight
    weight.data = weight.data.roll(-1, 0)


# Mel positions that are skipped are hardly heard (one: 27%, two: 24% of the words wrong); golden tests see
# them.
BUGS = (shift_the_codes, drop_the_mel_norms, skip_a_text_position)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_heard(speaker: Speaker, recognizer: Callable, bug: Callable[[Speaker], None]) -> None:
    broken = copy.deepcopy(speaker)
    bug(broken)
    assert wrong_share(broken, recognizer) > MOST_WRONG


def test_scores_tell_which_speech_a_text_belongs_to(speaker: Speaker) -> None:
    """Scores of the wrong row would put each text to another one's speech."""
    clips = [read_audio(CLIPS / clip, 6.0) for clip in SENTENCES.values()]
    inputs = speaker.processor(
        text=list(SENTENCES), raw_speech=clips, sampling_rate=CLIP_RATE, return_tensors="pt", padding=True
    )
    found = speaker.model.generate(**inputs, seed=1)
    own = found.logits_per_text.diagonal()
    others = (found.logits_per_text.sum(dim=1) - own) / (len(SENTENCES) - 1)
    assert own.mean() > others.mean()
    assert (own > others).float().mean() > 0.5
