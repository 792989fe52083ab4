"""What the training of a part is told; options need no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from clvp.fields import Checked, Count, Index

PartName = Literal["codec", "sound", "decoder", "pair"]
PARTS: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True)
class TrainingSettings(Checked):
    """How long, how fast, and how often something is written."""

    steps: Count = 1000
    batch: Count = 64  # clips of a step, of all processes together
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # at its highest
    warmup: Count = 100  # steps; afterwards half a cosine down to nothing
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0  # norm of the gradient at most
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; weights are float32
    seed: Index = 0
    workers: Index = 0  # processes that make batches ahead, the same ones; a GPU waits for none with 4
    log_every: Count = 20  # steps
    validate_every: Count = 500  # steps
    checkpoint_s: Annotated[float, Field(ge=0)] = 45.0  # seconds between checkpoints
