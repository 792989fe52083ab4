"""ClvpFeatureExtractor: golden mels, live parity with `transformers`, inputs of every kind, files."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.audio_utils import mel_filter_bank

from clvp.audio.features import ClvpFeatureExtractor
from clvp.audio.mel import TORTOISE_MEL_NORMS, log_mel

DATA = Path(__file__).parent.parent / "data"
CHECKPOINT = DATA / "clvp_dev"
RATE = 22050
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def extractor() -> ClvpFeatureExtractor:
    return ClvpFeatureExtractor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> transformers.ClvpFeatureExtractor:
    return transformers.ClvpFeatureExtractor.from_pretrained(CHECKPOINT)


def _noise(samples: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * scale).astype(np.float32)


def _seconds(samples: int) -> np.ndarray:
    return np.arange(samples) / RATE


# ---- numbers ----


@pytest.mark.parametrize("length", ["short", "long"])
def test_golden_mels(length: str, extractor: ClvpFeatureExtractor) -> None:
    golden = load_file(DATA / "golden_hf" / "golden.safetensors")
    mel = extractor(golden[f"wave_{length}"], sampling_rate=RATE, return_tensors="pt").input_features
    assert mel.dtype == torch.float32
    torch.testing.assert_close(mel, golden[f"mel_{length}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "clip",
    [
        _noise(132_300),
        _noise(40_000, seed=1, scale=1e-4),
        np.zeros(1000, dtype=np.float32),
        np.ones(132_300, dtype=np.float32),
        np.sin(2 * np.pi * 440 * _seconds(132_300)),  # loud tones: float32 spectra are off by 1e-4 and more
        np.sin(2 * np.pi * (50 + 900 * _seconds(132_300)) * _seconds(132_300)),
        np.sign(np.sin(2 * np.pi * 100 * _seconds(150_000))),
        np.eye(1, 5000, 2500)[0],
    ],
    ids=["noise", "quiet", "silence", "constant", "tone", "sweep", "square", "impulse"],
)
def test_parity_with_transformers(
    clip: np.ndarray, extractor: ClvpFeatureExtractor, reference: transformers.ClvpFeatureExtractor
) -> None:
    clip = clip.astype(np.float32)
    ours = extractor(clip, sampling_rate=RATE, return_tensors="np")
    theirs = reference(clip, sampling_rate=RATE, return_tensors="np")
    assert ours["input_features"].shape == (1, 80, 517)
    np.testing.assert_allclose(ours["input_features"], theirs["input_features"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])
    assert ours["attention_mask"].dtype == theirs["attention_mask"].dtype


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "longest"},
        {"padding": True, "max_length": 3000},
        {"padding": "max_length", "max_length": 5000},
        {"padding": True, "pad_to_multiple_of": 1000},
        {"max_length": 5000, "pad_to_multiple_of": 512},
        {"return_attention_mask": False},
    ],
)
def test_padding_as_transformers(
    arguments: dict, extractor: ClvpFeatureExtractor, reference: transformers.ClvpFeatureExtractor
) -> None:
    clips = [_noise(length, seed=length) for length in (800, 4100, 2500)]
    ours = extractor(clips, sampling_rate=RATE, return_tensors="pt", **arguments)
    theirs = reference(clips, sampling_rate=RATE, return_tensors="pt", **arguments)
    assert set(ours) == set(theirs)
    torch.testing.assert_close(ours.input_features, theirs["input_features"], rtol=0, atol=TOLERANCE)
    if "attention_mask" in theirs:
        assert torch.equal(ours.attention_mask, theirs["attention_mask"])


def test_unpadded_clips_keep_their_lengths(
    extractor: ClvpFeatureExtractor, reference: transformers.ClvpFeatureExtractor
) -> None:
    clips = [_noise(800), _noise(4100)]
    features = extractor(clips, sampling_rate=RATE, padding=False)["input_features"]
    assert [mel.shape for mel in features] == [(80, 1 + 800 // 256), (80, 1 + 4100 // 256)]
    for clip, mel in zip(clips, features, strict=True):
        alone = reference([clip], sampling_rate=RATE, padding=False)["input_features"][0]
        np.testing.assert_allclose(mel, alone, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="pad them"):
        extractor(clips, sampling_rate=RATE, padding=False, return_tensors="pt")
    with pytest.raises(ValueError, match="512 samples are too few"):
        extractor(_noise(512), sampling_rate=RATE, padding=False)


def test_the_first_seconds_are_kept(extractor: ClvpFeatureExtractor) -> None:
    clip = _noise(200_000)
    whole = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_features
    start = extractor(clip[:132_300], sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(whole, start)
    uncut = extractor(clip, sampling_rate=RATE, return_tensors="pt", truncation=False).input_features
    assert uncut.shape == (1, 80, 1 + 200_000 // 256)


def test_silence_is_positive(extractor: ClvpFeatureExtractor) -> None:
    mel = extractor(np.zeros(100), sampling_rate=RATE, return_tensors="pt").input_features
    assert (round(mel.min().item(), 2), round(mel.max().item(), 2)) == (1.21, 7.18)


def test_mel_filters_of_the_reference(extractor: ClvpFeatureExtractor) -> None:
    expected = mel_filter_bank(513, 80, 0.0, 8000.0, RATE, norm="slaney", mel_scale="htk")
    np.testing.assert_allclose(extractor.mel_filters, expected, rtol=0, atol=1e-12)


# ---- log_mel ----


def test_a_clip_has_the_same_bits_in_every_batch(extractor: ClvpFeatureExtractor) -> None:
    waveforms = torch.from_numpy(np.stack([_noise(132_300, seed) for seed in range(5)]))
    together = log_mel(waveforms)
    for order in ([0], [3, 0], [4, 2, 0, 1, 3]):
        assert torch.equal(log_mel(waveforms[order]), together[order])
    called = extractor(list(waveforms), sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(called, together)
    assert torch.equal(extractor.log_mel(waveforms[1:2])[0], together[1])


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    waveforms = torch.from_numpy(_noise(132_300))[None]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(log_mel(waveforms))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_log_mel_defaults_are_the_checkpoints(extractor: ClvpFeatureExtractor) -> None:
    assert extractor.mel_norms == list(TORTOISE_MEL_NORMS)
    waveforms = torch.from_numpy(_noise(3000))[None]
    norms = torch.tensor(TORTOISE_MEL_NORMS)[:, None]
    torch.testing.assert_close(log_mel(waveforms) * norms, log_mel(waveforms, None)[0][None])
    assert log_mel(torch.zeros(0, 3000)).shape == (0, 80, 12)


@pytest.mark.parametrize(
    ("waveforms", "norms", "message"),
    [
        (torch.zeros(3000), TORTOISE_MEL_NORMS, r"\[B, N\]"),
        (torch.zeros(1, 512), TORTOISE_MEL_NORMS, "512 samples"),
        (torch.zeros(1, 3000), [1.0, 2.0], "2 mel norms"),
    ],
)
def test_log_mel_rejects(waveforms: torch.Tensor, norms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(waveforms, norms)


# ---- what may be passed ----


def test_every_kind_of_audio_gives_the_same(extractor: ClvpFeatureExtractor) -> None:
    clips = [_noise(length, seed=length) for length in (800, 800, 800)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="np").input_features
    batches = [
        [torch.from_numpy(clip) for clip in clips],
        [clip.tolist() for clip in clips],
        tuple(clip.tolist() for clip in clips),
        np.stack(clips),
        torch.from_numpy(np.stack(clips)),
        np.stack(clips).astype(np.float64),
        [clip[None] for clip in clips],
        [clip[:, None] for clip in clips],
    ]
    for batch in batches:
        got = extractor(batch, sampling_rate=RATE, return_tensors="np").input_features
        np.testing.assert_array_equal(got, expected)
    for single in (
        clips[0],
        clips[0].tolist(),
        torch.from_numpy(clips[0]),
        clips[0][None],
        clips[0][:, None],
    ):
        got = extractor(single, sampling_rate=RATE, return_tensors="np").input_features
        np.testing.assert_array_equal(got, expected[:1])


def test_gradients_and_half_precision_are_no_obstacle(extractor: ClvpFeatureExtractor) -> None:
    clip = torch.from_numpy(_noise(800)).bfloat16()
    expected = extractor(clip.float(), sampling_rate=RATE, return_tensors="pt").input_features
    for variant in (clip, clip.float().requires_grad_()):
        got = extractor(variant, sampling_rate=RATE, return_tensors="pt").input_features
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_integers_are_scaled(dtype: type, scale: int, extractor: ClvpFeatureExtractor) -> None:
    integers = (np.random.default_rng(0).integers(-(2**15), 2**15, 2000) * (scale // 2**15)).astype(dtype)
    floats = (integers / scale).astype(np.float32)
    got = extractor(integers, sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(got, extractor(floats, sampling_rate=RATE, return_tensors="pt").input_features)
    assert torch.equal(got, extractor(torch.from_numpy(integers), RATE, return_tensors="pt").input_features)


def test_unsigned_bytes_are_centred(extractor: ClvpFeatureExtractor) -> None:
    silent = extractor(np.full(2000, 128, dtype=np.uint8), sampling_rate=RATE, return_tensors="pt")
    zeros = extractor(np.zeros(2000), sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(silent.input_features, zeros.input_features)
    assert torch.equal(extractor([0] * 2000, RATE, return_tensors="pt").input_features, zeros.input_features)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 3000)), "stereo or two clips"),
        (torch.zeros(2, 3000), "stereo or two clips"),
        (np.zeros((3000, 2)), r"looks like \[samples, channels\]"),
        (np.zeros((3000, 2)).tolist(), r"looks like \[samples, channels\]"),
        ([np.zeros((2, 3000))], r"clip 0 has the shape \[2, 3000\]"),
        ([np.zeros(3000), np.zeros((3000, 2))], r"clip 1 has the shape"),
        (np.zeros((2, 2, 3000)), "3 dimensions"),
        ([], "raw_speech is empty"),
        (np.zeros(0), "clip 0 is empty"),
        ([np.zeros(900), np.zeros(0)], "clip 1 is empty"),
        ([np.zeros(900), []], "clip 1 is empty"),
        ([0.1, float("nan")], "clip 0 is not finite: sample 1 is nan"),
        ([np.zeros(900), np.array([0, 0, np.inf])], "clip 1 is not finite: sample 2 is inf"),
        (np.array([1e300, 0.0]), "not finite"),
        (np.array([100, -3000]), "int64"),
        (np.array([True, False]), "bool"),
        (np.array([1j]), "complex"),
        ([[0.1, "a"]], "type"),
    ],
)
def test_bad_audio_says_what_is_wrong(audio: object, message: str, extractor: ClvpFeatureExtractor) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=RATE)


def test_bad_arguments_say_what_is_wrong(extractor: ClvpFeatureExtractor) -> None:
    clip = _noise(800)
    with pytest.raises(ValueError, match="16000 samples per second, the model expects 22050"):
        extractor(clip, sampling_rate=16000)
    with pytest.raises(TypeError, match="str"):
        extractor("clip.wav", sampling_rate=RATE)
    with pytest.raises(ValueError, match="'shortest'"):
        extractor(clip, sampling_rate=RATE, padding="shortest")
    with pytest.raises(ValueError, match="positive"):
        extractor(clip, sampling_rate=RATE, max_length=0)
    with pytest.raises(ValueError, match="'tf'"):
        extractor(clip, sampling_rate=RATE, return_tensors="tf")
    with pytest.raises(ValueError, match="3 mel_norms"):
        ClvpFeatureExtractor(mel_norms=[1, 2, 3])
    with pytest.raises(ValueError, match="padding_side"):
        ClvpFeatureExtractor(padding_side="both")


def test_warnings(extractor: ClvpFeatureExtractor) -> None:
    clip = _noise(800)
    with pytest.warns(UserWarning, match="sampling_rate"):
        extractor(clip)
    with pytest.warns(UserWarning, match="clip 0 reaches"):
        extractor(clip * 30_000, sampling_rate=RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(clip, sampling_rate=RATE)


def test_clips_grouped_by_voice(extractor: ClvpFeatureExtractor) -> None:
    a, b, c, d = (_noise(length, seed=length) for length in (800, 900, 1000, 1100))
    flat = extractor([a, b, c, d], sampling_rate=RATE, return_tensors="pt")
    even = extractor([[a, b], [c.tolist(), torch.from_numpy(d)]], sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(even.input_features, flat.input_features.view(2, 2, 80, 517))
    assert torch.equal(even.attention_mask, flat.attention_mask.view(2, 2, -1))
    uneven = extractor([[a, b, c], [d]], sampling_rate=RATE, return_tensors="pt")
    assert [tuple(mels.shape) for mels in uneven.input_features] == [(3, 80, 517), (1, 80, 517)]
    assert torch.equal(torch.cat(uneven.input_features), flat.input_features)
    lists = extractor([[a, b, c], [d]], sampling_rate=RATE)["input_features"]
    assert [len(clips) for clips in lists] == [3, 1]


def test_left_padding(extractor: ClvpFeatureExtractor) -> None:
    left = ClvpFeatureExtractor.from_pretrained(CHECKPOINT, padding_side="left")
    clip = _noise(2000)
    shifted = np.concatenate([np.zeros(1000, dtype=np.float32), clip])
    got = left(clip, sampling_rate=RATE, max_length=3000, return_tensors="pt")
    expected = extractor(shifted, sampling_rate=RATE, max_length=3000, return_tensors="pt")
    assert torch.equal(got.input_features, expected.input_features)
    assert got.attention_mask[0].tolist() == [0] * 1000 + [1] * 2000


# ---- files ----


def test_saved_and_loaded_is_identical(extractor: ClvpFeatureExtractor, tmp_path: Path) -> None:
    (path,) = extractor.save_pretrained(tmp_path)
    assert Path(path) == tmp_path / "preprocessor_config.json"
    loaded = ClvpFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    np.testing.assert_array_equal(loaded.mel_filters, extractor.mel_filters)
    theirs = transformers.ClvpFeatureExtractor.from_pretrained(tmp_path)
    assert theirs.mel_norms == extractor.mel_norms


def test_layout_of_the_hub(extractor: ClvpFeatureExtractor) -> None:
    on_hub = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    assert {key: extractor.to_dict()[key] for key in on_hub} == on_hub
    golden = ClvpFeatureExtractor.from_pretrained(DATA / "golden_hf").to_dict()
    saved = json.loads((DATA / "golden_hf" / "preprocessor_config.json").read_text())
    assert {key: golden[key] for key in saved} == saved


def test_json_round_trip(extractor: ClvpFeatureExtractor) -> None:
    stored = json.loads(json.dumps(extractor.to_dict()))
    assert ClvpFeatureExtractor.from_dict(stored).to_dict() == extractor.to_dict()
    small = ClvpFeatureExtractor.from_dict(extractor.to_dict(), default_audio_length=1)
    assert small(_noise(800), RATE, return_tensors="pt").input_features.shape == (1, 80, 1 + 22050 // 256)


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = ClvpFeatureExtractor(), transformers.ClvpFeatureExtractor()
    for name, value in ours.to_dict().items():
        if name != "processor_class":
            assert getattr(theirs, name, type(theirs).__name__) == value


def test_pickle(extractor: ClvpFeatureExtractor) -> None:
    twin = pickle.loads(pickle.dumps(extractor))
    assert twin.to_dict() == extractor.to_dict()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ClvpFeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a local folder"):
        ClvpFeatureExtractor.from_pretrained(str(tmp_path / "absent"))
