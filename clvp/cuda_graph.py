"""Work on a GPU, recorded once as a CUDA graph and replayed: the host has nothing to say in between."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # runs in which kernels are compiled, loaded and chosen, which a recording cannot do


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: products keep a workspace for each stream that they were ever run on."""
    return torch.cuda.Stream(device)


def recorded(work: Callable[[], None], changed: Sequence[Tensor], pool: Any = None) -> torch.cuda.CUDAGraph:
    """The graph of `work`, which reads and writes at fixed addresses; the tensors it changed are put back.

    Graphs of one `pool`, a `torch.cuda.graph_pool_handle`, share the memory of what they compute on the way.
    """
    device = changed[0].device
    stream, current = _stream(device), torch.cuda.current_stream(device)
    saved = [tensor.clone() for tensor in changed]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        work()
    for tensor, value in zip(changed, saved, strict=True):
        tensor.copy_(value)
    return graph
