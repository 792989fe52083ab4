"""A sampling step: x, the predicted noise and its variance to the next, less noisy x.

Every sampler makes the clean mel x0 from x and the noise, and mixes it with x, the x0 of the step before, and
fresh noise, in shares that depend on the step alone. They differ in these shares, which are computed in
float64 and used in float32:

- `p`: a draw from the posterior (Ho et al. 2020), its variance as predicted (Nichol and Dhariwal 2021);
- `ddim` without noise (Song, Meng and Ermon 2021);
- `dpm++2m`: DPM-Solver++ of second order, multistep (Lu et al. 2022).

The last step of each gives x0, so that a mel lies within ±1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clvp.waveform.params import Sampler
from clvp.waveform.schedule import Schedule, half_log_snr

# Log-mels at −1 and at 1.
MEL_FLOOR, MEL_CEILING = -11.512925148010254, 2.3143386840820312


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
    low = schedule.posterior_variance_S
    low = torch.cat((low[1:2], low[1:]))  # the first is zero, and no sample shows it
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
