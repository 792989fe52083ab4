"""What the benchmarks share: their options, interleaved timing, and tables in Markdown."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

import torch

from tests.sampling.rehearsal import DEVICE, REHEARSED

Size = Literal["full", "small", "tiny"]


@dataclass(frozen=True)
class Options:
    """How to run a benchmark. Device and dtype are chosen, the rest is asked for."""

    size: Size
    device: torch.device
    tokens: int  # new tokens per candidate
    prefix: int  # prompt positions where all rows have the same
    repetitions: int | None  # None: each benchmark's own number
    lanes: int | None  # of the sampler; None: its default
    seed: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU, or plays one."""
        return self.device.type == "cuda" or REHEARSED

    @property
    def dtype(self) -> torch.dtype:
        """The fast and safe type of the device."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def repeat(self, default: int) -> int:
        """The number of repetitions asked for, else `default`."""
        return self.repetitions or default


def _tokens(text: str) -> int:
    if not 4 <= int(text) <= 500:
        raise argparse.ArgumentTypeError("from 4 to 500")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark."""
    parser.add_argument("--size", choices=get_args(Size), default="full", help="of the random weights")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--tokens", type=_tokens, help="new tokens per candidate (default: 24, on a GPU 256)")
    parser.add_argument("--prefix", type=int, default=64, help="positions of the prompt (default: 64)")
    parser.add_argument("--repetitions", type=int, help="default: each benchmark's own")
    parser.add_argument("--lanes", type=int, help="candidates decoded at once (default: the sampler's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)


def options_from(arguments: argparse.Namespace) -> Options:
    """Options from parsed arguments; sets the number of threads."""
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or DEVICE)
    return Options(
        size=arguments.size,
        device=device,
        tokens=arguments.tokens or (256 if device.type == "cuda" else 24),
        prefix=arguments.prefix,
        repetitions=arguments.repetitions,
        lanes=arguments.lanes,
        seed=arguments.seed,
    )


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""

    def markdown(self) -> str:
        """Title, notes and table."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return "\n\n".join(part for part in (f"### {self.title}", self.notes, table) if part)


@dataclass(frozen=True)
class Rates:
    """Units of work per second, one figure per repetition."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The figure to compare."""
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{short(self.median)} ({short(low)}–{short(high)})" if len(self.values) > 1 else short(low)


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.0f}%"


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], float], device: torch.device) -> tuple[float, float]:
    """(seconds, units of work done)."""
    wait_for(device)
    start = time.perf_counter()
    units = work()
    wait_for(device)
    return time.perf_counter() - start, units


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repetitions: int, device: torch.device
) -> dict[str, Rates]:
    """Units per second of each contestant; each function does its work once and returns its units.

    The contestants take turns, every second time in reverse order, so that a machine that slows down or
    speeds up meanwhile does so for all of them.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        for name in list(contestants)[:: -1 if repetition % 2 else 1]:
            seconds, units = timed(contestants[name], device)
            rates[name].append(units / seconds)
    return {name: Rates(values) for name, values in rates.items()}


def tell(message: str) -> None:
    """Progress, kept apart from the tables."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
