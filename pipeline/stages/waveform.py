"""Stage 6, `waveform`: the best candidates of a row as sound.

The decoder's second pass gives a candidate's latents; the diffusion decoder and the vocoder make its waveform
of them, or a family's own codec of the tokens (`clvp.waveform`). What a voice is to both is computed once and
kept.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
import pyarrow as pa
import soundfile
import torch

from clvp import ClvpConditioningEncoder, ClvpForCausalLM
from clvp.waveform import DecodedSpeech, DecodeFailure, WaveformRequest, load_waveform_decoder
from clvp.waveform.latents import mean_log_probability, says_nothing, speech_latents
from clvp.waveform.measures import fade_out, measures_of, to_loudness
from clvp.waveform.vocoder import SAMPLING_RATE
from pipeline.description import check_alike
from pipeline.errors import RowError
from pipeline.output.folder import OutputFolder
from pipeline.rows.columns import map_rows, set_columns
from pipeline.settings import ExecutionSettings, ResultSettings
from pipeline.stages.device import pick_device
from pipeline.stages.sound import RANDOM_KEY, SPOKEN_VOICE, VOICE, kept, output_of, sound_columns, with_facts
from pipeline.stages.voices import latent, spoken_mels, voice_mels

# By the name of a format: libsndfile's container and subtype.
FORMATS = {"flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "opus": ("OGG", "OPUS")}
FOLDER = "audio"  # in the output, of loose files
MAX_NAME = 200  # bytes


class WaveformMaker:
    """Callable on a block; holds the conditioning encoder, the speech decoder, and what makes sound.

    `output` is where loose files go. Raises RunError when the decoder's facts are not `expected_facts`.
    """

    def __init__(
        self,
        model: str,
        settings: ResultSettings,
        execution: ExecutionSettings,
        output: OutputFolder,
        expected_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.output = settings, output
        device = pick_device(execution.torch_threads)
        dtype = settings.model.dtype
        self.encoder = ClvpConditioningEncoder.from_pretrained(model, dtype=dtype, device=device)
        self.speech_decoder = ClvpForCausalLM.from_pretrained(model, dtype=dtype, device=device)
        self.decoder = load_waveform_decoder(
            model, device=device, config=execution.waveform_engine, dtype=settings.audio.diffusion_dtype
        )
        self.facts = self.decoder.facts()
        problem = "this machine may make other waveforms than the output holds"
        check_alike(expected_facts or None, self.facts, "waveform", problem)
        self.voices: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # the latest at the end
        self.voices_cached = execution.voices_cached

    @torch.inference_mode()
    def __call__(self, table: pa.Table) -> pa.Table:
        requests, table = map_rows(table, "waveform", lambda i: self._requests(table, i))
        flat = [request for row in requests if row is not None for request, _ in row]
        decoded = iter(self.decoder.decode(flat, self.settings.waveform, self.settings.sampling.seed))
        speech = [None if row is None else [(next(decoded), known) for _, known in row] for row in requests]
        made, table = map_rows(table, "waveform", lambda i: [self._stored(*item) for item in speech[i] or ()])
        columns = sound_columns(made) | {"engine": with_facts(table["engine"], {"waveform": self.facts})}
        return set_columns(table, {field: columns[field.name] for field in output_of(self.settings)})

    def _requests(self, table: pa.Table, i: int) -> list[tuple[WaveformRequest, float]]:
        """What becomes sound, each with the mean log-probability of its tokens."""
        voice_D, voice = self._voice(table, i)
        prefix_PD = self.encoder.build_prefix(voice_D, torch.tensor(table["input_ids"][i].as_py()))
        row_id, wanted = table["id"][i].as_py(), table["candidates"][i].as_py()[: self.settings.audio.most]
        requests: list[tuple[WaveformRequest, float]] = []
        for item in wanted:
            tokens_T = torch.tensor(item["speech_ids"], dtype=torch.int64)
            if requests and says_nothing(tokens_T, self.speech_decoder.config.decoder_fixing_codes[0]):
                break  # those that say nothing rank last, and cost no row that has others
            try:
                latents_LD = speech_latents(self.speech_decoder, prefix_PD, tokens_T, item["finished"])
            except ValueError as error:
                raise RowError("NoSpeech", f"candidate {item['candidate']}: {error}") from error
            known = mean_log_probability(self.speech_decoder, latents_LD, tokens_T, item["finished"])
            request = WaveformRequest(row_id, item["candidate"], tokens_T, latents_LD.cpu(), voice)
            requests.append((request, known))
        return requests

    def _voice(self, table: pa.Table, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the speech decoder and what makes sound take of the row's voice."""
        key = table["voice_key"][i].as_py()

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            voice, spoken = (table[field.name][i].as_py() for field in (VOICE, SPOKEN_VOICE))
            if key.startswith(RANDOM_KEY):
                return latent(voice), latent(spoken)
            mels = voice_mels(voice, self.settings.audio_seconds)
            return self.encoder.average_clips(mels), self.decoder.voice_of(mels, spoken_mels(spoken))

        return kept(self.voices, key, self.voices_cached, make)

    def _stored(self, speech: DecodedSpeech | DecodeFailure, log_probability: float) -> dict[str, Any]:
        """A waveform as it is stored, with its measures."""
        if isinstance(speech, DecodeFailure):
            raise RowError("UndecodableSpeech", f"candidate {speech.candidate}: {speech.error}")
        audio, waveform_N = self.settings.audio, speech.waveform_N
        if audio.loudness is not None:
            waveform_N = to_loudness(waveform_N, audio.loudness)
        if audio.fade_out:
            waveform_N = fade_out(waveform_N)
        name = file_name(speech.row_id, speech.candidate if audio.most > 1 else None, audio.format)
        content = encoded(waveform_N.numpy(), audio.format)
        if audio.audio_files:
            self.output.write(FOLDER, name, content)
        return {
            "candidate": speech.candidate,
            "audio": {"bytes": content, "path": name},
            "mean_log_probability": round(log_probability, 6),
            **measures_of(waveform_N),
        }


def encoded(waveform_N: np.ndarray, form: str) -> bytes:
    """A waveform of 24 kHz within ±1 as the content of an audio file."""
    buffer = io.BytesIO()
    container, subtype = FORMATS[form]
    soundfile.write(buffer, waveform_N, SAMPLING_RATE, format=container, subtype=subtype)
    return _without_serial(buffer.getvalue()) if container == "OGG" else buffer.getvalue()


def _without_serial(ogg: bytes) -> bytes:
    """An Ogg file of one stream with 0 for the random number that libsndfile gives it (RFC 3533)."""
    data, page = bytearray(ogg), 0
    while page < len(data):
        segments = data[page + 26]
        end = page + 27 + segments + sum(data[page + 27 : page + 27 + segments])
        data[page + 14 : page + 18] = data[page + 22 : page + 26] = bytes(4)
        # Of zlib's polynomial, with the bits the other way round and neither of its two inversions.
        checksum = ~crc32(data[page:end].translate(_BITS_REVERSED), 0xFFFFFFFF) & 0xFFFFFFFF
        data[page + 22 : page + 26] = checksum.to_bytes(4, "big").translate(_BITS_REVERSED)
        page = end
    return bytes(data)


_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def file_name(row_id: str, candidate: int | None, form: str) -> str:
    """A name that no other row or candidate has, on any filesystem that tells capitals apart."""
    name = quote(row_id, safe=" ")
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    return f"{name}{'' if candidate is None else f'-{candidate}'}.{form}"
