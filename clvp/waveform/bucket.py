"""The sampling loop: candidates of one padded length, from noise to mels, in batches of one shape.

Every product has the shape of all lanes, whoever is in them, so that a candidate's numbers do not depend on
its neighbours. On a GPU a whole step is one CUDA graph, that reads at fixed addresses which step it is.

B lanes, R rows (the lanes, and with guidance the lanes once more, without their condition), T padded frames,
C width, M mel bands, S sampling steps, K residual blocks, E features.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clvp.cuda_graph import recorded
from clvp.waveform.denoiser import DiffusionDecoder
from clvp.waveform.noise import normal
from clvp.waveform.params import WaveformParams
from clvp.waveform.samplers import Step, advance, guided, schedule_of, step_table, thinned_times

# Frames, of all rows and steps, whose conditions are computed at once: enough to fill a GPU.
FRAMES_AHEAD = 8192


class SamplingPlan:
    """What all candidates share: the numbers of each step, and what time makes of the denoiser's blocks."""

    def __init__(self, model: DiffusionDecoder, params: WaveformParams) -> None:
        self.params = params
        device = model.inp_block.weight.device
        schedule = schedule_of(thinned_times(params.diffusion_steps, params.diffusion_spacing))
        self.table_SE = step_table(schedule, params.diffusion_sampler, params.guidance).to(device)
        self.modulation_SKE = model.modulate(schedule.times_S.to(device))
        # One replay is over before the next begins, so that the graphs of all lengths share their memory.
        self.graph_pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Bucket:
    """`width` lanes of `frames` frames each, at fixed addresses."""

    def __init__(self, model: DiffusionDecoder, plan: SamplingPlan, frames: int, width: int) -> None:
        self.model, self.plan, self.frames, self.width = model, plan, frames, width
        self.rows = width * (2 if plan.params.guidance else 1)
        device, mels = plan.table_SE.device, model.config.num_mels
        self.keys_B = torch.zeros(width, dtype=torch.int64, device=device)
        self.lengths_R = torch.ones(self.rows, dtype=torch.int64, device=device)
        self.step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.x_BTM = torch.zeros(width, frames, mels, device=device)
        self.clean_BTM = torch.zeros_like(self.x_BTM)
        self.condition_RTC = torch.zeros(
            self.rows, frames, model.config.hidden_size, device=device, dtype=model.inp_block.weight.dtype
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def sample(self, aligned: Sequence[Tensor], keys: Tensor) -> list[Tensor]:
        """The mels [own frames, M] within ±1 of `width` candidates or fewer.

        `aligned` is [own frames, C] of each, `keys` their random keys. Lanes without one are as of a single
        frame of nothing.
        """
        lengths = [len(x_TC) for x_TC in aligned]
        spare = self.width - len(aligned)
        lengths_B = torch.tensor(lengths + [1] * spare)
        self.lengths_R.copy_(lengths_B.repeat(self.rows // self.width))
        self.keys_B.copy_(torch.cat((keys, keys.new_zeros(spare))))
        aligned_RTC = self.model.unconditioned(self.rows, self.frames).clone()
        aligned_RTC[: self.width] = 0
        for lane, x_TC in enumerate(aligned):
            aligned_RTC[lane, : len(x_TC)] = x_TC

        params, mels = self.plan.params, self.x_BTM.shape[2]
        start_BTM = normal(self.keys_B, "mel", 0, self.frames, mels)
        self.x_BTM.copy_(start_BTM * params.diffusion_temperature)
        self.clean_BTM.zero_()
        for step, condition_RTC in self._conditions(aligned_RTC):
            self.step_1.fill_(step)
            self.condition_RTC.copy_(condition_RTC)
            self._replay()
        return [self.x_BTM[lane, :length].clone() for lane, length in enumerate(lengths)]

    def _conditions(self, aligned_RTC: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each step, the noisiest first, and its condition [R, T, C]; several are computed at once."""
        at_once = max(1, FRAMES_AHEAD // (self.rows * self.frames))
        for steps in torch.arange(self.plan.params.diffusion_steps).flip(0).split(at_once):
            modulation_RKE = self.plan.modulation_SKE[steps].repeat_interleave(self.rows, dim=0)
            conditions = self.model.condition(
                aligned_RTC.repeat(len(steps), 1, 1), modulation_RKE, self.lengths_R.repeat(len(steps))
            )
            yield from zip(steps.tolist(), conditions.split(self.rows), strict=True)

    def _replay(self) -> None:
        if self.x_BTM.device.type != "cuda":
            self._step()
            return
        if self.graph is None:
            self.graph = recorded(self._step, (self.x_BTM, self.clean_BTM), self.plan.graph_pool)
        self.graph.replay()

    def _step(self) -> None:
        """One step of all lanes, in place."""
        plan, width = self.plan, self.width
        step = Step(*plan.table_SE.index_select(0, self.step_1)[0])
        modulation_1KE = plan.modulation_SKE.index_select(0, self.step_1)
        x_RTM = self.x_BTM.repeat(self.rows // width, 1, 1)
        noise_RTM, variance_RTM = self.model.denoise(
            x_RTM, self.condition_RTC, modulation_1KE, self.lengths_R
        )
        noise_BTM = noise_RTM[:width]
        if self.rows > width:
            noise_BTM = guided(noise_BTM, noise_RTM[width:], step)
        fresh_BTM = None
        if plan.params.diffusion_sampler == "p":
            draw_1 = plan.params.diffusion_steps - self.step_1  # 1 in the noisiest step; 0 was the start
            fresh_BTM = normal(self.keys_B, "mel", draw_1, *self.x_BTM.shape[1:])
        x_BTM, clean_BTM = advance(
            self.x_BTM, noise_BTM, variance_RTM[:width], self.clean_BTM, fresh_BTM, step
        )
        self.x_BTM.copy_(x_BTM)
        self.clean_BTM.copy_(clean_BTM)
