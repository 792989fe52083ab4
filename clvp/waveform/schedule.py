"""The noise schedule that the denoiser was trained on, thinned out to fewer steps.

Ho, Jain and Abbeel, "Denoising diffusion probabilistic models" (2020); thinning: Nichol and Dhariwal,
"Improved denoising diffusion probabilistic models" (2021). All in float64. S sampling steps, the least noisy
one first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clvp.waveform.params import TRAINED_STEPS

FIRST_BETA, LAST_BETA = 2.5e-5, 5e-3


@dataclass(frozen=True)
class Schedule:
    """Signal and noise at each step."""

    times_S: Tensor  # int64 trained time steps, which the denoiser is told
    signal_S: Tensor  # share of the signal in x squared: ᾱ
    next_signal_S: Tensor  # that of the step below, which comes next; 1 below the first
    betas_S: Tensor  # noise that lies between the two

    @property
    def posterior_variance_S(self) -> Tensor:
        """β̃ = β (1 − ᾱ') / (1 − ᾱ): the least noise of a random step."""
        return self.betas_S * (1 - self.next_signal_S) / (1 - self.signal_S)


def thinned_times(steps: int) -> list[int]:
    """`steps` trained time steps, evenly from the first to the last; a running sum, as the original's."""
    if steps < 2:
        raise ValueError(f"steps={steps}: a schedule has two or more")
    times, place = [], 0.0
    for _ in range(steps):
        times.append(round(place))
        place += (TRAINED_STEPS - 1) / (steps - 1)
    return times


def schedule_of(times: Sequence[int]) -> Schedule:
    """The schedule of ascending trained time steps."""
    betas = torch.linspace(FIRST_BETA, LAST_BETA, TRAINED_STEPS, dtype=torch.float64)
    times_S = torch.tensor(times)
    signal_S = (1 - betas).cumprod(dim=0)[times_S]
    next_signal_S = torch.cat((signal_S.new_ones(1), signal_S[:-1]))
    return Schedule(times_S, signal_S, next_signal_S, 1 - signal_S / next_signal_S)
