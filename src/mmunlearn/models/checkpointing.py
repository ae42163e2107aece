"""Gradient checkpointing: what a layer does is done again in the backward pass instead of being kept for it.

`all` keeps each layer's input and nothing else; the whole forward pass is then computed twice, a third more operations.
`selective` also keeps the results of large matrix products and of attention and does only the rest again: norms, activation
functions, sums, dropout, adapters' thin products. In LLaVA-1.5-7B these hold two fifths of the memory (with dropout on
adapters more than three fifths) and a small share of the operations. Attention that torch does not fuse is done again too.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; selective as in Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", with the cut at matrix products in place of attention.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

THIN = 256
"""A product by a matrix with a side of at most so many numbers is done again: by an adapter's, whose rank is one side."""

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_ATTENTION = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
)


def checkpoint_activations(model: Any, *, selective: bool = False) -> None:
    """Recompute activations in the backward pass instead of keeping them.

    Gradients are those without checkpointing, dropout included; on a CPU bit for bit.

    Args:
        model: transformers' model, with or without adapters.
        selective: keep the results of large products and of attention, and do only the rest again.
    """
    how: dict[str, Any] = {"use_reentrant": False}
    if selective:
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    # With a frozen embedding nothing at the input asks for a gradient, and checkpointed blocks would be cut off.
    model.enable_input_require_grads()


def _policy(context: Any, operation: Any, *inputs: Any, **others: Any) -> CheckpointPolicy:
    """Whether the result of an operation is kept."""
    keep = operation in _ATTENTION
    if operation in _PRODUCTS:
        keep = min(inputs[-1].shape) > THIN
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
