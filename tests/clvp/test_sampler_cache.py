"""One sampler per model, and none that is out of date."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clvp.generation import _contents, sampler_for
from clvp.sampling import CandidateSampler, EngineConfig, SamplingParams
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


def _through_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[3, 2] += 0.001


def _swap_rows(weight: Tensor) -> None:
    weight.data[[0, 7]] = weight.data[[7, 0]]


def _swap_columns(weight: Tensor) -> None:
    weight.data[:, [0, 7]] = weight.data[:, [7, 0]]


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.data.copy_(torch.randn(weight.shape)),
        lambda weight: weight.data.neg_(),
        _through_numpy,
        _swap_rows,
        _swap_columns,
    ],
)
@pytest.mark.parametrize("name", ["lm_head.weight", "model.decoder.layers.0.attn.v_proj.weight"])
def test_writes_that_torch_does_not_count_are_noticed(write: Callable[[Tensor], None], name: str) -> None:
    """As moving averages and merged adapters write."""
    model = small_decoder()
    before = sampler_for(model)
    write(model.get_parameter(name))
    after = sampler_for(model)
    assert after is not before
    fresh = sampler_for(copy.deepcopy(model)).sample([prompt(1)], PARAMS)[0]
    assert plain(after.sample([prompt(1)], PARAMS)[0]) == plain(fresh)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 4099, 3 * 8209 * 4 + 5])
def test_every_place_of_a_weight_counts(dtype: torch.dtype, size: int) -> None:
    """Of any size and type, at the start of its memory or not; equal contents are equal."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size + 1, generator=generator).to(dtype)
    for weight in (values[:-1], values[1:]):
        module = nn.Module()
        module.weight = nn.Parameter(weight)
        before = _contents(module)
        assert _contents(copy.deepcopy(module)) == before
        for place in {0, size // 2, size - 1}:
            kept = weight[place].clone()
            weight[place] += 1
            assert _contents(module) != before
            weight[place] = kept
        assert _contents(module) == before


class _LowRank(nn.Module):
    """An adapter: a linear layer and a product of two thin matrices beside it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.up(self.down(x))


def test_adapters_are_refused_until_they_are_merged() -> None:
    model = small_decoder()
    prefix = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    plain_tokens = model.generate(prefix, seed=1, max_new_tokens=10)
    attention = model.model.decoder.layers[1].attn
    adapter = attention.v_proj = _LowRank(attention.v_proj)
    with pytest.raises(
        TypeError, match=r"model\.decoder\.layers\.1\.attn\.v_proj, a _LowRank.*merge adapters"
    ):
        model.generate(prefix, seed=1, max_new_tokens=10)
    with pytest.raises(TypeError, match="v_proj"):
        CandidateSampler(model)
    attention.v_proj = adapter.inner
    attention.v_proj.weight.data += 20 * adapter.up.weight @ adapter.down.weight
    merged = model.generate(prefix, seed=1, max_new_tokens=10)
    assert merged.shape != plain_tokens.shape or not torch.equal(merged, plain_tokens)


def test_hooks_wrappers_and_other_layers_are_refused() -> None:
    model = small_decoder()
    sampler_for(model)
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(TypeError, match="lm_head, a Linear with a hook"):
        sampler_for(model)
    handle.remove()
    nn.utils.parametrizations.weight_norm(model.lm_head)
    with pytest.raises(TypeError, match="lm_head, a ParametrizedLinear"):
        sampler_for(model)
    model = small_decoder()
    norm = model.final_norm
    norm.forward = lambda x: x
    with pytest.raises(TypeError, match="final_norm"):
        sampler_for(model)


def test_a_model_that_goes_takes_its_sampler_along() -> None:
    model = small_decoder()
    sampler = weakref.ref(sampler_for(model))
    del model
    gc.collect()
    assert sampler() is None
