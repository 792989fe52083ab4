"""What a generation starts from, row by row: texts without their padding, paired with the clips of a voice.

N text tokens, T frames, D width.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

# One row's reference audio: log-mels [bands, T], or several clips as [clips, bands, T] or a list of [bands,
# T].
Clips = Tensor | Sequence[Tensor]
# Log-mels [B, bands, T], or the clips of each row.
InputFeatures = Tensor | Sequence[Clips]
# Whatever stands for one row's audio: its clips, or their latent.
Audio = TypeVar("Audio")


def text_rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """The tokens (or token embeddings) of each row without its padding, wherever that lies."""
    if attention_mask is None:
        return list(input_ids)
    if attention_mask.shape != input_ids.shape[:2]:
        raise ValueError(
            f"attention_mask must have the shape of the tokens, {list(input_ids.shape[:2])}, "
            f"not {list(attention_mask.shape)}"
        )
    keep = attention_mask.to(input_ids.device).bool()
    return [row[kept] for row, kept in zip(input_ids, keep, strict=True)]


def clips_of(row: Clips) -> list[Tensor]:
    """A row's clips, each [bands, T]; ValueError when there is none."""
    clips = [row] if isinstance(row, Tensor) and row.dim() == 2 else list(row)
    if not clips or any(clip.dim() != 2 for clip in clips):
        shapes = [list(clip.shape) for clip in clips]
        raise ValueError(f"a row of input_features must hold one or more clips [bands, frames], got {shapes}")
    return clips


def ids_or_embeds(row: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A row's text as (token ids [N], None) or (None, token embeddings [N, D])."""
    return (row, None) if row.dim() == 1 else (None, row)


def pair_up(texts: list[Tensor], audios: list[Audio]) -> tuple[list[Tensor], list[Audio]]:
    """Equally many texts and audios: a single one on either side is repeated, else the numbers must agree."""
    if len(texts) == 1:
        texts = texts * len(audios)
    if len(audios) == 1:
        audios = audios * len(texts)
    if len(texts) != len(audios):
        raise ValueError(f"the numbers of texts and audios must agree; got {len(texts)} and {len(audios)}")
    return texts, audios


def row_names(texts: Sequence[Tensor], audios: Sequence[Sequence[Tensor]]) -> list[str]:
    """A name for each row that depends on its own text and audio alone; equal rows are numbered."""
    seen: dict[str, int] = {}
    names = []
    for text, clips in zip(texts, audios, strict=True):
        digest = hashlib.sha256()
        for part in (text, *clips):
            array = part.detach().cpu().to(torch.float32 if part.is_floating_point() else torch.int64).numpy()
            digest.update(f"{array.shape}".encode() + array.tobytes())
        name = digest.hexdigest()
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name}-{seen[name]}")
    return names
