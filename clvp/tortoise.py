"""Tortoise's original weights, `autoregressive.pth` and `clvp2.pth`, to a checkpoint folder of this package.

All sizes are read off the shapes of the weights. Tortoise's heads are 64 wide, which shapes do not tell.
Tortoise divides by the root mean square with a floor of 1e-8 instead of adding 1e-5, so that the
configuration carries its own `rms_norm_eps`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from clvp.assets import write_processor_files
from clvp.checkpoint import CheckpointError
from clvp.config import ClvpConfig, ClvpDecoderConfig, ClvpEncoderConfig
from clvp.generation_config import ClvpGenerationConfig
from clvp.model import ClvpModelForConditionalGeneration
from clvp.sampling import SamplingParams
from clvp.scoring import FIXING_CODES
from clvp.weights import check_keys, count_layers, open_pickle, shape_of, shapes_alone

HEAD_DIM = 64
RMS_NORM_FLOOR = 1e-8

State = Mapping[str, Tensor]


def _transposed(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return [weight.t()]


def _squeezed(weight: Tensor, heads: int) -> Sequence[Tensor]:
    """A 1x1 convolution [out, in, 1] as the linear layer that it is."""
    return [weight.squeeze(-1)]


def _interleaved_qkv(weight: Tensor, heads: int) -> Sequence[Tensor]:
    """Queries, keys and values of a convolution whose output channels run over heads, then q, k and v."""
    by_head = weight.view(heads, 3, -1, *weight.shape[1:2])
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


def _transposed_qkv(weight: Tensor, heads: int) -> Sequence[Tensor]:
    return weight.t().chunk(3)


@dataclass(frozen=True)
class Rule:
    """Where the weights whose whole name matches `pattern` go; without a target they are dropped.

    Where `split` makes three parts, "QKV" in the target stands for the letter of each.
    """

    pattern: str
    target: str | None
    split: Callable[[Tensor, int], Sequence[Tensor]] | None = None


_PARAMETER = r"(weight|bias)"
_CONDITIONING = "conditioning_encoder"
_DECODER = "speech_decoder_model.model.decoder"
_BLOCK = rf"{_CONDITIONING}.mel_attn_blocks.\1"
_LAYER = rf"{_DECODER}.layers.\1"

AUTOREGRESSIVE_RULES = (
    Rule(rf"{_CONDITIONING}\.init\.{_PARAMETER}", rf"{_CONDITIONING}.mel_conv.\1"),
    Rule(rf"{_CONDITIONING}\.attn\.(\d+)\.norm\.{_PARAMETER}", rf"{_CONDITIONING}.group_norms.\1.\2"),
    Rule(rf"{_CONDITIONING}\.attn\.(\d+)\.qkv\.{_PARAMETER}", rf"{_BLOCK}.QKV_proj.\2", _interleaved_qkv),
    Rule(rf"{_CONDITIONING}\.attn\.(\d+)\.proj_out\.{_PARAMETER}", rf"{_BLOCK}.out_proj.\2", _squeezed),
    Rule(r"text_embedding\.weight", f"{_CONDITIONING}.text_token_embedding.weight"),
    Rule(r"text_pos_embedding\.emb\.weight", f"{_CONDITIONING}.text_position_embedding.weight"),
    Rule(r"mel_embedding\.weight", f"{_DECODER}.input_embeds_layer.weight"),
    Rule(r"mel_pos_embedding\.emb\.weight", f"{_DECODER}.position_embeds_layer.weight"),
    Rule(rf"gpt\.ln_f\.{_PARAMETER}", rf"{_DECODER}.layer_norm.\1"),
    Rule(rf"final_norm\.{_PARAMETER}", r"speech_decoder_model.final_norm.\1"),
    Rule(rf"mel_head\.{_PARAMETER}", r"speech_decoder_model.lm_head.\1"),
    Rule(rf"gpt\.h\.(\d+)\.ln_1\.{_PARAMETER}", rf"{_LAYER}.input_layernorm.\2"),
    Rule(rf"gpt\.h\.(\d+)\.ln_2\.{_PARAMETER}", rf"{_LAYER}.post_attention_layernorm.\2"),
    Rule(rf"gpt\.h\.(\d+)\.attn\.c_attn\.{_PARAMETER}", rf"{_LAYER}.attn.QKV_proj.\2", _transposed_qkv),
    Rule(rf"gpt\.h\.(\d+)\.attn\.c_proj\.{_PARAMETER}", rf"{_LAYER}.attn.out_proj.\2", _transposed),
    Rule(rf"gpt\.h\.(\d+)\.mlp\.(c_fc|c_proj)\.{_PARAMETER}", rf"{_LAYER}.mlp.\2.\3"),
    Rule(r"text_head\..*", None),
    Rule(r"gpt\.h\.\d+\.attn\.(bias|masked_bias)", None),
)


def _encoder_rules(kind: str) -> tuple[Rule, ...]:
    """Layers alternate between attention (even) and feed-forward (odd), two for one of ours."""
    encoder = f"{kind}_encoder_model"
    layer = rf"{encoder}.layers.\1"
    transformer = rf"{kind}_transformer\.transformer"
    attention = rf"{transformer}\.attn_layers\.attention\.(\d+)"
    feedforward = rf"{transformer}\.attn_layers\.feedforward\.(\d+)"
    return (
        Rule(rf"{kind}_emb\.weight", f"{encoder}.token_embedding.weight"),
        Rule(rf"to_{kind}_latent\.weight", f"{encoder}.projection.weight"),
        Rule(rf"{transformer}\.norm\.{_PARAMETER}", rf"{encoder}.final_layer_norm.\1"),
        Rule(rf"{transformer}\.attn_layers\.rotary_pos_emb\.inv_freq", f"{encoder}.rotary_pos_emb.inv_freq"),
        Rule(rf"{attention}\.0\.0\.g", f"{layer}.input_rmsnorm.weight"),
        Rule(rf"{attention}\.1\.wrap\.to_(q|k|v)\.{_PARAMETER}", rf"{layer}.self_attn.\2_proj.\3"),
        Rule(rf"{attention}\.1\.wrap\.to_out\.{_PARAMETER}", rf"{layer}.self_attn.out_proj.\2"),
        Rule(rf"{feedforward}\.0\.0\.g", f"{layer}.post_attention_rmsnorm.weight"),
        Rule(rf"{feedforward}\.1\.wrap\.net\.0\.proj\.{_PARAMETER}", rf"{layer}.mlp.fc1.proj.\2"),
        Rule(rf"{feedforward}\.1\.wrap\.net\.3\.{_PARAMETER}", rf"{layer}.mlp.fc2.\2"),
    )


CLVP_RULES = (Rule("temperature", "logit_scale"), *_encoder_rules("text"), *_encoder_rules("speech"))


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
            if match and rule.target:
                parts = rule.split(weight, heads) if rule.split else [weight]
                for letter, part in zip("QKV", parts, strict=False):
                    converted[match.expand(rule.target).replace("QKV", letter.lower())] = part
            if match:
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{origin} holds weights that Tortoise's do not: {', '.join(unknown[:20])}")
    return converted


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
    vocabulary, width = shape_of(state, "mel_head.weight", origin)
    return ClvpDecoderConfig(
        vocab_size=vocabulary,
        max_position_embeddings=shape_of(state, "mel_pos_embedding.emb.weight", origin)[0],
        max_text_tokens=shape_of(state, "text_pos_embedding.emb.weight", origin)[0],
        hidden_size=width,
        num_hidden_layers=count_layers(state, "gpt.h.{}.ln_1.weight"),
        num_attention_heads=_heads(width, heads, origin),
        n_inner=shape_of(state, "gpt.h.0.mlp.c_fc.weight", origin)[1],
        num_mel_attn_blocks=count_layers(state, "conditioning_encoder.attn.{}.qkv.weight"),
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        feature_size=shape_of(state, "conditioning_encoder.init.weight", origin)[1],
    )


def encoder_config(
    state: State, kind: str, heads: int | None = None, origin: str = "clvp2"
) -> ClvpEncoderConfig:
    """Sizes of the "text" or the "speech" encoder."""
    stack = f"{kind}_transformer.transformer.attn_layers"
    vocabulary, width = shape_of(state, f"{kind}_emb.weight", origin)
    config = ClvpEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape_of(state, f"{stack}.layers.1.1.wrap.net.3.weight", origin)[1],
        projection_dim=shape_of(state, f"to_{kind}_latent.weight", origin)[0],
        num_hidden_layers=count_layers(state, stack + ".layers.{}.0.0.g") // 2,
        num_attention_heads=_heads(width, heads, origin),
        bos_token_id=vocabulary - 1 if kind == "text" else None,
        eos_token_id=0 if kind == "text" else None,
        # The floor is on the root mean square, the addend on its square.
        rms_norm_eps=RMS_NORM_FLOOR**2,
    )
    frequencies = shape_of(state, f"{stack}.rotary_pos_emb.inv_freq", origin)[0]
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
    """Write a checkpoint folder, with Tortoise's tokenizer and sampling settings, from its two files.

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
    decoder = replace(decoder, decoder_fixing_codes=fixing_codes)
    config = ClvpConfig(text, speech, decoder, projection_dim=text.projection_dim)
    weights = {
        **apply_rules(decoder_state, AUTOREGRESSIVE_RULES, decoder.num_attention_heads, decoder_name),
        **apply_rules(clvp_state, CLVP_RULES, text.num_attention_heads, clvp_name),
    }
    with shapes_alone():
        model = ClvpModelForConditionalGeneration(config)
    check_keys(model, weights, f"{decoder_name} and {clvp_name}")
    model.load_state_dict({key: weight.float() for key, weight in weights.items()}, assign=True)
    # The engine's defaults are Tortoise's. Its repetition penalty also sees the token 1 that stands for the
    # prefix in its prompt.
    sampling = vars(SamplingParams(penalized_tokens=(1,))) | {"seed": None, "return_dict_in_generate": True}
    model.generation_config = ClvpGenerationConfig.from_dict(
        sampling,
        max_new_tokens=model.generation_config.max_new_tokens,
        bos_token_id=decoder.bos_token_id,
        eos_token_id=decoder.eos_token_id,
    )
    model.save_pretrained(output_folder)
    write_processor_files(Path(output_folder), normalizer="tortoise")
    return Path(output_folder)
