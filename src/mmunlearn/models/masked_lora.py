"""LoRA under a saliency mask: the mask acts on the effective weight, W + m * s * B A, not on the adapter's own entries.

Why not on A and B: at the start B is 0, so that the saliency of A is 0/0, and one entry of B moves a whole row of W.
The mask is one boolean a weight of W, packed to one bit. No dense matrix is kept between forward and backward: both work out
m * s * B A anew. MMUnlearner (arXiv 2502.11051) masks the gradient of fully tuned weights only; this is our counterpart of
`scope: update` for adapters, and nothing outside the mask moves by a bit, also after merging.

Legend: T tokens (all leading dimensions together), I and O the layer's inputs and outputs, R the rank.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mmunlearn.errors import ConfigError
from mmunlearn.models.bfloat_lora import BfloatLora
from mmunlearn.models.families import bare_name
from mmunlearn.models.generic import find_family
from mmunlearn.models.saliency_mask import SaliencyMask, check_fits, unpack

BITS = "saliency_bits"
"""The buffer of an adapted layer that holds its packed mask. Not persistent: it never is in a state dict."""


def masked_delta(a: Tensor, b: Tensor, bits: Tensor, scaling: float) -> Tensor:
    """The effective update of one weight, m * s * B A.

    Args:
        a: the adapter's first matrix, [R, I].
        b: its second one, [O, R].
        bits: the mask m of the weight, packed, uint8 [ceil(O * I / 8)].
        scaling: s, alpha / R.

    Returns:
        [O, I], in the precision of the adapter.
    """
    delta = (b * scaling) @ a
    return delta.mul_(unpack(bits, tuple(delta.shape)))


class _MaskedLinear(torch.autograd.Function):
    """x (m * s * B A)^T with its exact gradient; what is kept for it is x, A, B and the bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, bits: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b, bits)
        ctx.scaling = scaling
        # Autocast would round B A before the mask and the scaling are through, and would act here but not in backward.
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x, masked_delta(a, b, bits, scaling).to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, a, b, bits = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = grad @ masked_delta(a, b, bits, ctx.scaling).to(grad.dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                of_delta = (grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])).to(a.dtype)  # [O, I]
                of_delta.mul_(unpack(bits, tuple(of_delta.shape))).mul_(ctx.scaling)
                grad_a, grad_b = b.T @ of_delta, of_delta @ a.T
        return grad_x, grad_a, grad_b, None, None


def masked_linear(x: Tensor, a: Tensor, b: Tensor, bits: Tensor, scaling: float) -> Tensor:
    """What a masked adapter adds to its layer's output: x (m * s * B A)^T.

    m * s * B A is worked out in the precision of A and B, rounded once to that of x, and worked out again in backward.
    Gradients reach x, A and B; second derivatives are not defined.

    Args:
        x: input of the layer, [..., I]; its precision is that of the multiplication.
        a: [R, I].
        b: [O, R].
        bits: the packed mask of the weight, uint8 [ceil(O * I / 8)].
        scaling: s.

    Returns:
        [..., O], in the precision of x.
    """
    return _MaskedLinear.apply(x, a, b, bits, scaling)  # type: ignore[no-any-return, no-untyped-call]


class MaskedLora(LoraVariant):  # type: ignore[misc] # PEFT has no types
    """What PEFT's linear layer does in place of plain LoRA, if its adapter is masked. Set by `mask_adapter`.

    Deviation from PEFT: the branch is multiplied in the precision of the layer's own output (half precision in a half-precision
    model or under autocast) and not in that of the adapter; its matrix is as large as W, and twice as slow in float32.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.card = card

    def supports_lora_conversion(self) -> bool:
        """No other adapter has the same effect."""
        return False

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """PEFT calls this where an adapter of the same name is set up anew; the mask stays."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The layer's output with the masked adapter, [..., O].

        Args:
            module: PEFT's layer.
            active_adapter: name of the adapter.
            x: the layer's input, [..., I].
            result: the output of the layer below the adapter, [..., O].
            kwargs: of other variants; unused.
        """
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        x = module.lora_dropout[active_adapter](x).to(result.dtype)
        return result + masked_linear(x, a, b, getattr(module, BITS), module.scaling[active_adapter])

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the update in it, as a new tensor, [O, I]."""
        return _moved(module, active_adapter, orig_weight, sign=1)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Put the update into the weight in place."""
        orig_weight.data.copy_(_moved(module, active_adapter, orig_weight, sign=1))

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the update, [O, I]; inside the mask up to rounding, outside bit for bit."""
        return _moved(module, active_adapter, orig_weight, sign=-1)


@torch.no_grad()
def _moved(module: Any, adapter: str, weight: Tensor, *, sign: int) -> Tensor:
    """W + sign * m * s * B A, summed in float32 at least; outside the mask the very bits of W, even those of -0."""
    bits, wide = getattr(module, BITS), torch.promote_types(weight.dtype, torch.float32)
    a, b = module.lora_A[adapter].weight.to(wide), module.lora_B[adapter].weight.to(wide)
    moved = weight.to(wide) + masked_delta(a, b, bits, sign * module.scaling[adapter])
    return torch.where(unpack(bits, tuple(weight.shape)), moved.to(weight.dtype), weight)


def mask_adapter(model: PeftModel, mask: SaliencyMask) -> None:
    """Let a LoRA adapter change only the weights that a mask selects. An earlier mask of the adapter is replaced.

    The adapter's entries are trained as usual. The mask moves with the model to other devices, and `adapter_mask` finds it.
    It may cover more parameters than the adapter; these are left alone, and so are parts tuned fully beside the adapter.

    Args:
        model: with one LoRA adapter, not merged, on linear layers.
        mask: covers every adapted weight.

    Raises:
        ConfigError: the mask does not fit (see `check_fits`), or the adapter is of a kind that cannot be masked; with names.
            The model is left as it was.
    """
    layers = _maskable_layers(model)
    shapes = {bare_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_fits(mask, shapes, layers, find_family(model))
    for name, layer in layers.items():
        layer.register_buffer(BITS, mask.bits[name].to(layer.get_base_layer().weight.device), persistent=False)
        for adapter in layer.lora_A:
            layer.lora_variant[adapter] = MaskedLora(mask.card)


def _maskable_layers(model: nn.Module) -> dict[str, Any]:
    """All layers with LoRA, by the bare name of the adapted weight."""
    layers: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        reason = _why_not(layer)
        if reason:
            raise ConfigError(f"The adapter of {bare_name(name)} cannot be masked: {reason}.")
        layers[bare_name(f"{name}.weight")] = layer
    if not layers:
        raise ConfigError("A mask was given for an adapter, but the model has none. Set mode=lora for a part (model.tune.…).")
    return layers


def _why_not(layer: Any) -> str:
    """What keeps the mask from governing everything that an adapter does to a layer; empty if nothing does."""
    if not isinstance(layer, Linear) or not isinstance(layer.get_base_layer(), nn.Linear):
        return f"it is no plain linear layer but {type(layer.get_base_layer()).__name__}; correct lora_modules in families.py"
    if len(layer.lora_A) != 1:
        return f"it has {len(layer.lora_A)} adapters ({', '.join(layer.lora_A)}), and a mask needs exactly one"
    if any(layer.lora_bias.values()):
        return "it also changes the bias (lora_bias), which the mask does not govern"
    if not all(isinstance(variant, (MaskedLora, BfloatLora)) for variant in layer.lora_variant.values()):
        return f"it is a variant of LoRA ({', '.join(type(variant).__name__ for variant in layer.lora_variant.values())})"
    if layer.merged:
        return "it is merged into the weights already; unmerge it first"
    return ""


def base_fingerprint(model: nn.Module) -> str:
    """Identifies the weights below a masked adapter, with their precision: `float32:0123456789abcdef`.

    The promise of a strict mask is about these very weights; an adapter on others of the same shapes is another model.
    """
    digest, precision = hashlib.blake2b(digest_size=8), ""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight.detach()
            precision = str(weight.dtype).removeprefix("torch.")
            digest.update(bare_name(name).encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"{precision}:{digest.hexdigest()}"


def adapter_mask(model: nn.Module) -> SaliencyMask | None:
    """The mask that a model's adapter carries, for the adapted weights alone and on the CPU; None without one."""
    bits, shapes, card = {}, {}, None
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for variant in layer.lora_variant.values():
            if isinstance(variant, MaskedLora):
                weight = bare_name(f"{name}.weight")
                bits[weight] = getattr(layer, BITS).cpu()
                shapes[weight] = tuple(layer.get_base_layer().weight.shape)
                card = variant.card
    return None if card is None else SaliencyMask(bits=bits, shapes=shapes, card=card)
