"""The sampler's decoder driven by hand, step by step, to time the steps without what comes before them."""

from collections.abc import Callable

import torch

from clvp.sampling import CandidateSampler, PromptRow, SamplingParams
from clvp.sampling.cpu_decoder import CohortDecoder
from clvp.sampling.decode_weights import DecoderWeights
from clvp.sampling.gpu_decoder import STEPS_PER_LOOK, StaticDecoder
from clvp.sampling.lanes import Admission, LaneOwner
from clvp.sampling.noise import candidate_keys

from .harness import Options, wait_for

Decoder = CohortDecoder | StaticDecoder


def start_decoder(sampler: CandidateSampler, rows: list[PromptRow], params: SamplingParams) -> Decoder:
    """A decoder with a lane for every candidate of every row, before the first step.

    Raises ValueError where the sampler has not that many lanes.
    """
    if sampler.weights.device.type == "cuda":
        torch.cuda.empty_cache()  # what an earlier decoder held counts as free when memory is planned
    decoder = sampler.new_decoder(params)
    admissions = []
    prefixes = decoder.prefill([row.prefix_PD for row in rows])
    for index, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        if decoder.reserve(row.prefix_PD.shape[0], len(row.candidates)) < len(row.candidates):
            raise ValueError(f"{len(rows)} rows × {len(row.candidates)} candidates need more lanes or memory")
        owners = [LaneOwner(index, candidate) for candidate in row.candidates]
        keys_N = candidate_keys(params.seed, row.row_id, row.candidates)
        admissions.append(Admission(prefix, owners, keys_N))
    decoder.admit(admissions)
    wait_for(sampler.weights.device)
    return decoder


def steps_per_call(options: Options) -> int:
    """Tokens that each lane gets from one `step()` of the decoder for this device."""
    return STEPS_PER_LOOK if options.on_gpu else 1


def live_kv_bytes(weights: DecoderWeights, rows: list[PromptRow], tokens: float) -> float:
    """Keys and values that a step must read when every candidate has `tokens` tokens, prefixes shared."""
    suffixes = sum(len(row.candidates) for row in rows) * tokens
    return weights.kv_bytes_per_token * (sum(row.prefix_PD.shape[0] for row in rows) + suffixes)


def reader(device: torch.device) -> Callable[[], float]:
    """A function that reads a gigabyte once; it gives the bytes."""
    size = 2**30
    block = torch.ones(size // 4, dtype=torch.float32, device=device)

    def read() -> float:
        block.sum()
        return size

    return read
