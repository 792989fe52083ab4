"""How much input is taken at once, and the memory that follows from it.

A record, value or clip over its limit becomes its row's error. The tasks that read and decode reserve
`reading_memory` of their node.
"""

MIB = 1 << 20

# Limits of one row; what is over them is the row's error.
MAX_TEXT_CHARS = 5_000  # far more than any text of 401 tokens
MAX_ID_CHARS = 1_024
MAX_PATH_CHARS = 8_192
MAX_RECORD_BYTES = 16 * MIB  # of a JSONL line or a CSV record
MAX_COLUMNS = 1_000  # of a manifest
MAX_FIELDS = 1_000  # of a column of objects, over all levels and rows
MAX_JSON_DEPTH = 64
MAX_JSON_CONTAINERS = 20_000  # lists and objects in one line; 4,096 candidates are 8,193
MAX_EMBEDDED_BYTES = 64 * MIB  # of audio that lies in the manifest itself
MAX_EXTRA_BYTES = 16 * MIB  # of the pass-through columns of a row
MAX_CLIPS = 64  # of one voice
MAX_CANDIDATES = 4_096  # of one row, sampled or brought along: what a run stores can be ranked again

# Limits of what is held at a time.
PIECE_ROWS, PIECE_BYTES = 64, 16 * MIB  # of rows on their way from a file to a block
MAX_BLOCK_BYTES = 64 * MIB  # of manifest data in a block, where rows are of equal size
CLIP_SECONDS_AT_ONCE = 192.0  # in one transform to log-mels

SAMPLE_RATE = 22_050
NUM_MELS, HOP = 80, 256  # of a log-mel: channels, and samples between frames


def mel_frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE) // HOP + 1


def clips_at_once(seconds: float) -> int:
    """Clips of this length that are held as waveforms."""
    return max(1, int(CLIP_SECONDS_AT_ONCE / seconds))


# Measured, rounded up.
_PROCESS = 768 * MIB  # Python with Arrow and torch
_PIECE = 512 * MIB  # one piece or record as Python objects; 16 MiB of JSON can be 20 times as much
_MAX_RATE = 768_000  # Hz of a clip


def reading_memory(rows_per_block: int, audio_seconds: float | None, clips_per_row: int = MAX_CLIPS) -> int:
    """Bytes that the process of a task which reads, validates and decodes a block takes at most, but for rows
    that are each many megabytes.

    `audio_seconds` of each clip are used; None: there is no audio.
    """
    total = _PROCESS + _PIECE + 4 * MAX_BLOCK_BYTES
    if audio_seconds is None:
        return total
    mels = rows_per_block * clips_per_row * NUM_MELS * mel_frames(audio_seconds) * 4
    waveforms = int(max(audio_seconds, CLIP_SECONDS_AT_ONCE)) * SAMPLE_RATE * 4
    clip = int(audio_seconds * _MAX_RATE) * 4
    # A transform holds frames, spectra and powers; a clip is read in pieces, joined and resampled.
    return total + mels * 5 // 4 + 12 * waveforms + 4 * clip
