"""ClvpProcessor: both parts in one call, text arguments that leave audio alone, files; and its dictionary."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from clvp.audio.features import ClvpFeatureExtractor
from clvp.audio.processor import ClvpProcessor
from clvp.batch import BatchFeature
from clvp.text.tokenizer import ClvpTokenizer

CHECKPOINT = Path(__file__).parent.parent / "data" / "clvp_dev"
RATE = 22050
TEXT = "This is an example text."


@pytest.fixture(scope="module")
def processor() -> ClvpProcessor:
    return ClvpProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(30_000) * 0.1).astype(np.float32)


def test_text_and_audio_as_transformers(processor: ClvpProcessor, clip: np.ndarray) -> None:
    reference = transformers.ClvpProcessor.from_pretrained(CHECKPOINT)
    for name in ("raw_speech", "audio"):
        ours = processor(**{name: clip}, sampling_rate=RATE, text=TEXT, return_tensors="pt")
        theirs = reference(audio=clip, sampling_rate=RATE, text=TEXT, return_tensors="pt")
        assert set(ours) == set(theirs) == {"input_ids", "attention_mask", "input_features"}
        assert torch.equal(ours.input_ids, theirs["input_ids"])
        assert torch.equal(ours.attention_mask, theirs["attention_mask"])
        torch.testing.assert_close(ours.input_features, theirs["input_features"], rtol=0, atol=2e-5)
    assert ours.attention_mask.shape == ours.input_ids.shape


def test_parts_alone(processor: ClvpProcessor, clip: np.ndarray) -> None:
    assert processor(text=TEXT) == processor.tokenizer(TEXT)
    audio = processor(raw_speech=clip, sampling_rate=RATE, return_tensors="pt")
    direct = processor.feature_extractor(clip, sampling_rate=RATE, return_tensors="pt")
    assert set(audio) == {"input_features", "attention_mask"}
    for key, value in direct.items():
        assert torch.equal(audio[key], value)


def test_padding_of_texts_leaves_audio_at_six_seconds(processor: ClvpProcessor, clip: np.ndarray) -> None:
    texts = [TEXT, "Short."]
    out = processor(
        text=texts, raw_speech=[clip, clip[:9000]], sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    expected = processor.feature_extractor([clip, clip[:9000]], sampling_rate=RATE, return_tensors="pt")
    assert out.input_features.shape == (2, 80, 517)
    assert torch.equal(out.input_features, expected.input_features)
    assert out.input_ids.shape == out.attention_mask.shape == (2, 15)
    assert out.attention_mask.sum(1).tolist() == [15, len(processor.tokenizer("Short.")["input_ids"])]


def test_max_length_is_about_text(processor: ClvpProcessor, clip: np.ndarray) -> None:
    arguments = {"padding": "max_length", "max_length": 20, "truncation": True, "return_tensors": "pt"}
    out = processor(text=TEXT, raw_speech=clip, sampling_rate=RATE, **arguments)
    assert out.input_features.shape == (1, 80, 517)
    assert out.input_ids.shape == (1, 20)
    assert processor(text=TEXT, raw_speech=clip, sampling_rate=RATE, max_length=3)["input_ids"] == [
        147,
        2,
        54,
    ]
    with pytest.raises(ValueError, match="feature_extractor"):
        processor(raw_speech=clip, sampling_rate=RATE, max_length=20)


def test_several_clips_of_each_voice(processor: ClvpProcessor, clip: np.ndarray) -> None:
    voices = [[clip, clip[:9000]], [clip[:8000], clip[:7000]]]
    out = processor(
        text=[TEXT, "Short."], raw_speech=voices, sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    assert out.input_features.shape == (2, 2, 80, 517)
    flat = processor.feature_extractor([c for clips in voices for c in clips], RATE, return_tensors="pt")
    assert torch.equal(out.input_features.flatten(0, 1), flat.input_features)
    uneven = processor(text=TEXT, raw_speech=[[clip], [clip, clip]], sampling_rate=RATE, return_tensors="pt")
    assert [len(clips) for clips in uneven.to(torch.float64).input_features] == [1, 2]
    assert uneven.input_features[0].dtype == torch.float64


def test_bad_calls_say_what_is_wrong(processor: ClvpProcessor, clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="raw_speech, text, or both"):
        processor()
    with pytest.raises(ValueError, match="two names"):
        processor(raw_speech=clip, audio=clip, sampling_rate=RATE)
    with pytest.raises(ValueError, match="16000"):
        processor(raw_speech=clip, sampling_rate=16000, text=TEXT)
    with pytest.raises(TypeError, match="sampling_freq"):
        processor(raw_speech=clip, sampling_freq=RATE)


def test_decode(processor: ClvpProcessor) -> None:
    ids = processor(text=["Hello world", "Short."])["input_ids"]
    assert processor.decode(ids[0]) == "hello world"
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids) == ["hello world", "short."]


def test_saved_and_loaded_is_identical(processor: ClvpProcessor, tmp_path: Path) -> None:
    tortoise = ClvpProcessor.from_pretrained(CHECKPOINT, normalizer="tortoise")
    paths = tortoise.save_pretrained(tmp_path)
    assert all(Path(path).is_file() for path in paths)
    loaded = ClvpProcessor.from_pretrained(tmp_path)
    assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded(text="1st of 1984") == tortoise(text="1st of 1984") != processor(text="1st of 1984")
    assert processor.model_input_names == ["input_ids", "input_features", "attention_mask"]


def test_transformers_loads_what_we_save_and_we_what_it_saves(
    processor: ClvpProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path / "ours")
    theirs = transformers.ClvpProcessor.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = ClvpProcessor.from_pretrained(tmp_path / "theirs")
    assert back.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert back(text=TEXT) == processor(text=TEXT)


def test_overrides_reach_the_part_they_belong_to() -> None:
    processor = ClvpProcessor.from_pretrained(CHECKPOINT, pad_token="(PAD)", sampling_rate=16000)
    assert processor.tokenizer.pad_token_id == 256
    assert processor.tokenizer(["a", "a b"], padding=True)["input_ids"][0] == [14, 256, 256]
    assert processor.feature_extractor.sampling_rate == 16000
    with pytest.raises(TypeError, match="sampling_freq"):
        ClvpProcessor.from_pretrained(CHECKPOINT, sampling_freq=16000)


def test_parts_are_attributes_and_pickle(processor: ClvpProcessor) -> None:
    assert isinstance(processor.tokenizer, ClvpTokenizer)
    assert isinstance(processor.feature_extractor, ClvpFeatureExtractor)
    assert pickle.loads(pickle.dumps(processor))(text=TEXT) == processor(text=TEXT)


# ---- the dictionary ----


def test_batch_feature_is_a_dictionary_with_attributes() -> None:
    batch = BatchFeature(input_ids=torch.tensor([[1]]), input_features=torch.zeros(1, 2))
    assert batch.input_ids is batch["input_ids"]
    assert (lambda **inputs: set(inputs))(**batch) == {"input_ids", "input_features"}
    assert batch.data == dict(batch)
    assert not hasattr(batch, "attention_mask")
    with pytest.raises(AttributeError, match=r"attention_mask.*input_ids, input_features"):
        _ = batch.attention_mask
    assert pickle.loads(pickle.dumps(batch)).input_ids.tolist() == [[1]]


def test_batch_feature_moves() -> None:
    batch = BatchFeature(
        ids=torch.tensor([1]), mel=torch.zeros(2), clips=[torch.zeros(1)], name="a", n={"x": 1}
    )
    assert batch.to(torch.bfloat16) is batch
    assert (batch.ids.dtype, batch.mel.dtype, batch.clips[0].dtype) == (
        torch.int64,
        torch.bfloat16,
        torch.bfloat16,
    )
    batch.to("meta", torch.float16)
    assert (batch.ids.device.type, batch.mel.device.type, batch.mel.dtype) == ("meta", "meta", torch.float16)
    assert (batch.name, batch.n) == ("a", {"x": 1})
    other = BatchFeature(mel=torch.zeros(2)).to(device=torch.device("meta"), dtype=torch.float64)
    assert (other.mel.device.type, other.mel.dtype) == ("meta", torch.float64)
    with pytest.raises(TypeError, match="one device and one dtype"):
        batch.to("cpu", "meta")
    with pytest.raises(TypeError, match="one device and one dtype"):
        batch.to(1.5)
