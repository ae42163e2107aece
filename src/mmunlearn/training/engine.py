"""How gradients become updates: the seam at which other engines (DeepSpeed, FSDP) take the place of plain replication."""

import math
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmunlearn.errors import RunError
from mmunlearn.models.families import Family, Part
from mmunlearn.models.tuning import trainable


class Engine(Protocol):
    """What the loop needs of a training engine."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one term of one micro-batch."""

    def step(self, max_norm: float) -> dict[str, float]:
        """Exchange gradients between ranks, clip, update and clear.

        Args:
            max_norm: largest norm of the whole gradient; 0: no clipping.

        Returns:
            The norm of the gradient before clipping, by part.
        """


class Replicated:
    """Every rank holds the whole model; gradients are added up once a step.

    Ranks hold shares of one sum, so gradients are summed, not averaged. The exchange is done here and not by DDP's hooks
    because it then does not matter which parameters a rank's micro-batches used: image-free or empty micro-batches on some
    ranks are no special case.
    """

    def __init__(self, model: nn.Module, family: Family, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        """Collect the parameters that change."""
        self.parameters = trainable(model, family)
        self.optimizer = optimizer
        self.accelerator = accelerator

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one term of one micro-batch."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> dict[str, float]:
        """Exchange, clip, update, clear; see `Engine.step`."""
        self._exchange()
        norms = {str(part): _norm([parameter for _, parameter in own]) for part, own in self.parameters.items()}
        whole = math.sqrt(sum(norm**2 for norm in norms.values()))
        if not math.isfinite(whole):
            raise RunError(
                f"The gradient is not finite ({norms}), so the step was not taken; the last checkpoint is untouched. "
                "Lower trainer.args.learning_rate, or, in half precision, use model.dtype=float32."
            )
        if max_norm and whole > max_norm:
            for _, parameter in self._all():
                if parameter.grad is not None:
                    parameter.grad.mul_(max_norm / whole)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _all(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for part in Part for pair in self.parameters.get(part, [])]

    def _exchange(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        parameters = [parameter for _, parameter in self._all()]
        has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=self.accelerator.device)
        ranks_with_gradient = self.accelerator.reduce(has_gradient, reduction="sum").tolist()
        for parameter, ranks in zip(parameters, ranks_with_gradient, strict=True):
            if not ranks:
                # No rank met an image: as in one process, the optimizer passes over the weight. With a gradient of zero
                # it would go on moving it by its momentum.
                continue
            # A rank without a gradient (no image in its share) still takes part in the sum.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, reduction="sum")


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
