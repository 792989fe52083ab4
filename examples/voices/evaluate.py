"""How many words are understood: of the teacher, of the codec, and of samples, by what chooses among them.

    python -m examples.voices.evaluate MODEL --corpus corpus --codec runs/codec --output heard.jsonl

Each held-out sentence is spoken by its teacher, sent through the codec, and sampled several times in the
voice of one clip of the speaker, the first of the corpus. What a recognizer hears goes into a line of the
output, with how much the first candidate's voice is like each speaker's clip; lines that are there already
are not made again. At the end CLVP scores all candidates, and there are two tables: words wrong of all words,
with 95% intervals by bootstrap over the sentences, and the likeness of voices (cosines of Resemblyzer's
embeddings).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from clvp.audio.mel import SAMPLING_RATE, log_mel
from clvp.codec import SpeechCodec
from clvp.generation import sample_prompts
from clvp.model import ClvpModelForConditionalGeneration
from clvp.quality import at_16_khz
from clvp.quality.similarity import Similarity
from clvp.quality.transcribe import Transcribe
from clvp.sampling import Candidate
from clvp.scoring import pad_and_fix_codes, score_candidates
from clvp.text.tokenizer import ClvpTokenizer
from clvp.training.codec import trained_encoder
from examples.voices.__main__ import read_list, speak

SPEAKERS = ("slt", "low", "rms")
BOOTSTRAPS = 2000


def mel_of(samples: np.ndarray) -> Tensor:
    """[80, T]."""
    return log_mel(torch.from_numpy(samples)[None])[0]


@torch.no_grad()
def log_probability(
    model: ClvpModelForConditionalGeneration, prefix_PD: Tensor, candidate: Candidate
) -> float:
    """Mean over the tokens, the stop token included."""
    decoder = model.speech_decoder_model
    end = torch.tensor([decoder.config.eos_token_id] * candidate.finished, dtype=torch.long)
    tokens_T = torch.cat((candidate.tokens, end))
    states = decoder.speech_states(prefix_PD[None], tokens_T[None])[-1]
    logits_TV = decoder.lm_head(decoder.final_norm(states))[0]
    return float(logits_TV.log_softmax(dim=-1)[torch.arange(len(tokens_T)), tokens_T].mean())


def lines(
    options: argparse.Namespace, model: ClvpModelForConditionalGeneration, tokenizer: ClvpTokenizer, done: int
) -> Iterator[dict[str, Any]]:
    """One line for each sentence behind those that are done."""
    codec = SpeechCodec.from_pretrained(options.model)
    encoder = trained_encoder(codec.config, options.codec)
    transcribe = Transcribe(options.recognizer)
    rows = map(json.loads, reversed((options.corpus / "manifest.jsonl").read_text().splitlines()))
    audio = {
        row["speaker"]: options.corpus / row["audio"] for row in rows
    }  # the first of each is the last seen
    samples = {name: soundfile.read(audio[name], dtype="float32")[0] for name in SPEAKERS}
    clips = {name: mel_of(samples[name]) for name in SPEAKERS}
    similarity = Similarity()

    def embedded(waveform: np.ndarray) -> Tensor:
        return similarity.embed(at_16_khz(waveform, SAMPLING_RATE))

    voices = {name: embedded(samples[name]) for name in SPEAKERS}

    def heard(waveform: Tensor, text: str) -> dict[str, Any]:
        return dict(transcribe(waveform.numpy(), SAMPLING_RATE, text, np.zeros(0, dtype=np.float32)))

    for index, text in list(enumerate(read_list(options.sentences)))[done:]:
        turns = (*SPEAKERS[index % len(SPEAKERS) :], *SPEAKERS)
        # The first who reads it as it is written.
        speaker, spoken = next((name, each) for name in turns for each, _ in speak([text], name))
        clip = clips[speaker]
        voice = codec.voice_of([clip])
        mel = mel_of(spoken.samples)
        (again,) = codec.decode([encoder.encode(mel, voice)], voice)
        ids = torch.tensor(tokenizer(f"{text}.")["input_ids"])
        with torch.no_grad():
            prefix = model.conditioning_encoder.build_prefix(
                model.conditioning_encoder.encode_clip(clip), ids
            )
        settings = model.generation_config.replace(num_return_sequences=options.candidates, seed=options.seed)
        (candidates,) = sample_prompts(model.speech_decoder_model, [prefix], settings, [str(index)])
        waveforms = codec.decode([each.tokens for each in candidates], voice)
        first = embedded(waveforms[0].numpy())
        yield {
            "text": text,
            "speaker": speaker,
            "teacher": heard(torch.from_numpy(spoken.samples), text),
            "codec": heard(again, text),
            "like": {name: float(first @ other) for name, other in voices.items()},
            "candidates": [
                {
                    **heard(waveform, text),
                    "log_probability": log_probability(model, prefix, each),
                    "finished": each.finished,
                    "tokens": each.tokens.tolist(),
                }
                for each, waveform in zip(candidates, waveforms, strict=True)
            ],
        }


def scores(
    model: ClvpModelForConditionalGeneration, tokenizer: ClvpTokenizer, found: Sequence[dict[str, Any]]
) -> np.ndarray:
    """[lines, candidates] by CLVP."""
    scored = []
    for line in found:
        codes = pad_and_fix_codes(
            [torch.tensor(each["tokens"]) for each in line["candidates"]],
            [each["finished"] for each in line["candidates"]],
            model.config.scoring_length,
            model.config.decoder_config.decoder_fixing_codes,
        )
        ids = torch.tensor(tokenizer(f"{line['text']}.")["input_ids"])
        scored.append(score_candidates(*model.encoders, ids, codes).numpy())
    return np.stack(scored)


def table(found: Sequence[dict[str, Any]], score_NK: np.ndarray) -> str:
    """Words wrong of all words, by what is heard or what chooses; then whose voice is heard."""
    words = np.array([line["teacher"]["words"] for line in found])
    wrong_NK = np.array([[each["wer"] for each in line["candidates"]] for line in found]) * words[:, None]
    sure_NK = np.array([[each["log_probability"] for each in line["candidates"]] for line in found])
    rows = np.arange(len(found))

    def chosen(by_NK: np.ndarray) -> np.ndarray:
        return wrong_NK[rows, by_NK.argmax(axis=1)]

    def standard(by_NK: np.ndarray) -> np.ndarray:
        return (by_NK - by_NK.mean(axis=1, keepdims=True)) / by_NK.std(axis=1, keepdims=True).clip(1e-6)

    wrong = {
        "teacher": np.array([line["teacher"]["wer"] for line in found]) * words,
        "resynthesis through the codec": np.array([line["codec"]["wer"] for line in found]) * words,
        "one random candidate": wrong_NK.mean(axis=1),
        "best by CLVP": chosen(score_NK),
        "best by mean log-probability": chosen(sure_NK),
        "best by both": chosen(standard(score_NK) + standard(sure_NK)),
        "best by an oracle": wrong_NK.min(axis=1),
    }
    draws = np.random.default_rng(0).integers(len(found), size=(BOOTSTRAPS, len(found)))
    texts = [f"{len(found)} sentences, {int(words.sum())} words, {wrong_NK.shape[1]} candidates each"]
    for name, errors in wrong.items():
        low, high = np.percentile(errors[draws].sum(axis=1) / words[draws].sum(axis=1), [2.5, 97.5])
        texts.append(f"{name:32} {errors.sum() / words.sum():6.1%}   ({low:.1%} to {high:.1%})")
    texts.append("likeness of the first candidate to the clips of " + ", ".join(SPEAKERS))
    for name in SPEAKERS:
        like = [[line["like"][other] for other in SPEAKERS] for line in found if line["speaker"] == name]
        own = (np.argmax(like, axis=1) == SPEAKERS.index(name)).mean()
        means = "  ".join(f"{mean:.2f}" for mean in np.mean(like, axis=0))
        texts.append(f"in the voice of {name:16} {means}   nearest to its own in {own:.0%} of {len(like)}")
    return "\n".join(texts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the clips of the speakers")
    parser.add_argument("--codec", type=Path, required=True, help="run of the codec, which has its encoder")
    parser.add_argument("--output", type=Path, required=True, help="file of what was heard")
    parser.add_argument("--sentences", default="held_out.txt", help="list beside this file (%(default)s)")
    parser.add_argument("--candidates", type=int, default=16, help="of each sentence (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    parser.add_argument("--recognizer", help="folder of Moonshine (default: the installed package's)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = ClvpModelForConditionalGeneration.from_pretrained(options.model, dtype="float32")
    tokenizer = ClvpTokenizer.from_pretrained(options.model)
    done = options.output.read_text().splitlines() if options.output.exists() else []
    with options.output.open("a") as file:
        for line in lines(options, model, tokenizer, len(done)):
            print(json.dumps(line), file=file, flush=True)
    found = [json.loads(line) for line in options.output.read_text().splitlines()]
    print(table(found, scores(model, tokenizer, found)))


if __name__ == "__main__":
    main()
