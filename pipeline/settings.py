"""Everything a run can be told, separated by type into what changes results and what does not.

`ResultSettings` (or `RankingSettings`, of a run that samples nothing) decide tokens, scores and which
candidates are kept: two runs may share an output only when theirs are equal. `ExecutionSettings` decide where
and how fast; no value of theirs changes a result. A `Run` is all of it, with what is read and written.

A field's comment is also the help of its option on the command line (`jobs.options`); "None: …" at its end is
what is done where nothing is given. A field that is added here is an option, a key of configuration files
and, if it changes results, a part of run.json.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clvp.config import ClvpConfig
from clvp.fields import Checked, Count
from clvp.sampling import EngineConfig, SamplingParams
from clvp.waveform.params import PRESETS, DiffusionDtype, WaveformEngineConfig, WaveformParams
from pipeline import storage
from pipeline.rows.manifest import NATURAL, Reading
from pipeline.rows.memory import MAX_CANDIDATES

Normalizer = Literal["tortoise", "english"]
Dtype = Literal["float32", "bfloat16", "float16"]
Amount = Annotated[float, Field(ge=0, le=1024)]  # of GPUs or cores, for one actor

# Tortoise's presets all sample with its one set of parameters, which are the defaults of SamplingParams and
# the fake prompt token that its repetition penalty sees.
TORTOISE_SAMPLING = SamplingParams(penalized_tokens=(1,))


@dataclass(frozen=True)
class ModelSettings(Checked):
    """How the checkpoint is used. Like all settings, raises ValueError naming a field out of range."""

    # how numbers and abbreviations are spelled out: as in training, or as in transformers
    normalizer: Normalizer = "tortoise"
    dtype: Dtype = "float32"  # of weights and activations


@dataclass(frozen=True)
class ScoringSettings(Checked):
    """How candidates are scored and ranked."""

    # speech tokens that a candidate is padded to before it is scored
    scoring_length: Annotated[int, Field(ge=4, le=100_000)] = ClvpConfig.scoring_length
    unfinished_last: bool = True  # candidates without a stop token rank after all that have one
    keep: Count | None = None  # best candidates of a row that are stored; None: all


@dataclass(frozen=True)
class RankingSettings(Checked):
    """All that decides how candidates that exist already are scored and ranked."""

    model: ModelSettings = ModelSettings()
    scoring: ScoringSettings = ScoringSettings()


@dataclass(frozen=True)
class AudioSettings(Checked):
    """Which candidates become sound, and how it is stored."""

    # candidates of a row that become sound, the best first; auto: if the model can make sound the best, or
    # all where rank_by is to choose
    audio: Literal["auto", "none", "best", "all"] | Count = "auto"
    diffusion_dtype: DiffusionDtype = "float32"  # of what the diffusion decoder multiplies
    format: Literal["flac", "wav", "opus"] = "flac"  # of 24 kHz, mono, 16 bits
    audio_files: bool = False  # also write OUTPUT/audio/ID.FORMAT
    # loudness (LUFS, ITU-R BS.1770) that waveforms are brought to; None: left as they are
    loudness: Annotated[float, Field(ge=-70, le=0)] | None = None
    fade_out: bool = False  # over the last 5 ms
    whole_clips: bool = False  # know a voice by all of its clips that is read, not by 4.27 s of each

    @property
    def most(self) -> int:
        """Candidates of a row that become sound."""
        named = {"none": 0, "auto": 0, "best": 1, "all": MAX_CANDIDATES}
        return named[self.audio] if isinstance(self.audio, str) else self.audio


@dataclass(frozen=True)
class MeasuringSettings(Checked):
    """By what candidates with sound are measured, and what follows from it."""

    # transcribe, similarity, naturalness, or MODULE:CLASS of your own: of all candidates with sound
    measure: tuple[str, ...] = ()
    # formula over a candidate's columns, as "score - 5*wer": the highest ranks first; None: as CLVP scores
    rank_by: str | None = None
    # condition on them, as "wer < 0.1": the best must meet it, or the row fails; None: all are kept
    keep_if: str | None = None


@dataclass(frozen=True)
class ResultSettings(Checked):
    """All that decides a row's candidates, apart from the model's files and the row itself."""

    model: ModelSettings = ModelSettings()
    # candidates per row
    num_candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = PRESETS["ultra_fast"].candidates
    sampling: SamplingParams = TORTOISE_SAMPLING
    scoring: ScoringSettings = ScoringSettings()
    waveform: WaveformParams = field(default_factory=WaveformParams)
    audio: AudioSettings = AudioSettings()
    measuring: MeasuringSettings = MeasuringSettings()
    # of each reference clip: longer ones are cut, shorter ones padded
    audio_seconds: Annotated[float, Field(ge=0.1, le=600)] = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.max_new_tokens > self.scoring.scoring_length:
            raise ValueError(
                f"max_new_tokens={self.sampling.max_new_tokens} exceeds scoring_length="
                f"{self.scoring.scoring_length}: the longest candidates could not be scored"
            )
        measuring, audio = self.measuring, self.audio.audio
        if measuring.measure and audio == "none":
            raise ValueError(f"measure={measuring.measure!r} needs sound, and audio is 'none'")
        if measuring.rank_by and audio in ("best", 1):
            raise ValueError(
                f"rank_by={measuring.rank_by!r} chooses among candidates with sound: audio must be 'all' "
                "or a number above 1"
            )


@dataclass(frozen=True)
class Pool(Checked):
    """Size of an actor pool, and what one actor reserves. None: decided by what the cluster has."""

    min_size: Count = 1  # actors, as a range; None: from 1 to one per GPU
    max_size: Count | None = None  # None: one per GPU
    num_gpus: Amount | None = None  # share of a GPU; None: where there are GPUs, all stages share one
    # cores reserved without a GPU, not used up: 1 would starve the audio stage on 2 cores
    num_cpus: Amount = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size={self.max_size!r} is out of range")


@dataclass(frozen=True)
class ExecutionSettings(Checked):
    """Where and how fast. Results are the same for every value."""

    rows_per_block: Count | None = None  # rows that travel together; None: enough to fill the lanes
    samplers: Pool = Pool()  # actors that sample
    rankers: Pool = Pool()  # actors that score
    decoders: Pool = Pool()  # actors that make sound
    gpus: Count | None = None  # GPUs that a growing cluster may come to; None: those there
    engine: EngineConfig = field(default_factory=EngineConfig)
    waveform_engine: WaveformEngineConfig = field(default_factory=WaveformEngineConfig)
    # of an actor without a GPU; None: half of its machine's cores
    torch_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    voices_cached: Count = 4096  # conditioning latents that a sampler keeps; one takes 4 KB
    audio_root: str | None = None  # folder that all audio must lie below; None: any local path
    recognizer: str | None = None  # folder of the Moonshine model that transcribes; None: the installed one
    # https://host or s3://bucket that audio may also come from, besides those that the manifest lies on
    audio_hosts: tuple[str, ...] = ()
    publish_bytes: Annotated[int, Field(ge=1)] = 128 << 20  # of finished blocks that become one output file
    report_seconds: Annotated[float, Field(gt=0, le=1e9)] = 10.0  # between two lines of progress
    worker_logs: bool = False  # print what the workers log, tracebacks included

    def __post_init__(self) -> None:
        super().__post_init__()
        for host in self.audio_hosts:
            if storage.scheme_of(host) is None:
                raise ValueError(f"audio_hosts={host!r} is no URI such as https://host or s3://bucket")


@dataclass(frozen=True)
class Run(Checked):
    """One run: what it reads, what it writes, the settings that change results, and those that do not."""

    # files, folders or quoted globs, with id, text and audio, or speech_ids to rank
    manifest: tuple[str, ...]
    output: str  # folder in which data/ and errors/ are written
    model: str  # checkpoint folder, hub id or URI; demo: the small one that comes with the package
    results: ResultSettings | RankingSettings
    execution: ExecutionSettings = ExecutionSettings()
    reading: Reading = NATURAL
    retry_failed: bool = False  # also try the rows again that are in the error table
    redo_changed: bool = False  # also make the rows again whose text or audio has changed since
    # output of a finished run with fewer candidates, same manifest and settings: they are taken over
    extend: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extend is not None and not isinstance(self.results, ResultSettings):
            raise ValueError(f"extend={self.extend!r} is out of range")
