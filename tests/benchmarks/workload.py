"""The models and prompts of the benchmarks: random weights, and lengths like those of real speech.

Shapes: P prefix length, D width, T speech tokens, V vocabulary.
"""

import math
import random
from copy import copy
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor

from clvp import ClvpDecoderConfig, ClvpForCausalLM
from clvp.sampling import CandidateSampler, EngineConfig, PromptRow, SamplingParams
from tests.sampling.rehearsal import REHEARSED, static_decoder

from .harness import Options, Size, tell

UNFINISHED = 0.05  # of the candidates run into the length limit, where lengths are drawn
TOKENS_PER_SECOND = 22050 / 1024  # of audio

if REHEARSED:
    setattr(CandidateSampler, "new_decoder", static_decoder)  # noqa: B010  (mypy)


def decoder_config(size: Size) -> ClvpDecoderConfig:
    """ "full" is the published model; the others keep its vocabulary and positions."""
    if size == "full":
        return ClvpDecoderConfig()
    if size == "tiny":
        return ClvpDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    return ClvpDecoderConfig(hidden_size=256, num_hidden_layers=6, num_attention_heads=4)


def fixed_length(tokens: int) -> SamplingParams:
    """Tortoise's sampling, the stop token suppressed: every candidate has `tokens` tokens."""
    return SamplingParams(max_new_tokens=tokens, min_new_tokens=tokens)


def drawn_length(limit: int) -> SamplingParams:
    """Lengths from a quarter of `limit` up, under `stop_probability`: half as long as the limit on average.

    Sampling is from the top 50, unfiltered, for which `set_stop_probability` is made.
    """
    return SamplingParams(
        max_new_tokens=limit,
        min_new_tokens=limit // 4,
        temperature=1.0,
        top_p=1.0,
        repetition_penalty=1.0,
    )


def stop_probability(limit: int) -> float:
    """The chance to stop at a step with which 5% of the candidates reach the limit."""
    return 1 - UNFINISHED ** (1 / (limit - limit // 4))


def warm_up_length(options: Options, tokens: int) -> int:
    """Tokens of a warm-up: few, but on a GPU as many as later, because kernels are compiled for them."""
    return tokens if options.on_gpu else 2


def real_prefixes(rows: int, seed: int) -> list[int]:
    """Prompt lengths of `rows` sentences: log-normal around 64 positions, most between 30 and 130."""
    draw = random.Random(seed)
    return [min(max(round(draw.lognormvariate(math.log(64), 0.4)), 16), 404) for _ in range(rows)]


def prompts(lengths: list[int], candidates: int, options: Options) -> list[PromptRow]:
    """One row for each prefix length."""
    width = decoder_config(options.size).hidden_size
    generator = torch.Generator().manual_seed(options.seed)
    return [
        PromptRow(
            row_id=f"row-{number}",
            prefix_PD=torch.randn(length, width, generator=generator).to(options.device, options.dtype),
            candidates=range(candidates),
        )
        for number, length in enumerate(lengths)
    ]


class Workload:
    """The model, its sampler and its peer, each made when it is first wanted."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @cached_property
    def model(self) -> ClvpForCausalLM:
        """Random weights. What the stop token is worth depends on no context."""
        tell(f"making the {self.options.size} model")
        torch.manual_seed(self.options.seed)
        with self.options.device:
            model = ClvpForCausalLM(decoder_config(self.options.size)).eval()
        model = model.to(self.options.dtype).requires_grad_(False)
        set_stop_probability(model, stop_probability(self.options.tokens))
        return model

    @cached_property
    def sampler(self) -> CandidateSampler:
        """Ours, as users get it."""
        model = self.model
        tell("arranging its weights")
        return CandidateSampler(model, EngineConfig(lanes=self.options.lanes))

    def sampler_with_lanes(self, lanes: int) -> CandidateSampler:
        """The same sampler, sharing the weights, with another number of lanes."""
        other = copy(self.sampler)
        other.lanes = lanes
        return other

    @cached_property
    def peer(self) -> Any:
        """`transformers`' ClvpForCausalLM on the very same weights (shared, not copied)."""
        config = self.model.config
        settings = {field.name: getattr(config, field.name) for field in fields(config)}
        with torch.device("meta"):
            peer = transformers.ClvpForCausalLM(transformers.ClvpDecoderConfig(**settings))
        peer.load_state_dict(self.model.state_dict(), assign=True)
        return peer.eval()


@torch.no_grad()
def set_stop_probability(model: ClvpForCausalLM, probability: float) -> None:
    """Makes the stop token equally likely in every context when sampling from the top 50."""
    head, stop = model.lm_head, model.config.eos_token_id
    head.weight[stop] = 0
    generator = torch.Generator().manual_seed(0)
    tokens_1T = torch.randint(0, 8192, (1, 64), generator=generator).to(model.device)
    prefix_1PD = torch.randn(1, 8, model.config.hidden_size, generator=generator).to(head.weight)
    states_TD = model.speech_latents(prefix_1PD, tokens_1T)[0]
    logits_TV = head(states_TD).float()
    logits_TV[:, stop] = -torch.inf
    others = logits_TV.topk(49).values.logsumexp(-1).mean().item()
    head.bias[stop] = others + math.log(probability / (1 - probability))


def ours(sampler: CandidateSampler, rows: list[PromptRow], params: SamplingParams) -> float:
    """Samples all candidates; the number of tokens drawn."""
    return sum(len(candidate.tokens) for row in sampler.sample(rows, params) for candidate in row)


def theirs(peer: Any, rows: list[PromptRow], params: SamplingParams) -> float:
    """The same with `generate`, row by row: padded batches of rows give other tokens. Tokens drawn."""
    stop, tokens = peer.config.eos_token_id, 0
    for row in rows:
        sequences_NT: Tensor = peer.generate(
            conditioning_embeds=row.prefix_PD[None],
            num_return_sequences=len(row.candidates),
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens,
            do_sample=True,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            repetition_penalty=params.repetition_penalty,
            pad_token_id=stop,
        )
        tokens += int((sequences_NT[:, 1:] != stop).sum())
    return tokens
