"""Decoding steps beside what the hardware allows, measured in turns with them.

On a CPU the limit is the time of a step's bare matrix products: once with `torch.nn.functional.linear`, once
with the packed products that the sampler itself uses (bias, activation and residual included), which is the
harder limit. On a GPU it is the time to read all weights and the live keys and values once.

Shapes: W lanes, I and O inputs and outputs of a product.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from clvp import ClvpForCausalLM
from clvp.decoder import ClvpDecoderLayer
from clvp.sampling import PromptRow
from clvp.sampling.decode_weights import DecoderWeights

from .decoding import live_kv_bytes, reader, start_decoder, steps_per_call
from .harness import Rates, Table, interleaved, percent, short, tell, timed
from .report import main
from .workload import TOKENS_PER_SECOND, Workload, fixed_length, prompts, real_prefixes

CPU_CASES = ((1, 1), (1, 16), (1, 64), (16, 4))  # rows × candidates
GPU_CASES = ((1, 16), (1, 64), (1, 256), (16, 16))
AIMS = {(1, 16): 0.75, (1, 64): 0.80}  # share of the products' limit, two cores, full size
GPU_AIMS = {(16, 16): 0.50}  # share of the bandwidth's limit, one H200
CALLS = 4  # of `step`, in one timing
REPETITIONS = 7


@dataclass(frozen=True)
class Result:
    """What one case gave."""

    rows: int
    candidates: int
    rates: dict[str, Rates]  # tokens/s, but "read" bytes/s
    first_seconds: float  # to the first token
    prefill_seconds: float  # of a row, once its length has been met before
    kv_bytes: float  # live, averaged over the timed steps

    @property
    def lanes(self) -> int:
        """Candidates in a step."""
        return self.rows * self.candidates

    def step_seconds(self, contestant: str = "steps") -> float:
        """Time for one token of every lane."""
        return self.lanes / self.rates[contestant].median

    @property
    def kv_seconds(self) -> float:
        """Time to read the live keys and values once."""
        return self.kv_bytes / self.rates["read"].median


def plain_matrices(model: ClvpForCausalLM) -> list[Tensor]:
    """The matrices [O, I] of one step, in order; query, key and value in one."""
    matrices: list[Tensor] = []
    for layer in cast("Iterable[ClvpDecoderLayer]", model.model.decoder.layers):
        attention, mlp = layer.attn, layer.mlp
        matrices.append(
            torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        )
        matrices += [attention.out_proj.weight, mlp.c_fc.weight.t().contiguous()]
        matrices.append(mlp.c_proj.weight.t().contiguous())
    return [*matrices, model.lm_head.weight]


def plain_products(matrices: list[Tensor], lanes: int) -> Callable[[], float]:
    """A step's products by torch; gives the tokens that such a step would make."""
    inputs = {matrix.shape[1]: torch.randn(lanes, matrix.shape[1]).to(matrix) for matrix in matrices}

    def multiply() -> float:
        for matrix_OI in matrices:
            functional.linear(inputs[matrix_OI.shape[1]], matrix_OI)
        return lanes

    return torch.inference_mode()(multiply)


def packed_products(weights: DecoderWeights, lanes: int) -> Callable[[], float]:
    """A step's products as the sampler computes them; gives the tokens that such a step would make."""
    x_WD = torch.randn(lanes, weights.width).to(weights.token_embedding_VD)

    def multiply() -> float:
        for layer in weights.layers:
            layer.qkv(x_WD)
            layer.out(x_WD, x_WD)
            layer.mlp_out(layer.mlp_in(x_WD), x_WD)
        weights.head(x_WD)
        return lanes

    return torch.inference_mode()(multiply)


def run(workload: Workload) -> list[Table]:
    """One table, for the CPU or for the GPU."""
    options = workload.options
    cases = GPU_CASES if options.on_gpu else CPU_CASES
    matrices = plain_matrices(workload.model)
    weight_bytes = float(sum(matrix.nbytes for matrix in matrices))
    results = []
    for rows, candidates in cases:
        if rows * candidates > workload.sampler.lanes:
            continue
        tell(f"limit: {rows} rows × {candidates} candidates")
        lengths = [options.prefix] if rows == 1 else real_prefixes(rows, options.seed)
        results.append(_measure(workload, prompts(lengths, candidates, options), matrices))
    if options.on_gpu:
        return [_gpu_table(results, weight_bytes)]
    return [_cpu_table(results, full_size=options.size == "full")]


def _measure(workload: Workload, rows: list[PromptRow], matrices: list[Tensor]) -> Result:
    options, sampler = workload.options, workload.sampler
    lanes = sum(len(row.candidates) for row in rows)
    tokens_per_turn = CALLS * steps_per_call(options)
    positions = sampler.weights.position_embedding_LD.shape[0]
    repetitions = min(options.repeat(REPETITIONS), positions // tokens_per_turn - 2)
    params = fixed_length((repetitions + 2) * tokens_per_turn)

    def first_tokens() -> float:
        start_decoder(sampler, rows, params).step()
        return lanes

    first_seconds, _ = min(timed(first_tokens, options.device) for _ in range(2))
    decoder = start_decoder(sampler, rows, params)

    def steps() -> float:
        for _ in range(CALLS):
            decoder.step()
        return lanes * tokens_per_turn

    def prefills() -> float:
        decoder.prefill([row.prefix_PD for row in rows])
        return len(rows)

    prefill_seconds = min(
        seconds / count for seconds, count in (timed(prefills, options.device) for _ in range(4))
    )
    contestants = {"steps": steps, "read": reader(options.device)}
    if not options.on_gpu:
        contestants["packed"] = packed_products(sampler.weights, lanes)
        contestants["plain"] = plain_products(matrices, lanes)
    interleaved(contestants, 1, options.device)  # to warm up
    rates = interleaved(contestants, repetitions, options.device)
    middle = tokens_per_turn * (1 + repetitions / 2)
    kv_bytes = live_kv_bytes(sampler.weights, rows, middle)
    return Result(len(rows), len(rows[0].candidates), rates, first_seconds, prefill_seconds, kv_bytes)


def _cpu_table(results: list[Result], full_size: bool) -> Table:
    lines = []
    for result in results:
        case = (result.rows, result.candidates)
        step, packed = result.step_seconds(), result.step_seconds("packed")
        lines.append(
            [
                f"{result.rows} × {result.candidates}",
                str(result.rates["steps"]),
                str(result.rates["packed"]),
                percent(packed / step),
                f"{AIMS[case]:.0%}" if case in AIMS and full_size else "",
                percent((packed + result.kv_seconds) / step),
                str(result.rates["plain"]),
                percent(result.step_seconds("plain") / step),
                short(1000 * step),
                short(1000 * result.first_seconds),
                short(1000 * result.prefill_seconds),
            ]
        )
    bandwidth = max(rate for result in results for rate in result.rates["read"].values)
    return Table(
        title="Versus the limit of the processor",
        columns=[
            "rows × candidates",
            "steps, tokens/s",
            "packed products, tokens/s",
            "share",
            "aim",
            "share of products + KV read",
            "F.linear, tokens/s",
            "share",
            "step, ms",
            "first token, ms",
            "prefill, ms a row",
        ],
        rows=lines,
        notes="Steps alone, without prefill, against the bare matrix products of a step of as many "
        "candidates. Packed products are oneDNN's, as the sampler uses them, with bias, activation and "
        "residual; F.linear is torch's, bare. The third share adds the time to read the live keys and values "
        f"once at the bandwidth measured (at best {bandwidth / 1e9:.1f} GB/s). First token: prefill, "
        "admission and one step.",
    )


def _gpu_table(results: list[Result], weight_bytes: float) -> Table:
    lines = []
    for result in results:
        bandwidth = result.rates["read"].median
        limit, step = (weight_bytes + result.kv_bytes) / bandwidth, result.step_seconds()
        aim = GPU_AIMS.get((result.rows, result.candidates))
        lines.append(
            [
                f"{result.rows} × {result.candidates}",
                str(result.rates["steps"]),
                short(1000 * step),
                short(1000 * limit),
                percent(limit / step),
                f"{aim:.0%}" if aim else "",
                short(bandwidth / 1e9),
                short(weight_bytes / 1e6),
                short(result.kv_bytes / 1e6),
                short(result.rates["steps"].median / TOKENS_PER_SECOND),
                short(1000 * result.first_seconds),
                short(1000 * result.prefill_seconds),
            ]
        )
    return Table(
        title="Versus the bandwidth of the GPU",
        columns=[
            "rows × candidates",
            "steps, tokens/s",
            "step, ms",
            "limit, ms",
            "share",
            "aim",
            "bandwidth, GB/s",
            "weights, MB",
            "live KV, MB",
            "hours of audio per hour",
            "first tokens, ms",
            "prefill, ms a row",
        ],
        rows=lines,
        notes="Steps alone, without prefill, against the time to read all weights and the live keys and "
        "values (shared prefixes once) at the bandwidth measured in the same run. First tokens: prefill, "
        "admission, capture of the graph and the steps up to the first look.",
    )


if __name__ == "__main__":
    main(run, __doc__)
