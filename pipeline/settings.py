"""Everything a run can be told, separated by type into what changes results and what does not.

`ResultSettings` (or `RankingSettings`, of a run that samples nothing) decide tokens, scores and which
candidates are kept: two runs may share an output only when theirs are equal. `ExecutionSettings` decide where
and how fast; no value of theirs changes a result. A `Run` is all of it, with what is read and written.

A field's comment is also the help of its option on the command line (`jobs.options`); "None: …" at its end is
what is done where nothing is given. A field that is added here is an option, a key of configuration files
and, if it changes results, a part of run.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from clvp.sampling import EngineConfig, SamplingParams
from clvp.scoring import SCORING_LENGTH
from pipeline import storage
from pipeline.rows.memory import MAX_CANDIDATES

Normalizer = Literal["tortoise", "english"]
Dtype = Literal["float32", "bfloat16", "float16"]

# Number of candidates of Tortoise's presets; all of them sample with Tortoise's one set of parameters, which
# are the defaults of SamplingParams and the fake prompt token that its repetition penalty sees.
PRESETS: Mapping[str, int] = {"ultra_fast": 16, "fast": 96, "standard": 256, "high_quality": 256}
TORTOISE_SAMPLING = SamplingParams(penalized_tokens=(1,))


def _check(name: str, value: object, good: bool) -> None:
    if not good:
        raise ValueError(f"{name}={value!r} is out of range")


@dataclass(frozen=True)
class ModelSettings:
    """How the checkpoint is used. Like all settings, raises ValueError naming a field out of range."""

    # how numbers and abbreviations are spelled out: as in training, or as in transformers
    normalizer: Normalizer = "tortoise"
    dtype: Dtype = "float32"  # of weights and activations

    def __post_init__(self) -> None:
        _check("normalizer", self.normalizer, self.normalizer in get_args(Normalizer))
        _check("dtype", self.dtype, self.dtype in get_args(Dtype))


@dataclass(frozen=True)
class ScoringSettings:
    """How candidates are scored and ranked."""

    scoring_length: int = SCORING_LENGTH  # speech tokens that a candidate is padded to before it is scored
    unfinished_last: bool = True  # candidates without a stop token rank after all that have one
    keep: int | None = None  # best candidates of a row that are stored; None: all

    def __post_init__(self) -> None:
        _check("scoring_length", self.scoring_length, 4 <= self.scoring_length <= 100_000)
        _check("keep", self.keep, self.keep is None or self.keep >= 1)


@dataclass(frozen=True)
class RankingSettings:
    """All that decides how candidates that exist already are scored and ranked."""

    model: ModelSettings = ModelSettings()
    scoring: ScoringSettings = ScoringSettings()


@dataclass(frozen=True)
class ResultSettings:
    """All that decides a row's candidates, apart from the model's files and the row itself."""

    model: ModelSettings = ModelSettings()
    num_candidates: int = PRESETS["ultra_fast"]  # candidates per row
    sampling: SamplingParams = TORTOISE_SAMPLING
    scoring: ScoringSettings = ScoringSettings()
    audio_seconds: float = 6.0  # of each reference clip: longer ones are cut, shorter ones padded

    def __post_init__(self) -> None:
        _check("num_candidates", self.num_candidates, 1 <= self.num_candidates <= MAX_CANDIDATES)
        _check("audio_seconds", self.audio_seconds, 0.1 <= self.audio_seconds <= 600)
        if self.sampling.max_new_tokens > self.scoring.scoring_length:
            raise ValueError(
                f"max_new_tokens={self.sampling.max_new_tokens} exceeds scoring_length="
                f"{self.scoring.scoring_length}: the longest candidates could not be scored"
            )


@dataclass(frozen=True)
class Pool:
    """Size of an actor pool, and what one actor reserves. None: decided by what the cluster has."""

    min_size: int = 1  # actors, as a range; None: from 1 to one per GPU
    max_size: int | None = None  # None: one per GPU
    num_gpus: float | None = None  # share of a GPU; None: where there are GPUs, all stages share one
    # cores reserved without a GPU, not used up: 1 would starve the audio stage on 2 cores
    num_cpus: float = 0.25

    def __post_init__(self) -> None:
        _check("min_size", self.min_size, self.min_size >= 1)
        _check("max_size", self.max_size, self.max_size is None or self.max_size >= self.min_size)
        _check("num_gpus", self.num_gpus, self.num_gpus is None or self.num_gpus >= 0)
        _check("num_cpus", self.num_cpus, self.num_cpus >= 0)


@dataclass(frozen=True)
class ExecutionSettings:
    """Where and how fast. Results are the same for every value."""

    rows_per_block: int | None = None  # rows that travel together; None: enough to fill the lanes
    samplers: Pool = Pool()  # actors that sample
    rankers: Pool = Pool()  # actors that score
    gpus: int | None = None  # GPUs that a growing cluster may come to; None: those there
    engine: EngineConfig = field(default_factory=EngineConfig)
    torch_threads: int | None = None  # of an actor without a GPU; None: half of its machine's cores
    voices_cached: int = 4096  # conditioning latents that a sampler keeps; one takes 4 KB
    audio_root: str | None = None  # folder that all audio must lie below; None: any local path
    # https://host or s3://bucket that audio may also come from, besides those that the manifest lies on
    audio_hosts: tuple[str, ...] = ()
    publish_bytes: int = 128 << 20  # of finished blocks that become one output file
    report_seconds: float = 10.0  # between two lines of progress
    worker_logs: bool = False  # print what the workers log, tracebacks included

    def __post_init__(self) -> None:
        _check("rows_per_block", self.rows_per_block, self.rows_per_block is None or self.rows_per_block >= 1)
        _check("gpus", self.gpus, self.gpus is None or self.gpus >= 1)
        _check("torch_threads", self.torch_threads, self.torch_threads is None or self.torch_threads >= 1)
        _check("voices_cached", self.voices_cached, self.voices_cached >= 1)
        for host in self.audio_hosts:
            if storage.scheme_of(host) is None:
                raise ValueError(f"audio_hosts: {host!r} is no URI such as https://host or s3://bucket")
        _check("publish_bytes", self.publish_bytes, self.publish_bytes >= 1)
        _check("report_seconds", self.report_seconds, self.report_seconds > 0)


@dataclass(frozen=True)
class Run:
    """One run: what it reads, what it writes, the settings that change results, and those that do not."""

    # Parquet, JSONL or CSV files, folders or quoted globs, with id, text and audio, or speech_ids to rank
    manifest: tuple[str, ...]
    output: str  # folder in which data/ and errors/ are written
    model: str  # checkpoint folder, hub id or URI
    results: ResultSettings | RankingSettings
    execution: ExecutionSettings = ExecutionSettings()
    retry_failed: bool = False  # also try the rows again that are in the error table
    redo_changed: bool = False  # also make the rows again whose text or audio has changed since
    # output of a finished run with fewer candidates, same manifest and settings: they are taken over
    extend: str | None = None

    def __post_init__(self) -> None:
        _check("extend", self.extend, self.extend is None or isinstance(self.results, ResultSettings))
