"""A small English speech recognizer: Moonshine (Jeffries et al., 2024) by onnxruntime.

Its folder is that of the vendor's packages: an encoder, a decoder with and without a cache in one graph (as
Hugging Face's Optimum exports it), and a vocabulary.

N samples of 16 kHz.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from clvp.quality import RATE, packaged

MODELS = ("encoder_model", "decoder_model_merged")
VOCABULARY = "tokenizer.bin"
FOLDER = Path(sys.prefix, "share", "moonshine-tiny")  # where `make measures` puts it
START, STOP = 1, 2
SHORTEST = RATE // 10  # samples; the encoder's convolutions need about as many
TOKENS_PER_SECOND = 8  # of the fastest speech; whatever goes on for longer repeats itself


def recognizer_files(folder: str | None) -> list[Path]:
    """Encoder, decoder and vocabulary of a recognizer's folder; None is the one that `make measures` fills.

    The vocabulary may also be that of the package moonshine-voice. Raises FileNotFoundError.
    """
    place = Path(folder) if folder else FOLDER
    found = [
        path for name in MODELS for path in (place / f"{name}.onnx", place / f"{name}.ort") if path.is_file()
    ]
    if len(found) < len(MODELS):
        raise FileNotFoundError(
            f"{place} holds no {' and '.join(MODELS)} (.onnx or .ort) of a Moonshine recognizer: "
            "make measures, or name its folder by --recognizer"
        )
    own = place / VOCABULARY
    return [*found, own if own.is_file() else packaged("moonshine_voice", f"assets/tiny-en/{VOCABULARY}")]


class Moonshine:
    """Callable on a waveform. Greedy and on one thread, so that the same samples give the same text."""

    def __init__(self, encoder: Path, decoder: Path, vocabulary: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in (encoder, decoder)
        )
        self.pieces = list(_pieces(vocabulary.read_bytes()))
        caches = [item for item in self.decoder.get_inputs() if item.name.startswith("past")]
        # [batch, heads, length, width of a head]
        self.empty = {c.name: np.zeros((1, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}
        self.outputs = [o.name.replace("present", "past_key_values") for o in self.decoder.get_outputs()]

    def __call__(self, waveform_N: np.ndarray) -> str:
        """What was said."""
        padded_N = np.pad(waveform_N, (0, max(SHORTEST - len(waveform_N), 0)))
        states = self.encoder.run(None, {"input_values": padded_N[None]})[0]
        cache, tokens = self.empty, [START]
        for step in range(2 + int(len(padded_N) / RATE * TOKENS_PER_SECOND)):
            inputs = {"input_ids": np.array([tokens[-1:]]), "encoder_hidden_states": states}
            inputs["use_cache_branch"] = np.array([step > 0])
            logits, *news = self.decoder.run(None, inputs | cache)
            token = int(logits[0, -1].argmax())
            if token == STOP:
                break
            tokens.append(token)
            # What the decoder keeps of the encoder is given by the first step only.
            known = zip(self.outputs[1:], news, strict=True)
            cache = cache | {name: new for name, new in known if step == 0 or ".encoder." not in name}
        text = b"".join(self.pieces[token] for token in tokens[1:]).decode("utf-8", "replace")
        return text.replace("\u2581", " ").strip()


def _pieces(data: bytes) -> Iterator[bytes]:
    """The pieces of the vocabulary: each behind its length, which has a second byte from 128 on."""
    place = 0
    while place < len(data):
        length = data[place]
        place += 1
        if length >= 128:
            length += data[place] * 128 - 128
            place += 1
        piece = data[place : place + length]
        place += length
        byte = re.fullmatch(rb"<0x(..)>", piece)
        yield bytes.fromhex(byte[1].decode()) if byte else piece
