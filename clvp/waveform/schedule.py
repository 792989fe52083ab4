"""The noise schedule that the denoiser was trained on, thinned out to fewer steps.

Ho, Jain and Abbeel, "Denoising diffusion probabilistic models" (2020); thinning: Nichol and Dhariwal,
"Improved denoising diffusion probabilistic models" (2021). All in float64. S sampling steps, the least noisy
one first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clvp.waveform.params import TRAINED_STEPS, Spacing

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


def trained_signal() -> Tensor:
    """[4000] ᾱ of each trained time step, float64."""
    betas = torch.linspace(FIRST_BETA, LAST_BETA, TRAINED_STEPS, dtype=torch.float64)
    return (1 - betas).cumprod(dim=0)


def half_log_snr(signal: Tensor) -> Tensor:
    """λ, half the logarithm of the signal-to-noise ratio."""
    return (signal / (1 - signal)).log() / 2


def thinned_times(steps: int, spacing: Spacing = "time") -> list[int]:
    """`steps` trained time steps from the first to the last.

    Evenly in time, by a running sum as the original's; or evenly in λ, in which the samplers' steps are of
    one size (Lu et al., "DPM-Solver++", 2022), where there are as many time steps.
    """
    if not 2 <= steps <= TRAINED_STEPS:
        raise ValueError(f"steps={steps}: a schedule has 2 to {TRAINED_STEPS}")
    times: list[int] = []
    if spacing == "log_snr":
        trained = half_log_snr(trained_signal())
        wanted = torch.linspace(float(trained[0]), float(trained[-1]), steps, dtype=torch.float64)
        for nearest in (trained - wanted[:, None]).abs().argmin(dim=1).tolist():
            times.append(max(nearest, times[-1] + 1) if times else nearest)
        return times
    place = 0.0
    for _ in range(steps):
        times.append(round(place))
        place += (TRAINED_STEPS - 1) / (steps - 1)
    return times


def schedule_of(times: Sequence[int]) -> Schedule:
    """The schedule of ascending trained time steps."""
    times_S = torch.tensor(times)
    signal_S = trained_signal()[times_S]
    next_signal_S = torch.cat((signal_S.new_ones(1), signal_S[:-1]))
    return Schedule(times_S, signal_S, next_signal_S, 1 - signal_S / next_signal_S)
