"""One sampler per model, made anew when the model's weights have changed."""

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from clvp.sampling.params import EngineConfig
from clvp.sampling.sampler import CandidateSampler

if TYPE_CHECKING:
    from clvp.decoder import ClvpForCausalLM

_State = tuple[object, ...]
_SAMPLERS: "WeakKeyDictionary[ClvpForCausalLM, tuple[_State, CandidateSampler]]" = WeakKeyDictionary()


def _state(model: "ClvpForCausalLM", config: EngineConfig) -> _State:
    """What a sampler was made from. Every in-place change of a parameter counts up its version."""
    versions = [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype)
        for weight in model.parameters()
    ]
    return (config, *versions)


def sampler_for(model: "ClvpForCausalLM", config: EngineConfig | None = None) -> CandidateSampler:
    """The sampler of this model, made anew where its weights or `config` have changed since the last call.

    It holds a copy of the decoder's weights, arranged for decoding, for as long as the model lives.
    """
    config = config or EngineConfig()
    state = _state(model, config)
    held = _SAMPLERS.get(model)
    if held is None or held[0] != state:
        held = (state, CandidateSampler(model, config))
        _SAMPLERS[model] = held
    return held[1]
