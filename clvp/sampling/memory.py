"""How much memory the keys and values may take, and how it is given back.

The decoders reserve, before they admit a candidate, all that it can come to need. So the budget holds
whatever lengths are drawn.
"""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

from clvp.sampling.params import MemoryBudgetError

GPU_SHARE = 0.8  # of the memory that is free; the rest is for logits, workspaces and fragmentation
CPU_SHARE = 0.5  # less: the page cache and other processes live there too


def default_budget(device: torch.device) -> int:
    """The key-value budget where none is given: a share of what is free, of a container's limit on a CPU."""
    if device.type == "cuda":
        held_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + held_for_reuse))
    available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = 1024 * int(available[1]) if available else 0
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no container (cgroup v2), or one whose limit is "max"
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return int(CPU_SHARE * free)


def budget_error(budget: int, needed: int, what: str) -> MemoryBudgetError:
    """The error for a budget in which one candidate of `what` does not fit."""
    return MemoryBudgetError(
        f"{what}: one candidate needs {needed / 2**20:.1f} MiB for keys and values, the budget is "
        f"{budget / 2**20:.1f} MiB; raise kv_budget_bytes or lower max_new_tokens"
    )


def give_back_freed(device: torch.device) -> None:
    """Returns freed memory to the system. glibc would keep it: blocks of many sizes fragment its heap.

    About a millisecond, against steps of many. Without it a process holds up to three times the budget.
    """
    if device.type == "cpu":
        with suppress(AttributeError):  # a C library other than glibc has nothing to trim
            ctypes.CDLL(None).malloc_trim(0)
