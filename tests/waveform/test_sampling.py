"""Schedule and samplers against the original's, step by step, and what a sampling step must be."""

from itertools import pairwise

import pytest
import torch

from clvp.waveform.samplers import (
    Step,
    advance,
    denormalized,
    guided,
    schedule_of,
    step_table,
    thinned_times,
)
from tests.waveform.conftest import relative_error

ONE_STEP, CHAIN, WHOLE_DPM_CHAIN, TABLES = 1e-6, 4e-5, 1.3e-4, 1e-12
SAMPLERS = ("p", "ddim", "dpm++2m")


def steps_of(times, sampler, strength):
    """The schedule, and the numbers of each step."""
    schedule = schedule_of(times)
    return schedule, [Step(*row) for row in step_table(schedule, sampler, strength)]


def predict(model, tensors, x_1TM, time, step, strength):
    """Noise and variance at a trained time step, guided or not."""
    length = torch.tensor([x_1TM.shape[1]])
    modulation = model.modulate(torch.tensor([time]))
    condition = model.condition(tensors["aligned"].t()[None], modulation, length)
    noise, variance = model.denoise(x_1TM, condition, modulation, length)
    if strength:
        condition = model.condition(model.unconditioned(1, x_1TM.shape[1]), modulation, length)
        free, _ = model.denoise(x_1TM, condition, modulation, length)
        noise = guided(noise, free, step)
    return noise, variance


@torch.no_grad()
def chain(model, tensors, times, sampler, strength, scale):
    """[N, M, T]: x after each step, from the recorded noise."""
    _, steps = steps_of(times, sampler, strength)
    start, *fresh = tensors["noise"].transpose(1, 2)[:, None]
    x, clean, samples = scale * start, torch.zeros_like(start), []
    for index, noise in zip(reversed(range(len(times))), fresh, strict=True):
        predicted, variance = predict(model, tensors, x, times[index], steps[index], strength)
        x, clean = advance(x, predicted, variance, clean, noise if sampler == "p" else None, steps[index])
        samples.append(x[0].t())
    return torch.stack(samples)


@pytest.fixture(scope="module")
def times(about, golden_tensors):
    """Time steps by the prefix of the golden chains."""
    low = golden_tensors["denoiser"]["low_timesteps"].tolist()
    return {"": thinned_times(about["chain_steps"]), "low_": low}


def strength_of(kind, about):
    return about["cond_free_k"] if kind == "guided" else 0.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["guided", "plain"])
@pytest.mark.parametrize("prefix", ["", "low_"])
def test_chains(golden_denoiser, golden_tensors, about, times, prefix, kind, sampler):
    tensors = golden_tensors["denoiser"]
    scale = 0.4 if prefix else 1.0
    samples = chain(golden_denoiser, tensors, times[prefix], sampler, strength_of(kind, about), scale)
    bar = WHOLE_DPM_CHAIN if (sampler, prefix) == ("dpm++2m", "") else CHAIN
    assert relative_error(samples, tensors[f"{prefix}{sampler}_{kind}.samples"]) < bar


@pytest.mark.parametrize("kind", ["guided", "plain"])
@pytest.mark.parametrize("prefix", ["", "low_"])
@torch.no_grad()
def test_mean_variance_and_clean_mel_of_a_step(golden_denoiser, golden_tensors, about, times, prefix, kind):
    tensors, strength = golden_tensors["denoiser"], strength_of(kind, about)
    x = 0.4 * tensors["x"].t()[None]
    step = steps_of(times[prefix], "p", strength)[1][1]
    noise, variance = predict(golden_denoiser, tensors, x, times[prefix][1], step, strength)
    mean, clean = advance(x, noise, variance, x, torch.zeros_like(x), step)
    moved, _ = advance(x.double(), noise.double(), variance, x, torch.ones_like(x), step)
    log_variance = 2 * (moved - advance(x.double(), noise.double(), variance, x, None, step)[0]).log()
    expected = {"mean": mean, "log_variance": log_variance, "pred_xstart": clean}
    for name, actual in expected.items():
        # An unconditioned pass, and with guidance three of them at most, are no more exact than this.
        assert relative_error(actual[0].t(), tensors[f"{prefix}step_1_{kind}.{name}"]) < 20 * ONE_STEP, name


@pytest.mark.parametrize("kind", ["guided", "plain"])
def test_temperature_and_denormalization(golden_denoiser, golden_tensors, about, times, kind):
    """The temperature is of the first noise alone."""
    tensors = dict(golden_tensors["denoiser"])
    tensors["noise"] = tensors["noise"].clone()
    tensors["noise"][0] *= 0.7
    samples = chain(golden_denoiser, tensors, times[""], "p", strength_of(kind, about), 1.0)
    assert relative_error(denormalized(samples[-1]), tensors[f"mel_{kind}_temperature_0.7"]) < CHAIN


def test_the_thinned_time_steps(golden_tensors):
    tables = golden_tensors["tables"]
    lengths = [int(name[10:]) for name in tables if name.startswith("timesteps_")]
    assert len(lengths) > 5
    for steps in set(lengths) - {1}:
        assert thinned_times(steps) == tables[f"timesteps_{steps}"].tolist()
    with pytest.raises(ValueError, match="steps=1"):
        thinned_times(1)  # the original fails in a division


def test_the_schedule_in_double_precision(golden_tensors):
    tables = golden_tensors["tables"]
    schedule = schedule_of(thinned_times(30))
    assert relative_error(schedule.signal_S, tables["30.alphas_cumprod"]) < TABLES
    assert relative_error(schedule.betas_S, tables["30.betas"]) < TABLES
    table = Step(*step_table(schedule, "p", 0.0).T)
    for column, name in (
        (table.clean_from_x, "sqrt_recip_alphas_cumprod"),
        (-table.clean_from_noise, "sqrt_recipm1_alphas_cumprod"),
        (table.clean, "posterior_mean_coef1"),
        (table.x, "posterior_mean_coef2"),
        (table.log_variance_low, "posterior_log_variance_clipped"),
    ):
        assert relative_error(column, tables[f"30.{name}"].float()) == 0, name


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 3, 25])
def test_the_last_step_gives_the_clean_mel_within_one(sampler, steps):
    table = steps_of(thinned_times(steps), sampler, 2.0)[1]
    generator = torch.Generator().manual_seed(0)
    x, noise, variance, before, fresh = (9 * torch.randn(5, 1000, generator=generator)).unbind()
    following, clean = advance(x, noise, variance, before, fresh if sampler == "p" else None, table[0])
    assert torch.equal(following, clean)
    assert clean.abs().max() == 1


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_a_known_mel_is_found_whatever_the_steps(sampler):
    """Of one mel alone the noise is known exactly, and both walk straight to it.

    Constants of another model, or time steps that do not fit their noise, end elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    mel, noise = (
        torch.rand(50, generator=generator, dtype=torch.float64),
        torch.randn(50, generator=generator),
    )
    schedule, steps = steps_of(thinned_times(12), sampler, 0.0)
    x = schedule.signal_S[-1].sqrt() * mel + (1 - schedule.signal_S[-1]).sqrt() * noise
    before = torch.zeros_like(x)
    for index in reversed(range(12)):
        signal = schedule.signal_S[index]
        assert torch.allclose(x, signal.sqrt() * mel + (1 - signal).sqrt() * noise, atol=1e-5)
        exact = (x - signal.sqrt() * mel) / (1 - signal).sqrt()
        x, before = advance(x, exact, exact, before, None, steps[index])
    assert torch.allclose(x, mel, atol=1e-5)


def error_of_a_known_flow(sampler, count, spacing, spread):
    """Where mels are normally distributed, x grows in proportion to its deviation."""
    schedule, steps = steps_of(thinned_times(count, spacing), sampler, 0.0)
    start = x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    before = torch.zeros_like(x)
    for index in reversed(range(count)):
        signal = schedule.signal_S[index]
        noise = (1 - signal).sqrt() / (signal * spread**2 + 1 - signal) * x
        x, before = advance(x, noise, noise, before, None, steps[index])
    first = schedule.signal_S[-1]
    expected = start * spread / (first * spread**2 + 1 - first).sqrt()
    return float((x - expected).abs().max() / spread)


@pytest.mark.parametrize("spread", [0.05, 0.1, 0.2, 0.3])
def test_few_steps_need_the_second_order_and_even_steps_of_signal_to_noise(spread):
    error = {
        (sampler, spacing): error_of_a_known_flow(sampler, 25, spacing, spread)
        for sampler in ("ddim", "dpm++2m")
        for spacing in ("time", "log_snr")
    }
    assert error["dpm++2m", "log_snr"] < 0.03
    assert error["dpm++2m", "log_snr"] < error["ddim", "log_snr"] / 3
    assert error["ddim", "log_snr"] < error["ddim", "time"]
    assert error["dpm++2m", "time"] > 0.1


@pytest.mark.parametrize("steps", [2, 25, 400, 4000])
def test_even_steps_of_signal_to_noise(steps):
    times = thinned_times(steps, "log_snr")
    assert (times[0], times[-1], len(times)) == (0, 3999, steps)
    assert all(later > earlier for earlier, later in pairwise(times))


def test_guidance_grows_towards_the_end():
    steps = steps_of(thinned_times(80), "p", 2.0)[1]
    assert [float(steps[index].guidance) for index in (79, 40, 0)] == pytest.approx([2 / 80, 1.0, 2.0])
    assert guided(torch.tensor(3.0), torch.tensor(1.0), steps[0]) == 3 + 2 * (3 - 1)


def test_the_predicted_variance_is_not_clamped():
    step = steps_of(thinned_times(10), "p", 0.0)[1][5]
    zero, beyond = torch.zeros(1), torch.tensor([3.0])
    noise, _ = advance(zero, zero, beyond, zero, torch.ones(1), step)
    log_variance = 2 * step.log_variance_high - step.log_variance_low
    assert noise.log() == pytest.approx(float(log_variance) / 2)
