"""Adapters on weights in bfloat16 multiply in bfloat16, with the adapter itself kept in float32.

PEFT widens the input of every adapted layer to the adapter's float32, keeps that copy for the backward pass and multiplies it
in float32: on a GPU these copies take about as much memory as all other activations, and the thin products run at a fraction
of the rate of bfloat16. Here the input stays as it is, as it does under autocast; the products still add up in float32, and
the adapter's weights, their gradients and the optimizer's moments are float32 as before. Rounded to bfloat16 are A and B where
they are multiplied, the thin product between them, and the branch before it is added to the layer's output, which is rounded
in any case. float16, whose range is small, is left to PEFT.

Legend: T tokens (all leading dimensions together), I and O the layer's inputs and outputs.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraVariant
from torch import Tensor, nn


class BfloatLora(LoraVariant):  # type: ignore[misc] # PEFT has no types
    """What PEFT's linear layer does in place of plain LoRA on weights in bfloat16. Set by `multiply_in_bfloat16`."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """PEFT calls this where an adapter of the same name is set up anew; nothing is to be prepared."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The layer's output with the adapter, [T, O], in the precision of the layer below.

        Args:
            module: PEFT's layer.
            active_adapter: name of the adapter.
            x: the layer's input, [T, I].
            result: the output of the layer below the adapter, [T, O].
            kwargs: of other variants; unused.
        """
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        # The scaling acts on the thin product in the middle, so that the wide output is passed once less.
        with torch.autocast(x.device.type, dtype=result.dtype):
            branch: Tensor = up(down(module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter])
            return result + branch

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the update in it, as a new tensor, [O, I]."""
        update: Tensor = module.get_delta_weight(active_adapter)
        return orig_weight + update.to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Put the update into the weight in place; as PEFT does, summed in float32 and rounded once."""
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the update, up to rounding, [O, I]."""
        update: Tensor = module.get_delta_weight(active_adapter)
        return orig_weight - update.to(orig_weight.dtype)


def multiply_in_bfloat16(model: nn.Module) -> None:
    """Let the plain LoRA adapters of a model work in bfloat16 where the layers below them do.

    Layers in other precisions or 4 bits stay as they are, and so do those with another variant of LoRA or with a bias.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            layer.cast_input_dtype_enabled = False
            layer.lora_variant.update({adapter: BfloatLora() for adapter in layer.lora_A})


def _is_plain(layer: Any) -> bool:
    below = layer.get_base_layer()
    others = any(not isinstance(variant, BfloatLora) for variant in layer.lora_variant.values())
    in_bfloat16 = isinstance(below, nn.Linear) and below.weight.dtype is torch.bfloat16
    return in_bfloat16 and not others and not any(layer.lora_bias.values())
