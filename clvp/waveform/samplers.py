"""A sampling step: x, the predicted noise and its variance to the next, less noisy x.

Every sampler makes the clean mel x0 from x and the noise, and mixes it with x, the x0 of the step before, and
fresh noise, in shares that depend on the step alone. They differ in these shares, which are computed in
float64 and used in float32:

- `p`: a draw from the posterior (Ho et al. 2020), its variance as predicted (Nichol and Dhariwal 2021);
- `ddim` without noise (Song, Meng and Ermon 2021);
- `dpm++2m`: DPM-Solver++ of second order, multistep (Lu et al. 2022).

The last step of each gives x0, so that a mel lies within ±1.

The noise schedule is that of the denoiser's training (Ho et al. 2020), thinned out to fewer steps (Nichol and
Dhariwal 2021), in float64. S sampling steps, the least noisy one first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from clvp.waveform.params import TRAINED_STEPS, Sampler, Spacing

# Log-mels at −1 and at 1.
MEL_FLOOR, MEL_CEILING = -11.512925148010254, 2.3143386840820312
FIRST_BETA, LAST_BETA = 2.5e-5, 5e-3


@dataclass(frozen=True)
class Schedule:
    """Signal and noise at each step."""

    times_S: Tensor  # int64 trained time steps, which the denoiser is told
    signal_S: Tensor  # share of the signal in x squared: ᾱ
    next_signal_S: Tensor  # that of the step below, which comes next; 1 below the first
    betas_S: Tensor  # noise that lies between the two


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
    if spacing == "time":
        size = (TRAINED_STEPS - 1) / (steps - 1)
        return [round(place) for place in accumulate(repeat(size, steps - 1), initial=0.0)]
    trained = half_log_snr(trained_signal())
    wanted = torch.linspace(float(trained[0]), float(trained[-1]), steps, dtype=torch.float64)
    nearest: list[int] = (trained - wanted[:, None]).abs().argmin(dim=1).tolist()
    return list(accumulate(nearest, lambda before, time: max(before + 1, time)))


def schedule_of(times: Sequence[int]) -> Schedule:
    """The schedule of ascending trained time steps."""
    times_S = torch.tensor(times)
    signal_S = trained_signal()[times_S]
    next_signal_S = torch.cat((signal_S.new_ones(1), signal_S[:-1]))
    return Schedule(times_S, signal_S, next_signal_S, 1 - signal_S / next_signal_S)


class Step(NamedTuple):
    """The numbers of a step (or, stacked in front, of all of them)."""

    clean_from_x: Tensor
    clean_from_noise: Tensor
    guidance: Tensor  # g, that grows linearly as the noise goes
    x: Tensor  # shares of the next x: of this one,
    clean: Tensor  # of x0,
    clean_before: Tensor  # of the x0 before,
    noise: Tensor  # and 1 where fresh noise is added
    log_variance_high: Tensor  # of that noise where 1 is predicted
    log_variance_low: Tensor  # and where −1 is


def step_table(schedule: Schedule, sampler: Sampler, guidance: float) -> Tensor:
    """[S, numbers of a `Step`] float32."""
    signal, following = schedule.signal_S, schedule.next_signal_S
    steps, zero = len(signal), torch.zeros_like(signal)
    clean_before, noise = zero, zero
    if sampler == "p":
        x = (1 - following) * (1 - schedule.betas_S).sqrt() / (1 - signal)
        clean = schedule.betas_S * following.sqrt() / (1 - signal)
        noise = (torch.arange(steps) > 0).double()
    else:
        # In half log signal-to-noise, both are the exponential integrator of x0; ddim takes x0 as constant.
        x = ((1 - following) / (1 - signal)).sqrt()
        size = half_log_snr(signal)
        h = torch.cat((size.new_tensor([torch.inf]), size[:-1])) - size
        clean = -following.sqrt() * torch.expm1(-h)
        if sampler == "dpm++2m":
            # h / (2 h_before); none in the first step, which has no x0 before, and in the last.
            change = zero.clone()
            change[1:-1] = h[1:-1] / (2 * h[2:])
            clean, clean_before = clean * (1 + change), -clean * change
    # β̃ = β (1 − ᾱ') / (1 − ᾱ), the least noise of a random step; the first is zero, and no sample shows it.
    low = schedule.betas_S * (1 - following) / (1 - signal)
    low = torch.cat((low[1:2], low[1:]))
    table = Step(
        clean_from_x=(1 / signal).sqrt(),
        clean_from_noise=-(1 / signal - 1).sqrt(),
        guidance=guidance * (1 - torch.arange(steps) / steps),
        x=x,
        clean=clean,
        clean_before=clean_before,
        noise=noise,
        log_variance_high=schedule.betas_S.log(),
        log_variance_low=low.log(),
    )
    return torch.stack([column.double() for column in table], dim=1).float()


def guided(noise: Tensor, unconditioned_noise: Tensor, step: Step) -> Tensor:
    """Noise beyond what the condition makes of it (Ho and Salimans 2022)."""
    return (1 + step.guidance) * noise - step.guidance * unconditioned_noise


def advance(
    x: Tensor, noise: Tensor, variance: Tensor, clean_before: Tensor, fresh_noise: Tensor | None, step: Step
) -> tuple[Tensor, Tensor]:
    """The next x, and x0. Without `fresh_noise` none is added, as `ddim` and `dpm++2m` do."""
    clean = (step.clean_from_x * x + step.clean_from_noise * noise).clamp(-1, 1)
    following = step.x * x + step.clean * clean + step.clean_before * clean_before
    if fresh_noise is not None:
        share = (variance + 1) / 2
        log_variance = share * step.log_variance_high + (1 - share) * step.log_variance_low
        following = following + step.noise * (log_variance / 2).exp() * fresh_noise
    return following, clean


def denormalized(mel: Tensor) -> Tensor:
    """Log-mels from the −1 … 1 that the denoiser knows."""
    return (mel + 1) / 2 * (MEL_CEILING - MEL_FLOOR) + MEL_FLOOR
