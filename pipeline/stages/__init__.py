"""The stages of a run: `declared` lists them, and says of each all that there is to say.

All else derives from the list: the operators and pools of the stream, shares of GPUs, names in metrics and
errors, rows that are tried alone, replays, and how far which columns travel. A new stage is one more entry.

`make` imports what it needs, so that the driver declares stages without torch, which takes seconds to load.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from clvp import ClvpConfig
from clvp.quality import find_measure
from pipeline import storage
from pipeline.checkpoint import Checkpoint, fetch
from pipeline.description import ADDED_FACTS
from pipeline.errors import ERROR, ManifestError
from pipeline.output import stored_candidates
from pipeline.output.folder import OutputFolder
from pipeline.rows import read
from pipeline.rows.columns import (
    CANDIDATES,
    ENGINE,
    EXTRA_PREFIX,
    ID,
    INPUT_IDS,
    TEXT,
    VOICE_KEY,
    extra_fields,
    require_columns,
)
from pipeline.rows.manifest import NOTHING, Manifest
from pipeline.rows.memory import reading_memory
from pipeline.rows.payloads import AUDIO, SPEECH_IDS, STORED
from pipeline.rows.plan import SLICES
from pipeline.settings import Pool, ResultSettings, Run
from pipeline.stages import choose, measure, tokens, write
from pipeline.stages.choose import Chooser
from pipeline.stages.measure import Measurer
from pipeline.stages.sound import SPOKEN_VOICE, VOICE, output_of
from pipeline.stages.write import BlockWriter

CLIPS_PER_ROW = 4  # different ones, for which memory is reserved

# The last candidates of a block leave lanes to the next one. By count, with lengths as in speech and blocks
# of twice the lanes, 57% of 64 lanes are in use with one block at a time, 97% with two, 98% with three. Ray
# hands an actor twice as many: more would keep a small run's blocks from the samplers that come up later.
BLOCKS_AT_ONCE = 2

OnBlock = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Work:
    """A run whose inputs were found: what its stages are made from, in whatever process."""

    run: Run
    manifest: Manifest
    checkpoint: Checkpoint
    output: OutputFolder
    seed: int | None  # that the candidates are or were sampled with
    engine: Mapping[str, Any] | None = None  # facts of the one that has sampled what the output holds already
    stored: stored_candidates.StoredCandidates | None = None  # of the run that this one extends


@dataclass(frozen=True)
class Stage:
    """One stage: what it is called, does, needs, gives and reserves.

    Columns that it does not name travel on, until no later stage names them. Those that it adds under the
    prefix `extra.` are stored in the output, like the manifest's own.
    """

    name: str
    make: Callable[[Work], OnBlock]  # called once in every process that runs the stage
    input: pa.Schema
    output: pa.Schema  # what it adds or replaces
    optional: pa.Schema = NOTHING  # what it uses where an earlier stage gives it
    pool: Pool | None = None  # of actors, which keep a model; None: tasks on CPUs
    blocks_at_once: int = 1  # in an actor: so many threads call what `make` gives
    gpu_share: float = 0.0  # of an actor; less where the shares of a run's stages are more than one
    group: str = ""  # neighbours of one group are one task, which is timed under this name
    num_cpus: float | None = None  # of a task; None: a core
    memory: Callable[[Work, int], int] = lambda work, rows: 0  # bytes that a task takes for so many rows
    later: frozenset[str] = frozenset()  # columns that later stages name

    def apply(self, stage: OnBlock, table: pa.Table) -> pa.Table:
        """The block after this stage, which `make` has given."""
        require_columns(table, self.input)
        table = stage(table)
        require_columns(table, self.output)
        return table.select([n for n in table.column_names if n in self.later or n.startswith(EXTRA_PREFIX)])


def declared(run: Run) -> list[Stage]:
    """The stages of a run, in order."""
    stages = [_reading(run), _validation(run)]
    if isinstance(run.results, ResultSettings):
        stages.append(_hearing(run, run.results))
        if run.extend is not None:
            stages.append(_extension())
        stages.append(_sampling(run, run.results))
    stages.append(_ranking(run))
    if isinstance(run.results, ResultSettings):
        told = run.results.measuring
        if run.results.audio.most:
            stages.append(_decoding(run, run.results))
            stages += [_measuring(run, run.results, told.measure[: k + 1]) for k in range(len(told.measure))]
        if told.rank_by or told.keep_if:
            stages.append(_choosing(run.results))
    return [*stages, _writing()]


def _reading(run: Run) -> Stage:
    payload = AUDIO if isinstance(run.results, ResultSettings) else SPEECH_IDS
    return Stage(
        "read",
        lambda work: lambda slices: read.read_block(work.manifest, slices),
        input=SLICES,
        output=pa.schema([*read.OUTPUT, payload]),
        group="prepare",
        memory=lambda work, rows: reading_memory(rows, None),
    )


def _validation(run: Run) -> Stage:
    def make(work: Work) -> OnBlock:
        from clvp.conditioning import PROMPT_TOKENS_AROUND_TEXT

        model = fetch(work.checkpoint)
        most = ClvpConfig.from_pretrained(model).decoder_config.max_text_tokens - PROMPT_TOKENS_AROUND_TEXT
        tokenizer = tokens.load_tokenizer(model, run.results.model.normalizer)
        return tokens.TextToTokens(tokenizer, most)

    output = pa.schema([INPUT_IDS, tokens.UNKNOWN_TOKENS])
    return Stage("validate", make, pa.schema([TEXT, ERROR]), output, group="prepare")


def _hearing(run: Run, results: ResultSettings) -> Stage:
    def make(work: Work) -> OnBlock:
        from clvp import ClvpFeatureExtractor
        from clvp.waveform.files import load_random_voices
        from clvp.waveform.mel import clip_mels
        from pipeline.stages.voices import AudioToMels

        model, load = fetch(work.checkpoint), cache(load_random_voices)  # 126 MB, which few runs need
        extractor = ClvpFeatureExtractor.from_pretrained(model)
        spoken = partial(clip_mels, whole=results.audio.whole_clips) if results.audio.most else None
        root, places = run.execution.audio_root, work.manifest.places(run.execution.audio_hosts)

        def random_voice(name: str) -> Any:
            return load(model).voice(name, results.sampling.seed)

        return AudioToMels(extractor.log_mel, results.audio_seconds, root, places, spoken, random_voice)

    return Stage(
        "audio",
        make,
        input=pa.schema([AUDIO, ERROR]),
        output=pa.schema([VOICE_KEY, VOICE, AUDIO, *([SPOKEN_VOICE] if results.audio.most else [])]),
        group="prepare",
        memory=lambda work, rows: reading_memory(rows, results.audio_seconds, CLIPS_PER_ROW),
    )


def _extension() -> Stage:
    def make(work: Work) -> OnBlock:
        assert work.stored is not None
        return work.stored.attach

    return Stage("extend", make, stored_candidates.INPUT, pa.schema([STORED]), group="prepare")


def _sampling(run: Run, results: ResultSettings) -> Stage:
    def make(work: Work) -> OnBlock:
        from pipeline.stages.sample import Sampler

        return Sampler(
            fetch(work.checkpoint),
            settings=results,
            engine=run.execution.engine,
            voices_cached=run.execution.voices_cached,
            torch_threads=run.execution.torch_threads,
            sampled_before=work.stored.sampled if work.stored else 0,
            expected_facts=work.engine and {k: v for k, v in work.engine.items() if k not in ADDED_FACTS},
        )

    return Stage(
        "sample",
        make,
        input=pa.schema([ID, INPUT_IDS, VOICE_KEY, VOICE, ERROR]),
        output=pa.schema([SPEECH_IDS, ENGINE]),
        optional=pa.schema([STORED]),
        pool=run.execution.samplers,
        blocks_at_once=BLOCKS_AT_ONCE,
        gpu_share=0.75,
    )


def _ranking(run: Run) -> Stage:
    def make(work: Work) -> OnBlock:
        from pipeline.stages.rank import Ranker

        return Ranker(
            fetch(work.checkpoint),
            loading=run.results.model,
            settings=run.results.scoring,
            torch_threads=run.execution.torch_threads,
        )

    return Stage(
        "rank",
        make,
        input=pa.schema([TEXT, INPUT_IDS, SPEECH_IDS, ERROR]),
        output=pa.schema([CANDIDATES]),
        pool=run.execution.rankers,
        gpu_share=0.25,
    )


def _decoding(run: Run, results: ResultSettings) -> Stage:
    def make(work: Work) -> OnBlock:
        from pipeline.stages.waveform import WaveformMaker

        return WaveformMaker(
            fetch(work.checkpoint),
            settings=results,
            execution=run.execution,
            output=work.output,
            expected_facts=(work.engine or {}).get("waveform"),
        )

    return Stage(
        "waveform",
        make,
        input=pa.schema([ID, INPUT_IDS, VOICE_KEY, VOICE, SPOKEN_VOICE, CANDIDATES, ENGINE, ERROR]),
        output=output_of(results),
        pool=run.execution.decoders,
        gpu_share=0.5,
    )


def _measuring(run: Run, results: ResultSettings, names: Sequence[str]) -> Stage:
    """The last of these measures."""
    kind, folder = find_measure(names[-1]), run.execution.recognizer
    # Workers may have another current folder than the driver.
    given = [folder and storage.absolute(folder)] if names[-1] == "transcribe" else []

    def make(work: Work) -> OnBlock:
        from pipeline.stages.decode import decode_clip

        facts = (work.engine or {}).get("measures", {})
        root, places = run.execution.audio_root, work.manifest.places(run.execution.audio_hosts)

        def decode(clip: Mapping[str, Any]) -> Any:
            return decode_clip(clip["bytes"], clip["path"], results.audio_seconds, root, places)

        return Measurer(names, kind(*given), decode, facts.get(names[-1]))

    gpus = getattr(kind, "gpus", 0)
    return Stage(
        names[-1],
        make,
        input=measure.measure_input(names, results.audio),
        output=pa.schema([measure.measured_field(names), ENGINE]),
        pool=Pool() if gpus else None,
        gpu_share=gpus,
        group="" if gpus else "measure",
        memory=lambda work, rows: measure.MEMORY,
    )


def _choosing(results: ResultSettings) -> Stage:
    columns = choose.choice_columns(results)
    return Stage("choose", lambda work: Chooser(results), columns, columns, group="measure")


def _writing() -> Stage:
    return Stage(
        "write",
        lambda work: BlockWriter(work.output, work.seed),
        input=write.INPUT,
        output=write.REPORT,
        optional=write.SAMPLED,
        num_cpus=0.25,
    )


# ---- what derives from the list ----


def stages_of(run: Run) -> list[Stage]:
    """The stages of a run, in order, each with the columns that the ones behind it name.

    Raises ValueError for a stage that names a column which no earlier one gives.
    """
    stages = declared(run)
    given = set(SLICES)
    for stage in stages:
        if missing := set(stage.input) - given:
            raise ValueError(f"no stage before {stage.name} gives it {sorted(f.name for f in missing)}")
        given |= set(stage.output)
    derived: list[Stage] = []
    used: set[str] = set()
    for stage in reversed(stages):
        derived.insert(0, replace(stage, later=frozenset(used or stage.output.names)))
        used |= {*stage.input.names, *stage.optional.names}
    return derived


def computed_columns(stages: Iterable[Stage]) -> list[pa.Field]:
    """The columns that stages add to the output, under their names there, as the last of them gives them."""
    fields = {field.name: field for stage in stages for field in extra_fields(stage.output)}
    return [field.with_name(name.removeprefix(EXTRA_PREFIX)) for name, field in fields.items()]


def output_columns(run: Run, manifest: Manifest) -> pa.Schema:
    """Columns of the output beside its own: the manifest's, and those that stages add.

    Raises ManifestError for one that is both.
    """
    computed = computed_columns(stages_of(run))
    for column in computed:
        if column.name in manifest.extra.names:
            raise ManifestError(f"the manifest has a column {column.name!r}, which a stage of this run adds")
    return pa.schema([*manifest.extra, *computed])


def grouped(stages: Iterable[Stage]) -> list[tuple[str, list[Stage]]]:
    """The stages by the workers that run them, with the name of those."""
    return [(name, list(group)) for name, group in groupby(stages, lambda stage: stage.group or stage.name)]


def gpu_shares(stages: Iterable[Stage]) -> dict[str, float]:
    """What an actor of each stage reserves where there are GPUs.

    Together it is one GPU at most: where the settings give some stages a share, the others have what is left.
    """
    pools = {stage.name: (stage.pool.num_gpus, stage.gpu_share) for stage in stages if stage.pool}
    told = {name: given for name, (given, _) in pools.items() if given is not None}
    wanted = {name: share for name, (given, share) in pools.items() if given is None}
    left = 1 - sum(told.values())
    scale = min(1.0, (left if left > 0 else 1.0) / max(sum(wanted.values()), 1e-9))
    # Ray counts in ten thousandths.
    return told | {name: math.floor(share * scale * 10_000 + 1e-6) / 10_000 for name, share in wanted.items()}


class Chain:
    """Stages at work one behind the other in one process, made for a run. Callable on a block."""

    def __init__(self, stages: Sequence[Stage], work: Work) -> None:
        self.steps = [(stage, stage.make(work)) for stage in stages]

    def __call__(self, table: pa.Table) -> pa.Table:
        for stage, made in self.steps:
            table = stage.apply(made, table)
        return table
