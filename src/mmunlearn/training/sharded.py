"""Weights, gradients and the optimizer's state divided among the ranks: FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each rank keeps a shard of every tensor. The weights of a block are fetched from all ranks when it is computed and dropped
behind it; its gradient is added up over the ranks and divided among them in the backward pass.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from mmunlearn.errors import RunError
from mmunlearn.models.adapter_probe import probe
from mmunlearn.models.families import Family
from mmunlearn.models.load import Gathered
from mmunlearn.models.tuning import trainable
from mmunlearn.training.checkpoint import Ranks, local
from mmunlearn.training.engine import require_finite


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Divide the weights of a model among the ranks, in place, block by block (of language and vision) and then the rest.

    Gradients are summed over the ranks, not averaged: the ranks hold shares of one sum. The weights of the outermost group are
    dropped behind every forward pass too, so that none is computed with weights from before an update.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo and NCCL take the same way


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a transformers model (those whose activations it can recompute), outermost first, none inside another."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from blocks(child)


class FrozenShards(nn.Module):
    """A sharded model with the weights that it has now, whatever training does to it later.

    An adapter is switched off; of what is tuned fully each rank keeps its shards, and puts them in place of the present ones
    for the time of a forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy the shards that training will change."""
        super().__init__()
        self._shared = [model]  # in a list: not a submodule, so that its parameters are not counted twice
        self._kept = [
            (parameter, local(parameter.detach()).clone())
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and "lora_" not in name
        ]

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """What `model(**inputs)` returned when this was made, without dropout and without a graph."""
        model = self._shared[0]
        was_training = model.training
        present = [local(parameter).clone() for parameter, _ in self._kept]
        model.eval()
        try:
            self._put([kept for _, kept in self._kept])
            if not isinstance(model, PeftModel):
                return model(**inputs)
            with model.disable_adapter():
                return model(**inputs)
        finally:
            self._put(present)
            model.train(was_training)

    def _put(self, shards: list[Tensor]) -> None:
        for (parameter, _), values in zip(self._kept, shards, strict=True):
            local(parameter).copy_(values)


class Sharded:
    """The engine of a model that `shard` has divided."""

    def __init__(self, model: nn.Module, family: Family, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        """Collect the parameters that change; the optimizer is of the sharded ones."""
        self.model = model
        self.parameters = trainable(model, family)
        self.optimizer = optimizer
        self.accelerator = accelerator

    def backward(self, loss: Tensor, *, masked: bool = False) -> None:
        """Add the gradient of one term of one micro-batch, of all ranks.

        Raises:
            RunError: the term is masked: the gradient of a weight is nowhere as a whole.
        """
        if masked:
            raise RunError("A masked term cannot be trained with sharded weights. Set trainer.args.fsdp=false.")
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> dict[str, float]:
        """Clip, update, clear; see `Engine.step`."""
        norms = self._norms()
        whole = math.sqrt(sum(norm**2 for norm in norms.values()))
        require_finite(whole, norms)
        if max_norm and whole > max_norm:
            for gradients in self._gradients().values():
                for gradient in gradients:
                    gradient.mul_(max_norm / whole)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    @property
    def asked(self) -> nn.Module:
        """The model itself."""
        return self.model

    def begin(self, passes: int) -> None:
        """All backward passes are alike."""

    @property
    def ranks(self) -> Ranks | None:
        """All of them."""
        return Ranks(self.accelerator)

    def gathered(self) -> Gathered | None:
        """Weights and probe, see `Engine.gathered`."""
        asked = probe(self.model) if isinstance(self.model, PeftModel) else None
        return Gathered(weights=gathered_weights(self.model, self.accelerator), probe=asked)

    def _gradients(self) -> dict[str, list[Tensor]]:
        return {
            str(part): [local(parameter.grad) for _, parameter in own if parameter.grad is not None]
            for part, own in self.parameters.items()
        }

    def _norms(self) -> dict[str, float]:
        """The norm of each part's gradient, over all ranks' shards."""
        own = {part: [float(gradient.norm()) ** 2 for gradient in found] for part, found in self._gradients().items()}
        squares = torch.tensor([sum(found) for found in own.values()], dtype=torch.float64, device=self.accelerator.device)
        summed = self.accelerator.reduce(squares, reduction="sum").tolist()
        return {part: math.sqrt(value) for part, value in zip(own, summed, strict=True)}


@torch.no_grad()
def gathered_weights(model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
    """The whole weights on the first rank's CPU, of a LoRA model those that are trained; every rank has to call it.

    Returns:
        By in-memory name; weights with two names (a head tied to the embedding) are one tensor. Empty on other ranks.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    once: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parameter = parameters.get(name)
        if isinstance(model, PeftModel) and (parameter is None or not parameter.requires_grad):
            continue
        number = id(value if parameter is None else parameter)
        if number not in once:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            once[number] = whole.cpu() if accelerator.is_main_process else whole.new_empty(0)
        found[name] = once[number]
    return found if accelerator.is_main_process else {}
