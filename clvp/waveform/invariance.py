"""Whether a lane's bits depend on its neighbours, its place, or the number of threads: found by trying.

Libraries choose their kernels by the shape of a whole product and the number of threads, and promise nothing
(see `clvp.sampling.invariance`). All shapes of a sampling step are those of its bucket and width; what is
left to find is whether a lane keeps its bits in them.

B lanes, R rows, T frames, C width, M mel bands.
"""

import copy
import platform
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clvp.sampling.invariance import bits_of, thread_count, thread_counts
from clvp.waveform.denoiser import LAST_BLOCKS, DiffusionDecoder

FRAMES = 256  # of the lanes that are tried


def machine_facts(device: torch.device) -> dict[str, str]:
    """What every bit depends on, whatever the model."""
    cpu = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


@torch.inference_mode()
def lanes_are_alike(model: DiffusionDecoder, width: int) -> bool:
    """Whether a candidate has the same bits in every lane, with and without neighbours."""
    alone = _pass(model, width, [0])[0]
    full, turned = (_pass(model, width, lanes) for lanes in (range(width), range(width)[::-1]))
    return torch.equal(full[0], alone) and torch.equal(turned[-1], alone)


@torch.inference_mode()
def thread_facts(model: DiffusionDecoder, width: int) -> dict[str, str | int]:
    """A digest of this machine's bits; the number of threads instead, where they depend on it."""
    digests = set()
    for threads in thread_counts():
        with thread_count(threads):
            digests.add(bits_of([_pass(model, width, [0])]))
    return {"arithmetic": digests.pop()} if len(digests) == 1 else {"threads": torch.get_num_threads()}


def _pass(model: DiffusionDecoder, width: int, candidates: Sequence[int]) -> Tensor:
    """[B, T, M] noise that a short denoiser of the same shapes sees, of candidates in the first lanes."""
    probe = copy.copy(model)
    probe._modules = dict(model._modules)
    probe.layers = nn.ModuleList([model.layers[0], *list(model.layers)[-LAST_BLOCKS:]])
    device, config = model.inp_block.weight.device, model.config
    aligned_RTC = torch.zeros(2 * width, FRAMES, config.hidden_size)
    x_RTM = torch.zeros(2 * width, FRAMES, config.num_mels)
    lengths_R = torch.ones(2 * width, dtype=torch.int64)
    for lane, candidate in enumerate(candidates):
        generator = torch.Generator().manual_seed(candidate)
        length = FRAMES - 3 - 7 * (candidate % 32)
        for row in (lane, width + lane):
            aligned_RTC[row, :length] = torch.randn(length, config.hidden_size, generator=generator)
            x_RTM[row, :length] = torch.randn(length, config.num_mels, generator=generator)
            lengths_R[row] = length
    modulation_1KE = probe.modulate(torch.tensor([100], device=device))
    lengths_R = lengths_R.to(device)
    condition_RTC = probe.condition(aligned_RTC.to(device), modulation_1KE, lengths_R)
    noise_RTM, _ = probe.denoise(x_RTM.to(device), condition_RTC, modulation_1KE, lengths_R)
    return noise_RTM[:width, : FRAMES - 3].contiguous()
