"""What a run reads, found and checked before torch or Ray is loaded: a mistake is told within seconds."""

from dataclasses import dataclass, replace
from typing import Literal

from clvp import ClvpConfig
from clvp.checkpoint import CODEC_CONFIG_FILE, RANDOM_VOICES_FILE, WAVEFORM_CONFIG_FILE
from clvp.quality import find_measure
from pipeline.checkpoint import Checkpoint, check_files, describe_checkpoint, fetch
from pipeline.errors import RunError
from pipeline.rows.manifest import RANDOM, Manifest, open_manifest
from pipeline.rows.normalise import RowIndex, scan
from pipeline.rows.payloads import Payload
from pipeline.settings import ResultSettings, Run


@dataclass(frozen=True)
class Inputs:
    """A run whose settings are decided, with its rows and its model."""

    run: Run
    manifest: Manifest
    index: RowIndex
    checkpoint: Checkpoint


def find_inputs(run: Run, payload: Payload, output: str | None = None) -> Inputs:
    """Raises ManifestError and RunError naming what is wrong."""
    check_measures(run)
    opened = open_manifest(run.manifest, payload, output, run.reading)
    check_files(run.model)
    manifest, index = scan(opened)
    checkpoint = describe_checkpoint(run.model)
    run = decided(run, checkpoint)
    check_model(checkpoint, run)
    return Inputs(run, manifest, index, checkpoint)


def decided(run: Run, checkpoint: Checkpoint) -> Run:
    """The run with `audio="auto"` replaced by what the checkpoint can. Raises RunError where it cannot."""
    if not isinstance(run.results, ResultSettings):
        return run
    if RANDOM in run.reading.told and RANDOM_VOICES_FILE not in checkpoint.files:
        raise RunError(
            f"the model {checkpoint.location} has no {RANDOM_VOICES_FILE}, which makes random voices: name "
            "another --voice, or add Tortoise's with clvp convert --diffusion FILE --vocoder FILE "
            "--random-voices FILE FILE --output FOLDER"
        )
    audio, can = run.results.audio, {WAVEFORM_CONFIG_FILE, CODEC_CONFIG_FILE} & checkpoint.files.keys()
    if not can and (audio.audio not in ("auto", "none") or run.results.measuring.measure):
        raise RunError(
            f"the model {checkpoint.location} has no files for sound ({WAVEFORM_CONFIG_FILE}): add them with "
            "clvp convert --diffusion FILE --vocoder FILE --output FOLDER, or use --audio none"
        )
    if audio.audio == "auto":
        audio = replace(audio, audio=sounding(run.results) if can else "none")
    return replace(run, results=replace(run.results, audio=audio))


def sounding(results: ResultSettings) -> Literal["best", "all"]:
    """What becomes sound where nothing else is said."""
    return "all" if results.measuring.rank_by else "best"


def check_measures(run: Run) -> None:
    """Raise RunError for measures that cannot be taken here."""
    if isinstance(run.results, ResultSettings):
        try:
            for name in run.results.measuring.measure:
                find_files = getattr(find_measure(name), "files", list)
                find_files(*([run.execution.recognizer] if name == "transcribe" else []))
        except (ImportError, OSError, ValueError) as error:
            raise RunError(str(error)) from error


def check_model(checkpoint: Checkpoint, run: Run) -> None:
    """Raise RunError when the model is unreadable, or has fewer positions than the longest candidate."""
    try:
        config = ClvpConfig.from_pretrained(fetch(checkpoint))
    except (OSError, ValueError) as error:
        raise RunError(f"the model {checkpoint.location} cannot be used: {error}") from error
    if isinstance(run.results, ResultSettings):
        sampling = run.results.sampling
        most = config.decoder_config.max_position_embeddings - (sampling.mel_positions == "skip_one")
        if sampling.max_new_tokens > most:
            raise RunError(f"max_new_tokens={sampling.max_new_tokens} exceeds the model's {most} positions")
