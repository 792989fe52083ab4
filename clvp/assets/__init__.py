"""The small files of the published checkpoint: tokenizer vocabulary and mel normalisation."""

from pathlib import Path

from clvp.audio.processor import ClvpProcessor
from clvp.text.tokenizer import Normalizer

ASSETS = Path(__file__).parent


def write_processor_files(folder: Path, normalizer: Normalizer = "english") -> None:
    """Put the published tokenizer and feature extractor into a checkpoint folder, reading texts as told."""
    ClvpProcessor.from_pretrained(ASSETS, normalizer=normalizer).save_pretrained(folder)
