"""A run from the first check to the last, as one Python call: `synthesize`, `rank`, `rank_again`, `decode`.

Everything that can be wrong with the manifest, the settings or the output is found before a model is loaded,
and most of it before Ray is. The driver does without torch.
"""

from dataclasses import replace

from pipeline import storage
from pipeline.description import check_continues, load, load_sampled
from pipeline.errors import RunError
from pipeline.inputs import find_inputs, sounding
from pipeline.output.folder import OutputFolder
from pipeline.progress import Summary
from pipeline.rows.manifest import NATURAL
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, STORED_PAYLOAD, Payload
from pipeline.settings import ResultSettings, Run


def synthesize(run: Run) -> Summary:
    """Sample, score and store `run.results.num_candidates` candidates for every row of the manifest.

    Raises ManifestError and RunError before any model is loaded where they can be known by then.
    """
    assert isinstance(run.results, ResultSettings)
    return _run(run, AUDIO_PAYLOAD, run.results.sampling.seed)


def rank(run: Run) -> Summary:
    """Score and rank the speech tokens that the manifest brings along (id, text, speech_ids)."""
    return _run(run, SPEECH_PAYLOAD, None)


def rank_again(run: Run, source: str) -> Summary:
    """Score and rank the candidates that the run in `source` has stored; `run.manifest` is not used.

    Raises RunError when `source` holds no run.
    """
    folder = OutputFolder(storage.absolute(source))
    before = load(folder)
    if before is None:
        raise RunError(f"{folder.uri} holds no run: there is no run.json in it")
    seed = before.results.sampling.seed if isinstance(before.results, ResultSettings) else None
    return _run(replace(run, manifest=(folder.folder("data"),), reading=NATURAL), STORED_PAYLOAD, seed)


def _run(run: Run, payload: Payload, seed: int | None) -> Summary:
    output = OutputFolder(storage.absolute(run.output))
    output.check()
    inputs = find_inputs(run, payload, output.uri)
    check_continues(output, inputs.run, inputs.checkpoint)

    from pipeline.session import run_session  # with Ray: a second

    return run_session(inputs, output, seed)


def decode(run: Run, source: str) -> Summary:
    """Make the candidates that the run in `source` has stored audible, in an output of its own.

    Of `run.results`, `audio`, `waveform` and `measuring` count. Manifest and model are where the run had them
    by default.

    Raises RunError when `source` holds no run that sampled.
    """
    folder = OutputFolder(storage.absolute(source))
    sampled = load_sampled(folder, run.manifest, run.model, run.reading.voices)[1]
    told, results = run.results, sampled.results
    assert isinstance(told, ResultSettings)
    assert isinstance(results, ResultSettings)
    audio = told.audio if told.audio.audio != "auto" else replace(told.audio, audio=sounding(told))
    results = replace(results, waveform=told.waveform, audio=audio, measuring=told.measuring)
    found = replace(run, manifest=sampled.manifest, reading=sampled.reading, model=sampled.model)
    return synthesize(replace(found, results=results, extend=folder.uri))
