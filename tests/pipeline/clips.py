"""Short synthetic clips and manifests of them, made where a test needs them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile

from pipeline.rows.manifest import NATURAL, Manifest, Reading, open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, Payload
from pipeline.rows.plan import make_plan, select_rows
from pipeline.rows.read import read_block

NO_IDS = pa.chunked_array([], pa.large_string())


def chirp(seconds: float, rate: int, channels: int = 1, start_hz: float = 200.0) -> np.ndarray:
    """A rising tone with harmonics [frames, channels]: the channels differ in phase and loudness."""
    t = np.arange(round(seconds * rate)) / rate
    columns = [
        (0.3 + 0.2 * c / channels) * np.sin(2 * np.pi * (start_hz * t + 150 * t**2) + c)
        + 0.1 * np.sin(2 * np.pi * 3 * start_hz * t + 2 * c)
        for c in range(channels)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def write_clip(
    path: Path, seconds: float = 0.5, rate: int = 22_050, channels: int = 1, **options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, chirp(seconds, rate, channels), rate, **options)
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Rows as JSON; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def read_rows(
    *patterns: Path | str,
    payload: Payload = AUDIO_PAYLOAD,
    rows_per_block: int = 3,
    reading: Reading = NATURAL,
) -> pa.Table:
    """All rows of a manifest that have an id of their own, through scan, plan and the read stage."""
    blocks = blocks_of(*patterns, payload=payload, rows_per_block=rows_per_block, reading=reading)[1]
    return pa.concat_tables(blocks)


def blocks_of(
    *patterns: Path | str,
    payload: Payload = AUDIO_PAYLOAD,
    rows_per_block: int = 3,
    reading: Reading = NATURAL,
) -> tuple[Manifest, list[pa.Table]]:
    manifest, index = scan(open_manifest([str(pattern) for pattern in patterns], payload, reading=reading))
    plan = make_plan(index, select_rows(index, NO_IDS).todo, rows_per_block)
    return manifest, [read_block(manifest, plan.slices_of(i)) for i in range(plan.num_blocks)]


def encoded(samples_NC: np.ndarray, rate: int, codec: str, container: str, bit_rate: int = 128_000) -> bytes:
    """A clip as FFmpeg writes it. `rate` must be one that the codec knows."""
    buffer = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples_NC.shape[1]]
    planes_CN = np.ascontiguousarray(samples_NC.T, np.float32)
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = bit_rate
        stream.codec_context.open()
        whole = av.AudioFrame.from_ndarray(planes_CN, format="fltp", layout=layout)
        whole.sample_rate, whole.pts = rate, 0
        resampler = av.AudioResampler(stream.format.name, layout, rate, stream.frame_size or 1024)
        for frame in [*resampler.resample(whole), *resampler.resample(None), None]:
            file.mux(stream.encode(frame))
    return buffer.getvalue()
