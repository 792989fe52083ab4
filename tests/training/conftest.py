"""A corpus of chirps: each word is a tone of its own, and each speaker has a pitch."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clvp.audio.mel import SAMPLING_RATE
from clvp.codec import CodecConfig
from clvp.config import ClvpConfig
from clvp.training.codec import CodecNetwork, encode_corpus
from clvp.training.corpus import Corpus, prepare
from clvp.training.parts import Sizes

WORDS = ("one", "two", "three", "four")
PITCHES = {"high": 1.5, "low": 1.0}
WORD_SECONDS = 0.4


def spoken(words: list[str], pitch: float) -> np.ndarray:
    """[N] a tone for each word."""
    time = np.arange(int(WORD_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    tones = [np.sin(2 * np.pi * 300 * pitch * 1.5 ** WORDS.index(word) * time) for word in words]
    return np.concatenate(tones) * 0.3


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(24):
        words, speaker = list(rng.choice(WORDS, 3)), list(PITCHES)[index % 2]
        soundfile.write(folder / f"{index}.wav", spoken(words, PITCHES[speaker]), SAMPLING_RATE)
        ends = [WORD_SECONDS * (at + 1) for at in range(3)]
        row = {"id": str(index), "text": " ".join(words), "audio": f"{index}.wav", "speaker": speaker}
        lines.append(json.dumps({**row, "word_ends": ends}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    prepare(folder / "manifest.jsonl", folder / "data")
    corpus = Corpus(folder / "data", validation=4)
    torch.manual_seed(4)  # codes of an untrained encoder, by which words can be told apart
    encode_corpus(CodecNetwork(tiny_sizes().codec).eval().encoder, corpus)
    return corpus


def tiny_sizes() -> Sizes:
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    decoder = {
        "vocab_size": 18,
        "bos_token_id": 16,
        "eos_token_id": 17,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_mel_attn_blocks": 1,
        "max_position_embeddings": 40,
        "max_text_tokens": 40,
        "decoder_fixing_codes": (0, 0, 0, 0),
    }
    config = ClvpConfig.from_dict(
        {
            "text_config": encoder,
            "speech_config": encoder | {"vocab_size": 16},
            "decoder_config": decoder,
            "projection_dim": 32,
            "scoring_length": 32,
        }
    )
    return Sizes(
        CodecConfig(
            levels=(4, 4),
            hidden_sizes=(16, 16, 16),
            dilations=((1,), (), (1,)),
            decoder_dilations=((1,), (), (1, 2)),
        ),
        config,
    )
