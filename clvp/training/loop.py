"""One loop for all parts: AdamW, one schedule from the beginning to the end, resumable to the step.

The random numbers of a step follow from the seed and its number, so that a checkpoint is weights, optimizer
and a number, and a resumed run is the uninterrupted one bit for bit. A checkpoint appears whole or not at
all. Under `torchrun` each process takes its share of every batch.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset

from clvp.training.corpus import Rng
from clvp.training.settings import TrainingSettings

STATE_FILE = "training.pt"
LOG_FILE = "losses.jsonl"
_STEP_SEEDS = 1_000_003  # distance of the seeds of two runs, in steps


class Part(Protocol):
    """What can be trained: weights, batches for them, and losses of a batch."""

    @property
    def network(self) -> nn.Module:
        """Its `forward(batch)` gives losses by name, of which "loss" is made small."""

    def batch(self, rng: Rng, size: int, rank: int, world: int) -> dict[str, Any]:
        """This process's share of a batch, of which all processes draw the whole."""

    def validation(self) -> Iterator[dict[str, Any]]:
        """Batches to measure with."""


@dataclass(frozen=True)
class Place:
    """This process among those that train together, and its device."""

    rank: int
    world: int
    device: torch.device


@contextmanager
def processes() -> Iterator[Place]:
    """The processes that `torchrun` started, or this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if cuda:  # cuDNN 9 gave gradients that are no numbers for clips of 64 frames in bfloat16, on an H100
        torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if world == 1:
        yield Place(0, 1, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Place(distributed.get_rank(), world, device)
    finally:
        distributed.destroy_process_group()


def rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of a step."""
    warm = min(1.0, (step + 1) / settings.warmup)
    done = torch.tensor(torch.pi * step / settings.steps)
    return settings.learning_rate * warm * (1 + float(done.cos())) / 2


def train(
    part: Part,
    output: Path,
    settings: TrainingSettings,
    place: Place,
    until: int | None = None,
    start: Path | None = None,
) -> None:
    """Train to the last step, or to step `until`, from the checkpoint in `output` if there is one.

    A new run begins with new weights, or with those of the run `start`, which may have more than are needed.
    """
    output.mkdir(parents=True, exist_ok=True)
    network = part.network.to(place.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    step = 0
    if (output / STATE_FILE).exists():
        state = checkpoint(output)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
    elif start:
        there = checkpoint(start)["network"]
        network.load_state_dict({key: there[key] for key in network.state_dict() if key in there})
    whole: nn.Module = nn.parallel.DistributedDataParallel(network) if place.world > 1 else network
    log = _Log(output / LOG_FILE, step) if place.rank == 0 else None
    saved = time.monotonic()
    steps = range(step, until or settings.steps)
    batches = DataLoader(
        _Batches(part, settings, place), batch_size=None, sampler=steps, num_workers=settings.workers
    )
    for batch in batches:
        torch.manual_seed((settings.seed * _STEP_SEEDS + step) * place.world + place.rank)
        whole.train()
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, step)
        losses = losses_of(whole, batch, settings, place.device)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if log is not None:
            log.add(step, {**losses, "gradient": norm})
            if step % settings.log_every == 0:
                log.write(rate(settings, step - 1))
            if step % settings.validate_every == 0 or step == settings.steps:
                log.validated(validate(part, settings, place.device))
            if time.monotonic() - saved > settings.checkpoint_s or step in (until, settings.steps):
                if not norm.isfinite():  # and from then on never again: a checkpoint would be of no use
                    raise ValueError(
                        f"training diverged before step {step}: its gradient is not finite; start again at a "
                        f"smaller learning rate, and it continues from the last checkpoint in {output}"
                    )
                _save(output / STATE_FILE, network, optimizer, step)
                saved = time.monotonic()


class _Batches(Dataset[dict[str, Any]]):
    """This process's share of the batch of each step."""

    def __init__(self, part: Part, settings: TrainingSettings, place: Place) -> None:
        self.part, self.settings, self.place = part, settings, place

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.settings.seed, step))
        return self.part.batch(rng, self.settings.batch, self.place.rank, self.place.world)


def losses_of(
    network: nn.Module, batch: dict[str, Any], settings: TrainingSettings, device: torch.device
) -> dict[str, Tensor]:
    """The losses of a batch, its products computed in the dtype of the settings."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        return network(moved)


@torch.no_grad()
def validate(part: Part, settings: TrainingSettings, device: torch.device) -> dict[str, float]:
    """Mean losses over the rows that are kept for it."""
    part.network.eval()
    found = [losses_of(part.network, batch, settings, device) for batch in part.validation()]
    part.network.train()
    return {name: float(torch.stack([losses[name] for losses in found]).mean()) for name in found[0]}


def checkpoint(run: Path) -> dict[str, Any]:
    """The last one of a run: `network`, `optimizer`, `step`."""
    return torch.load(run / STATE_FILE, weights_only=True, map_location="cpu")


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_name(f".{path.name}.partial")
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, partial)
    os.replace(partial, path)


class _Log:
    """Mean losses since the last line, one JSON object a line; lines behind the checkpoint are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step, self.sums, self.count = path, step, {}, 0  # type: ignore[var-annotated]
        self.since = time.monotonic()
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in lines))

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        self.step, self.count = step, self.count + 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def write(self, learning_rate: float) -> None:
        now = time.monotonic()
        values = {name: round(float(value) / self.count, 5) for name, value in self.sums.items()}
        speed = round((now - self.since) / self.count, 4)
        self._line({"step": self.step, "lr": learning_rate, "seconds_per_step": speed, **values})
        self.sums, self.count, self.since = {}, 0, now

    def validated(self, losses: dict[str, float]) -> None:
        rounded = {f"validation_{name}": round(value, 5) for name, value in losses.items()}
        self._line({"step": self.step, **rounded})
        self.since = time.monotonic()

    def _line(self, content: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(content) + "\n")


def plot(output: Path) -> Path:
    """Draw the losses of a run into `losses.png` beside their log."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (output / LOG_FILE).read_text().splitlines()]
    axes = (figure := Figure(figsize=(8, 4))).subplots()
    names = set().union(*lines) - {"step", "lr", "seconds_per_step", "gradient"}
    for name in sorted(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name, marker="." if "validation" in name else "")
    axes.set_xlabel("step")
    axes.legend()
    figure.savefig(output / "losses.png", dpi=100)
    return output / "losses.png"
