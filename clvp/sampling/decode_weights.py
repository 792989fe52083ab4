"""The decoder's weights, arranged for decoding: projections fused, and laid out once for the processor.

On a CPU with AVX512 oneDNN's prepacked matrix products are up to twice as fast as
`torch.nn.functional.linear`, which rearranges the weights anew in every call; on others they may be slower.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvp.config import ClvpDecoderConfig
from clvp.decoder import ClvpDecoder, ClvpDecoderLayer, ClvpDecoderMLP, ClvpModel
from clvp.layers import ClvpSelfAttention, Conv1D, activation_function

Linear = Callable[[Tensor], Tensor]
ResidualLinear = Callable[[Tensor, Tensor], Tensor]  # (x, residual) -> x Wᵀ + b + residual

WIDEST = 192  # rows of one product at most: the products are bound by arithmetic long before
ROWS_HINT = 64  # oneDNN's layout chosen for this many rows is the fast one for 1 … 128


@dataclass(frozen=True)
class Products:
    """How a CPU computes products: the kind, and the numbers of rows in which it leaves a row its bits.

    `invariance` finds them. The widths are multiples of the quantum, an eighth apart as they grow.
    """

    packed: bool
    quantum: int
    widest: int = WIDEST

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """All numbers of rows that a product may have, ascending."""
        found = [self.quantum]
        while found[-1] < self.widest:
            step = max(found[-1] // 8 // self.quantum, 1) * self.quantum
            found.append(min(found[-1] + step, self.widest))
        return tuple(found)

    def padded(self, rows: int) -> int:
        """The rows that `rows` rows are padded to: whole products of the widest kind, and one of the rest."""
        whole, rest = divmod(rows, self.widest)
        return whole * self.widest + (next(width for width in self.widths if width >= rest) if rest else 0)

    def in_widths(self, product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The product of any number of rows, computed in these widths alone."""

        def product_in_widths(*inputs: Tensor) -> Tensor:
            rows = inputs[0].shape[0]
            if rows in self.widths:
                return product(*inputs)
            padding = (0, 0, 0, self.padded(rows) - rows)
            pieces = (functional.pad(x, padding).split(self.widest) for x in inputs)
            return torch.cat([product(*piece) for piece in zip(*pieces, strict=True)])[:rows]

        return product_in_widths


class DecoderWithHead(Protocol):
    """What candidates are sampled from."""

    config: ClvpDecoderConfig
    model: ClvpModel
    final_norm: nn.LayerNorm
    lm_head: nn.Linear


# The modules whose arithmetic the engine repeats from their weights.
_PLAIN: tuple[type[nn.Module], ...] = (
    *(ClvpModel, ClvpDecoder, ClvpDecoderLayer, ClvpDecoderMLP, ClvpSelfAttention, Conv1D),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList),
)


def check_plain(model: DecoderWithHead) -> None:
    """Raise TypeError naming a module that computes anything else than its weights and its class say."""
    for root in ("model", "final_norm", "lm_head"):
        for name, part in getattr(model, root).named_modules(prefix=root):
            changed = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
            if type(part) not in _PLAIN or changed:
                raise TypeError(
                    f"{name}, a {type(part).__name__}{' with a hook' if changed else ''}, is no plain layer, "
                    "and candidates are sampled from the weights of plain layers alone: merge adapters into "
                    "them (merge_and_unload() in peft), and remove parametrizations, hooks and wrappers"
                )


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's prepacked products can be used for this weight."""
    supported = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return weight.device.type == "cpu" and supported and torch.backends.mkldnn.is_available()


def _pack(weight_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), ROWS_HINT)
    return packed


def linear_product(weight_OI: Tensor, bias_O: Tensor, packed: bool, gelu: bool = False) -> Linear:
    """x Wᵀ + b, then GELU's tanh form if asked for, with a copy of W; packed: in oneDNN's own layout."""
    if packed:
        packed_weight, operator = _pack(weight_OI), torch.ops.mkldnn._linear_pointwise
        then, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return lambda x_BI: operator(x_BI, packed_weight, bias_O, then, [], algorithm)
    weight_OI = weight_OI.clone(memory_format=torch.contiguous_format)
    if gelu:
        activation = activation_function("gelu_new")
        return lambda x_BI: activation(functional.linear(x_BI, weight_OI, bias_O))
    return lambda x_BI: functional.linear(x_BI, weight_OI, bias_O)


def residual_product(weight_OI: Tensor, bias_O: Tensor, packed: bool) -> ResidualLinear:
    """x Wᵀ + b + residual, with a copy of W; packed: in one pass."""
    if packed:
        packed_weight, operator = _pack(weight_OI), torch.ops.mkldnn._linear_pointwise.binary
        return lambda x_BI, residual_BO: operator(x_BI, residual_BO, packed_weight, bias_O, "add")
    weight_OI = weight_OI.clone(memory_format=torch.contiguous_format)
    return lambda x_BI, residual_BO: residual_BO + functional.linear(x_BI, weight_OI, bias_O)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: nn.LayerNorm
    qkv: Linear  # [·, D] -> [·, 3D], queries already divided by the root of the head dimension
    out: ResidualLinear  # [·, D] -> [·, D]
    mlp_norm: nn.LayerNorm
    mlp_in: Linear  # [·, D] -> [·, 4D], activation included
    mlp_out: ResidualLinear  # [·, 4D] -> [·, D]


@dataclass(frozen=True)
class DecoderWeights:
    """All that decoding needs of a `DecoderWithHead`."""

    token_embedding_VD: Tensor
    position_embedding_LD: Tensor  # [mel positions, D]
    layers: tuple[LayerWeights, ...]
    decoder_norm: nn.LayerNorm
    final_norm: nn.LayerNorm
    head: Linear  # [·, D] -> [·, V]; the start token's logit is −inf: it must never be drawn
    heads: int
    products: Products | None  # None: in the shape that they are asked for
    max_prefix: int  # positions of the longest prefix: condition, start, text and stops
    start_token: int
    stop_token: int

    @property
    def width(self) -> int:
        """D, the model's width."""
        return self.token_embedding_VD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding_VD.dtype

    @property
    def device(self) -> torch.device:
        return self.token_embedding_VD.device

    @property
    def workspace_bytes_per_lane(self) -> int:
        """An upper estimate of what a lane's logits, activations and filters take during a step."""
        vocabulary, width = self.token_embedding_VD.shape
        return 4 * (16 * vocabulary + 64 * width)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one position in all layers."""
        return len(self.layers) * 2 * self.width * self.dtype.itemsize


def decoder_logits(weights: DecoderWeights, x_WD: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
    """[W, V] float32 logits of one step from embedded tokens [W, D].

    `attend` takes a layer's number and its queries, keys and values [W, 3D], and gives [W, D].
    """
    for number, layer in enumerate(weights.layers):
        x_WD = layer.out(attend(number, layer.qkv(layer.input_norm(x_WD))), x_WD)
        x_WD = layer.mlp_out(layer.mlp_in(layer.mlp_norm(x_WD)), x_WD)
    return weights.head(weights.final_norm(weights.decoder_norm(x_WD))).float()


def _bias(projection: nn.Linear) -> Tensor:
    """A copy of the bias, or zeros for a projection without."""
    bias: Tensor | None = projection.bias
    return projection.weight.new_zeros(projection.out_features) if bias is None else bias.detach().clone()


def _norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    return deepcopy(norm).requires_grad_(False)


@torch.no_grad()
def arrange_weights(model: DecoderWithHead, products: Products | None = None) -> DecoderWeights:
    """Copies the model's decoder weights into the arrangement for decoding.

    Later changes of the model's parameters are not seen. Raises TypeError as `check_plain` does.
    """
    check_plain(model)
    config, decoder = model.config, model.model.decoder
    packed = products is not None and products.packed
    activation = activation_function(config.activation_function)
    tanh_gelu = config.activation_function == "gelu_new"
    scale = (config.hidden_size // config.num_attention_heads) ** -0.5

    def in_widths(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return product if products is None else products.in_widths(product)

    def linear(weight_OI: Tensor, bias_O: Tensor, gelu: bool = False) -> Linear:
        return in_widths(linear_product(weight_OI, bias_O, packed, gelu))

    def residual(weight_OI: Tensor, bias_O: Tensor) -> ResidualLinear:
        return in_widths(residual_product(weight_OI, bias_O, packed))

    def mlp_in(projection: Conv1D) -> Linear:
        product = linear(projection.weight.t(), projection.bias.clone(), tanh_gelu)
        return product if tanh_gelu else lambda x_BI: activation(product(x_BI))

    layers = []
    for layer in cast("Iterable[ClvpDecoderLayer]", decoder.layers):
        q, k, v = layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj
        layers.append(
            LayerWeights(
                input_norm=_norm(layer.input_layernorm),
                qkv=linear(
                    torch.cat([q.weight * scale, k.weight, v.weight]),
                    torch.cat([_bias(q) * scale, _bias(k), _bias(v)]),
                ),
                out=residual(layer.attn.out_proj.weight, _bias(layer.attn.out_proj)),
                mlp_norm=_norm(layer.post_attention_layernorm),
                mlp_in=mlp_in(layer.mlp.c_fc),
                mlp_out=residual(layer.mlp.c_proj.weight.t(), layer.mlp.c_proj.bias.clone()),
            )
        )
    head_bias_V = _bias(model.lm_head)
    head_bias_V[config.bos_token_id] = -torch.inf
    return DecoderWeights(
        token_embedding_VD=decoder.input_embeds_layer.weight.detach().clone(),
        position_embedding_LD=decoder.position_embeds_layer.weight.detach().clone(),
        layers=tuple(layers),
        decoder_norm=_norm(decoder.layer_norm),
        final_norm=_norm(model.final_norm),
        head=linear(model.lm_head.weight, head_bias_V),
        heads=config.num_attention_heads,
        products=products,
        max_prefix=config.max_text_tokens + 1,
        start_token=config.bos_token_id,
        stop_token=config.eos_token_id,
    )
