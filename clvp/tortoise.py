"""The original Tortoise weights, `autoregressive.pth` and `clvp2.pth`, to a checkpoint folder of this
package.

All sizes are read off the shapes of the weights. Tortoise's heads are 64 wide, which shapes do not tell.
Tortoise divides by the root mean square with a floor of 1e-8 instead of adding 1e-5, so that the
configuration carries its own `rms_norm_eps`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from clvp.assets import write_processor_files
from clvp.checkpoint import CheckpointError, check_keys, open_pickle
from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.generation_config import ClvpGenerationConfig
from clvp.model import ClvpModelForConditionalGeneration
from clvp.sampling import SamplingParams
from clvp.scoring import FIXING_CODES

HEAD_DIM = 64
RMS_NORM_FLOOR = 1e-8

# Tortoise's sampling settings, the engine's defaults. Its repetition penalty also sees the token 1 that
# stands for the prefix in its prompt.
GENERATION = ClvpGenerationConfig.from_dict(
    vars(SamplingParams(penalized_tokens=(1,))) | {"seed": None, "return_dict_in_generate": True}
)

State = Mapping[str, Tensor]
Split = Callable[[Tensor, int], Sequence[Tensor]]

_DECODER = "speech_decoder_model.model.decoder"
_PARAMETER = r"(weight|bias)"


def _as_it_is(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return [weight]


def _transposed(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return [weight.T]


def _squeezed(weight: Tensor, heads: int) -> Sequence[Tensor]:
    """A 1x1 convolution [out, in, 1] as the linear layer that it is."""
    return [weight.flatten(1)]


def _interleaved_qkv(weight: Tensor, heads: int) -> Sequence[Tensor]:
    """Queries, keys and values of a convolution whose output channels run over heads, then q, k and v."""
    by_head = weight.view(heads, 3, -1, *weight.shape[1:2])
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


def _transposed_qkv(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return weight.T.chunk(3)


def _qkv(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return weight.chunk(3)


@dataclass(frozen=True)
class Rule:
    """Where the weights whose whole name matches `pattern` go. No targets: they are dropped."""

    pattern: str
    targets: tuple[str, ...]
    split: Split = _as_it_is


def _attention(prefix: str, parameter: str) -> tuple[str, ...]:
    return tuple(rf"{prefix}.{part}_proj.{parameter}" for part in "qkv")


_BLOCK = r"conditioning_encoder.mel_attn_blocks.\1"
_LAYER = _DECODER + r".layers.\1"

AUTOREGRESSIVE_RULES = (
    Rule(rf"conditioning_encoder\.init\.{_PARAMETER}", (r"conditioning_encoder.mel_conv.\1",)),
    Rule(
        rf"conditioning_encoder\.attn\.(\d+)\.norm\.{_PARAMETER}",
        (r"conditioning_encoder.group_norms.\1.\2",),
    ),
    Rule(
        rf"conditioning_encoder\.attn\.(\d+)\.qkv\.{_PARAMETER}", _attention(_BLOCK, r"\2"), _interleaved_qkv
    ),
    Rule(r"conditioning_encoder\.attn\.(\d+)\.proj_out\.weight", (_BLOCK + ".out_proj.weight",), _squeezed),
    Rule(r"conditioning_encoder\.attn\.(\d+)\.proj_out\.bias", (_BLOCK + ".out_proj.bias",)),
    Rule(r"text_embedding\.weight", ("conditioning_encoder.text_token_embedding.weight",)),
    Rule(r"text_pos_embedding\.emb\.weight", ("conditioning_encoder.text_position_embedding.weight",)),
    Rule(r"mel_embedding\.weight", (_DECODER + ".input_embeds_layer.weight",)),
    Rule(r"mel_pos_embedding\.emb\.weight", (_DECODER + ".position_embeds_layer.weight",)),
    Rule(rf"gpt\.ln_f\.{_PARAMETER}", (_DECODER + r".layer_norm.\1",)),
    Rule(rf"final_norm\.{_PARAMETER}", (r"speech_decoder_model.final_norm.\1",)),
    Rule(rf"mel_head\.{_PARAMETER}", (r"speech_decoder_model.lm_head.\1",)),
    Rule(rf"gpt\.h\.(\d+)\.ln_1\.{_PARAMETER}", (_LAYER + r".input_layernorm.\2",)),
    Rule(rf"gpt\.h\.(\d+)\.ln_2\.{_PARAMETER}", (_LAYER + r".post_attention_layernorm.\2",)),
    Rule(r"gpt\.h\.(\d+)\.attn\.c_attn\.weight", _attention(_LAYER + ".attn", "weight"), _transposed_qkv),
    Rule(r"gpt\.h\.(\d+)\.attn\.c_attn\.bias", _attention(_LAYER + ".attn", "bias"), _qkv),
    Rule(r"gpt\.h\.(\d+)\.attn\.c_proj\.weight", (_LAYER + ".attn.out_proj.weight",), _transposed),
    Rule(r"gpt\.h\.(\d+)\.attn\.c_proj\.bias", (_LAYER + ".attn.out_proj.bias",)),
    Rule(rf"gpt\.h\.(\d+)\.mlp\.(c_fc|c_proj)\.{_PARAMETER}", (_LAYER + r".mlp.\2.\3",)),
    Rule(r"text_head\..*", ()),
    Rule(r"gpt\.h\.\d+\.attn\.(bias|masked_bias)", ()),
)


def _encoder_rules(kind: str) -> tuple[Rule, ...]:
    """Layers alternate between attention (even) and feed-forward (odd), two for one of ours."""
    encoder = f"{kind}_encoder_model"
    stack = rf"{kind}_transformer\.transformer\.attn_layers"
    return (
        Rule(rf"{kind}_emb\.weight", (f"{encoder}.token_embedding.weight",)),
        Rule(rf"to_{kind}_latent\.weight", (f"{encoder}.projection.weight",)),
        Rule(rf"{kind}_transformer\.transformer\.norm\.{_PARAMETER}", (encoder + r".final_layer_norm.\1",)),
        Rule(rf"{stack}\.rotary_pos_emb\.inv_freq", (f"{encoder}.rotary_pos_emb.inv_freq",)),
        Rule(rf"{stack}\.attention\.(\d+)\.0\.0\.g", (encoder + r".layers.\1.input_rmsnorm.weight",)),
        Rule(
            rf"{stack}\.feedforward\.(\d+)\.0\.0\.g", (encoder + r".layers.\1.post_attention_rmsnorm.weight",)
        ),
        Rule(
            rf"{stack}\.attention\.(\d+)\.1\.wrap\.to_(q|k|v)\.{_PARAMETER}",
            (encoder + r".layers.\1.self_attn.\2_proj.\3",),
        ),
        Rule(
            rf"{stack}\.attention\.(\d+)\.1\.wrap\.to_out\.{_PARAMETER}",
            (encoder + r".layers.\1.self_attn.out_proj.\2",),
        ),
        Rule(
            rf"{stack}\.feedforward\.(\d+)\.1\.wrap\.net\.0\.proj\.{_PARAMETER}",
            (encoder + r".layers.\1.mlp.fc1.proj.\2",),
        ),
        Rule(
            rf"{stack}\.feedforward\.(\d+)\.1\.wrap\.net\.3\.{_PARAMETER}",
            (encoder + r".layers.\1.mlp.fc2.\2",),
        ),
    )


CLVP_RULES = (Rule("temperature", ("logit_scale",)), *_encoder_rules("text"), *_encoder_rules("speech"))


def _number_pairs(key: str) -> str:
    """`layers.2i` becomes `attention.i`, `layers.2i+1` becomes `feedforward.i`."""

    def renamed(match: re.Match[str]) -> str:
        index = int(match[1])
        return f".attn_layers.{'feedforward' if index % 2 else 'attention'}.{index // 2}."

    return re.sub(r"\.attn_layers\.layers\.(\d+)\.", renamed, key)


def apply_rules(state: State, rules: Sequence[Rule], heads: int, origin: str) -> dict[str, Tensor]:
    """Weights under the names of this package; CheckpointError naming those that no rule knows."""
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, weight in state.items():
        name = _number_pairs(key)
        for rule in rules:
            match = re.fullmatch(rule.pattern, name)
            if match:
                parts = rule.split(weight, heads) if rule.targets else ()
                converted |= {match.expand(t): part for t, part in zip(rule.targets, parts, strict=True)}
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{origin} holds weights that Tortoise's do not: {', '.join(unknown[:20])}")
    return converted


def _shape(state: State, key: str, origin: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{origin} lacks {key}: is it the right file?")
    return tuple(state[key].shape)


def _count_layers(state: State, key: str) -> int:
    """How many of the keys with 0, 1, 2 ... in place of `{}` are there."""
    return next(n for n in count() if key.format(n) not in state)


def _heads(width: int, heads: int | None, origin: str) -> int:
    if heads is None and width % HEAD_DIM:
        raise CheckpointError(
            f"{origin} is {width} wide, no multiple of {HEAD_DIM}: say how many heads it has"
        )
    return heads or width // HEAD_DIM


def decoder_config(
    state: State, heads: int | None = None, origin: str = "autoregressive"
) -> ClvpDecoderConfig:
    """Sizes of the decoder and the conditioning encoder. The last two speech tokens are start and stop."""
    vocabulary, width = _shape(state, "mel_head.weight", origin)
    return ClvpDecoderConfig(
        vocab_size=vocabulary,
        max_position_embeddings=_shape(state, "mel_pos_embedding.emb.weight", origin)[0],
        max_text_tokens=_shape(state, "text_pos_embedding.emb.weight", origin)[0],
        hidden_size=width,
        num_hidden_layers=_count_layers(state, "gpt.h.{}.ln_1.weight"),
        num_attention_heads=_heads(width, heads, origin),
        n_inner=_shape(state, "gpt.h.0.mlp.c_fc.weight", origin)[1],
        num_mel_attn_blocks=_count_layers(state, "conditioning_encoder.attn.{}.qkv.weight"),
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        feature_size=_shape(state, "conditioning_encoder.init.weight", origin)[1],
    )


def encoder_config(
    state: State, kind: str, heads: int | None = None, origin: str = "clvp2"
) -> ClvpEncoderConfig:
    """Sizes of the "text" or the "speech" encoder."""
    stack = f"{kind}_transformer.transformer.attn_layers"
    vocabulary, width = _shape(state, f"{kind}_emb.weight", origin)
    config = ClvpEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_shape(state, f"{stack}.layers.1.1.wrap.net.3.weight", origin)[1],
        projection_dim=_shape(state, f"to_{kind}_latent.weight", origin)[0],
        num_hidden_layers=_count_layers(state, stack + ".layers.{}.0.0.g") // 2,
        num_attention_heads=_heads(width, heads, origin),
        bos_token_id=vocabulary - 1 if kind == "text" else None,
        eos_token_id=0 if kind == "text" else None,
        # The floor is on the root mean square, the addend on its square.
        rms_norm_eps=RMS_NORM_FLOOR**2,
    )
    frequencies = _shape(state, f"{stack}.rotary_pos_emb.inv_freq", origin)[0]
    if 2 * frequencies != config.rotary_dim:
        raise CheckpointError(
            f"the {kind} encoder of {origin} turns {2 * frequencies} dimensions of a head; with "
            f"{config.num_attention_heads} heads it would be {config.rotary_dim}: say how many heads it has"
        )
    return config


def convert_tortoise(
    autoregressive: str | os.PathLike[str],
    clvp2: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    decoder_heads: int | None = None,
    encoder_heads: int | None = None,
) -> Path:
    """Write a checkpoint folder, with Tortoise's tokenizer and sampling settings, from the two original
    files.

    Heads are taken to be 64 wide, as in every published file, unless their numbers are given.

    Returns the folder. Raises CheckpointError naming the weights that are missing, unknown or misshaped.
    """
    decoder_state, clvp_state = open_pickle(Path(autoregressive)), open_pickle(Path(clvp2))
    decoder_name, clvp_name = str(autoregressive), str(clvp2)
    decoder = decoder_config(decoder_state, decoder_heads, decoder_name)
    text = encoder_config(clvp_state, "text", encoder_heads, clvp_name)
    speech = encoder_config(clvp_state, "speech", encoder_heads, clvp_name)
    # A toy vocabulary lacks some of the codes that end a sequence; its last code stands for them.
    fixing_codes = tuple(min(code, speech.vocab_size - 1) for code in FIXING_CODES)
    config = ClvpConfig(
        text,
        speech,
        replace(decoder, decoder_fixing_codes=fixing_codes),
        projection_dim=text.projection_dim,
    )
    weights = apply_rules(
        decoder_state, AUTOREGRESSIVE_RULES, decoder.num_attention_heads, decoder_name
    ) | apply_rules(clvp_state, CLVP_RULES, text.num_attention_heads, clvp_name)
    with torch.device("meta"):
        model = ClvpModelForConditionalGeneration(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    check_keys(expected, {k: tuple(w.shape) for k, w in weights.items()}, f"{decoder_name} and {clvp_name}")
    model.load_state_dict({key: weight.float() for key, weight in weights.items()}, assign=True)
    limit = model.generation_config.max_new_tokens
    model.generation_config = replace(
        GENERATION,
        max_new_tokens=limit,
        bos_token_id=decoder.bos_token_id,
        eos_token_id=decoder.eos_token_id,
    )
    model.save_pretrained(output_folder)
    write_processor_files(Path(output_folder), normalizer="tortoise")
    return Path(output_folder)
