"""One sampler per model, and none that is out of date."""

import gc
import weakref

import torch

from clvp.generation import sampler_for
from clvp.sampling import EngineConfig, SamplingParams
from tests.sampling.small_models import plain, prompt, small_decoder

PARAMS = SamplingParams(max_new_tokens=10)


def test_the_sampler_is_kept_while_the_weights_stay() -> None:
    model = small_decoder()
    sampler = sampler_for(model)
    sampler.sample([prompt(1)], PARAMS)
    assert sampler_for(model) is sampler
    assert sampler_for(small_decoder()) is not sampler
    assert sampler_for(model, EngineConfig(lanes=8)) is not sampler


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = small_decoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampler_for(model).sample([prompt(1)], PARAMS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trained_weights_are_noticed() -> None:
    model = small_decoder()
    before = sampler_for(model).sample([prompt(1)], PARAMS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(inputs_embeds=torch.randn(1, 5, 64), labels=torch.randint(0, 200, (1, 5))).loss.backward()
    optimizer.step()
    assert plain(sampler_for(model).sample([prompt(1)], PARAMS)[0]) != plain(before[0])


def test_a_model_that_goes_takes_its_sampler_along() -> None:
    model = small_decoder()
    sampler = weakref.ref(sampler_for(model))
    del model
    gc.collect()
    assert sampler() is None
