"""Finds products in which a row's numbers do not depend on the rows beside it, by trying them out.

Matrix libraries choose their inner loops by the shape of the whole product and the number of threads: a
micro-kernel of six rows treats the two that are left of eight otherwise, and a product split between threads
may add in another order. Nobody promises anything, except MKL in its reproducible mode (see
`clvp.arithmetic`). So steps and prefills of a small decoder with the shapes of the model at hand are run here
in every width that can occur, with one thread, with all and with as many as are set, and the bits compared.

What is found is a fact of processor, libraries and the model's shapes; of the number of threads only where
products depend on it, as oneDNN's do without AVX512 for more than two.

Shapes: W rows of a product, D width, V vocabulary, T tokens, H heads, N head dimensions, P prefix positions.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clvp.sampling.cohort import Cohort
from clvp.sampling.decode_weights import (
    DecoderWithHead,
    Products,
    arrange_weights,
    can_pack,
    linear_product,
)
from clvp.sampling.prefill import Prefix, prefill

Kind = Literal["packed", "plain"]

# Divisors of the widest product among the multiples of what micro-kernels take at once.
QUANTA = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
FIXED = Products(packed=False, quantum=64, widest=64)
# Cohorts in which attention is compared: prefix length, tokens drawn, lanes of one row at most, and how far
# apart the widths are: 1 for all of them, 3 for every third.
ATTENTION_CASES = ((30, 1, 192, 3), (90, 40, 192, 1), (1000, 17, 192, 3), (30, 500, 24, 3))

_FOLDER = Path(__file__).parent
_CODE = blake2b(
    b"".join(path.read_bytes() for path in sorted([*_FOLDER.glob("*.py"), *_FOLDER.parent.glob("*.py")]))
).hexdigest()  # of what is tried out, as it was when it was imported
# Of the variables that matrix libraries and torch are set by.
_SETTING_PREFIXES = (
    "ATEN_",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "TORCH_",
)


@dataclass(frozen=True)
class Arithmetic:
    """How this machine computes for models of one shape."""

    products: Products
    digest: str | None  # of the bits of what was tried: machines that compute alike have the same one.
    # None: no width is right, and bits may depend on threads, on places in a product and on the day

    def facts(self) -> dict[str, str | int]:
        """What tokens depend on, by name."""
        kind = "packed" if self.products.packed else "plain"
        facts: dict[str, str | int] = {"products": kind, "quantum": self.products.quantum}
        if self.digest is None:
            return facts | {"threads": torch.get_num_threads()}
        return facts | {"arithmetic": self.digest}


def find_arithmetic(model: DecoderWithHead, kind: Kind | None = None) -> Arithmetic:
    """The faster kind of product that leaves a row its bits, or `kind`, with the smallest quantum that does.

    The faster kind follows from the processor, by the benchmark: a measurement of the moment would let actors
    of one run choose unlike each other, since they start together on a busy machine.

    Where no width is right there is one fixed width, and the number of threads becomes part of the facts.
    """
    return _find(*_question(model, kind))


@torch.no_grad()
def deciding(model: DecoderWithHead, kind: Kind | None = None) -> tuple[Any, ...]:
    """All that decides what `find_arithmetic` finds: the model's shapes, processor, libraries, their settings
    and what they are set to in this process, by a small product, and the code that is tried out.
    """
    model_type, *question = _question(model, kind)
    generator = torch.Generator().manual_seed(0)
    x_WI, weight_OI = (torch.randn(rows, 1000, generator=generator) for rows in (13, 257))
    kinds = (False, True) if can_pack(weight_OI) else (False,)
    products = [linear_product(weight_OI, weight_OI[:, 0], packed) for packed in kinds]
    bits = [bits_of(product(x_WI[:width]) for width in range(1, 14)) for product in products]
    changing = ("processor", "cpu MHz", "core id", "apicid", "initial apicid", "bogomips")  # core by core
    processor = {
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.partition(":")[0].strip() not in changing
    }
    settings = {key: value for key, value in os.environ.items() if key.startswith(_SETTING_PREFIXES)}
    libraries = (torch.__version__, torch.__config__.show(), os.confstr("CS_GNU_LIBC_VERSION"))
    return (model_type, *question, sorted(processor), sorted(settings.items()), libraries, _CODE, bits)


def bits_of(tensors: Iterable[Tensor]) -> str:
    """A digest of all of them, on the CPU."""
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _question(
    model: DecoderWithHead, kind: Kind | None
) -> tuple[Any, str, torch.dtype, tuple[Kind, ...], tuple[int, ...]]:
    """The arguments of `_find`."""
    weight = model.lm_head.weight
    packed_pays = torch.backends.cpu.get_cpu_capability() == "AVX512"
    kinds: list[Kind] = ["packed", "plain"] if packed_pays else ["plain", "packed"]
    if not can_pack(weight):
        kinds = ["plain"]
    if kind is not None and kind not in kinds:
        raise ValueError(f"products={kind!r} are not to be had here for {weight.dtype}")
    shapes = json.dumps(replace(model.config, num_hidden_layers=2).to_dict(), sort_keys=True)
    tried = tuple(kinds if kind is None else [kind])
    return type(model), shapes, weight.dtype, tried, thread_counts()


@lru_cache(maxsize=16)
@torch.no_grad()
def _find(
    model_type: Any, shapes: str, dtype: torch.dtype, kinds: tuple[Kind, ...], threads: tuple[int, ...]
) -> Arithmetic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_type(model_type.config_class.from_dict(json.loads(shapes))).to(dtype).eval()
    for kind in kinds:
        for quantum in QUANTA:
            probe = _Probe(model, Products(kind == "packed", quantum))
            if (digest := probe.digest(threads)) is not None:
                return Arithmetic(probe.products, digest)
    return Arithmetic(FIXED, None)


def thread_counts() -> tuple[int, ...]:
    """The numbers of threads with which bits are compared: one, all there are, and as many as are set."""
    return tuple(sorted({1, max(len(os.sched_getaffinity(0)), 2), torch.get_num_threads()}))


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Runs with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _AttentionCase:
    """A prefix, and what lanes of its row have drawn before; the newest position is written over."""

    prefix: Prefix
    keys_BHTN: Tensor
    values_BHTN: Tensor
    widths: tuple[int, ...]  # numbers of lanes to compare


class _Probe:
    """A decoder of two layers, run with one kind of products."""

    def __init__(self, model: DecoderWithHead, products: Products) -> None:
        self.products = products
        self.weights = arrange_weights(model, products)
        self.one_layer = replace(self.weights, layers=self.weights.layers[:1])
        width, heads, dtype = self.weights.width, self.weights.heads, self.weights.dtype
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.rows_WD = noise(products.widest, width)
        self.qkv_WE = noise(products.widest, 3 * width)
        history_HTN = noise(heads, max(tokens for _, tokens, _, _ in ATTENTION_CASES), width // heads)
        self.prefix_PD = noise(self.weights.max_prefix, width)
        self.cases = [
            _AttentionCase(
                prefill(self.one_layer, [self.prefix_PD[:length]])[0],
                history_HTN[:, :tokens].repeat(min(lanes, products.widest), 1, 1, 1),
                history_HTN[:, :tokens].repeat(min(lanes, products.widest), 1, 1, 1),
                (1, 2, *(width for width in products.widths[::-every] if width <= lanes)),
            )
            for length, tokens, lanes, every in ATTENTION_CASES
        ]

    def digest(self, threads: Iterable[int]) -> str | None:
        """Of the bits of all outputs; None unless every row keeps them: in any width, at another place, with
        these numbers of threads.
        """
        first, *others = threads
        with thread_count(first):
            expected = self.outputs()
            if not self._agrees(expected):
                return None
        for count in others:
            with thread_count(count):
                again = self.outputs()
                if not all(map(torch.equal, expected, again)) or not self._agrees(expected, reverse=True):
                    return None
        return bits_of(expected)

    def outputs(self) -> list[Tensor]:
        """The widest step, attention of the widest row in each case, and the prefills of three lengths."""
        longest = self.weights.max_prefix
        lengths = sorted({min(30, longest), min(90, longest), longest})
        prefixes = [prefill(self.weights, [self.prefix_PD[:length]])[0] for length in lengths]
        return [
            self._step(self.products.widest),
            *(self._attend(case, len(case.keys_BHTN)) for case in self.cases),
            *(block for prefix in prefixes for block in (*prefix.keys, *prefix.values)),
        ]

    def _agrees(self, expected: list[Tensor], reverse: bool = False) -> bool:
        """Whether narrower steps and rows of fewer lanes have the bits of the widest ones."""
        steps_WO, *attended = expected
        widths = self.products.widths
        if not all(torch.equal(self._step(width, reverse), steps_WO[:width]) for width in widths):
            return False
        if not all(map(torch.equal, self._prefix_in_company(reverse), attended[len(self.cases) :])):
            return False
        return all(
            torch.equal(self._attend(case, lanes, reverse), attended_WD[:lanes])
            for case, attended_WD in zip(self.cases, attended, strict=False)
            for lanes in case.widths
        )

    def _prefix_in_company(self, last: bool) -> list[Tensor]:
        """Keys and values of the shortest prefix, the first or last of as many rows as go together."""
        x_PD = self.prefix_PD[: min(30, len(self.prefix_PD))]
        rows = [x_PD.roll(i, 0) for i in range(max(self.products.widest // len(x_PD), 1))]
        prefix = prefill(self.weights, rows[::-1] if last else rows)[-1 if last else 0]
        return [*prefix.keys, *prefix.values]

    def _step(self, rows: int, reverse: bool = False) -> Tensor:
        """[rows, …] what each product of one layer and the head gives, without attention: what one rounds
        away must not hide another's bits. `reverse` puts the last row first and back.
        """
        x_WD = self.rows_WD[:rows].flip(0) if reverse else self.rows_WD[:rows]
        (layer,), found = self.one_layer.layers, []
        found.append(layer.qkv(layer.input_norm(x_WD)))
        found.append(layer.out(found[-1].chunk(3, dim=-1)[2], x_WD))
        found.append(layer.mlp_in(layer.mlp_norm(found[-1])))
        found.append(layer.mlp_out(found[-1], found[-2]))
        found.append(self.one_layer.head(self.one_layer.final_norm(found[-1])))
        outputs_WO = torch.cat(found, dim=1)
        return outputs_WO.flip(0) if reverse else outputs_WO

    def _attend(self, case: _AttentionCase, lanes: int, reverse: bool = False) -> Tensor:
        """[lanes, D]: attention of the first lanes of one row, alone in their cohort."""
        cohort = Cohort(self.one_layer, [case.prefix], [lanes], 1)
        cohort.keys, cohort.values = [case.keys_BHTN], [case.values_BHTN]
        cohort.length = case.keys_BHTN.shape[2]
        qkv_WE = self.qkv_WE[:lanes].flip(0) if reverse else self.qkv_WE[:lanes]
        attended_WD = cohort.attend(0, *qkv_WE.chunk(3, dim=-1))
        return attended_WD.flip(0) if reverse else attended_WD
