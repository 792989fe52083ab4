"""The device of an actor: the GPU that Ray gave it, or the processor with an explicit number of threads."""

import os

import torch


def pick_device(torch_threads: int | None) -> torch.device:
    """Without a GPU, `torch_threads` threads are used, by default one for every second core.

    A sampler and a ranker share a machine and do about the same work; more threads than cores would slow both
    down many times. Ray gives an actor that reserves less than one CPU a single thread, so the number is
    always set.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(torch_threads or max(1, len(os.sched_getaffinity(0)) // 2))
    return torch.device("cpu")
