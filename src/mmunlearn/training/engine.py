"""How gradients become updates: the seam at which other engines (FSDP2, DeepSpeed) take the place of plain replication."""

import contextlib
import math
from collections.abc import Mapping
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmunlearn.errors import RunError
from mmunlearn.models.families import Family, Part
from mmunlearn.models.load import Gathered
from mmunlearn.models.tuning import trainable
from mmunlearn.training.checkpoint import Ranks
from mmunlearn.training.masking import GradientMask


class Engine(Protocol):
    """What the loop needs of a training engine."""

    model: nn.Module
    """What is trained and saved."""
    optimizer: torch.optim.Optimizer
    """Whose learning rates are set."""

    @property
    def asked(self) -> nn.Module:
        """What forward passes go through."""

    def begin(self, passes: int) -> None:
        """Called before the first of so many backward passes of a step."""

    def backward(self, loss: Tensor, *, masked: bool = False) -> None:
        """Add the gradient of one term of one micro-batch; `masked`: only what passes the saliency mask."""

    def step(self, max_norm: float) -> dict[str, float]:
        """Exchange gradients between ranks, clip, update and clear.

        Args:
            max_norm: largest norm of the whole gradient; 0: no clipping.

        Returns:
            The norm of the gradient before clipping, by part.
        """

    @property
    def ranks(self) -> Ranks | None:
        """The ranks among which the weights are sharded; None: every rank has them all."""

    def gathered(self) -> Gathered | None:
        """What is needed to save a model whose weights are sharded; every rank has to call it. None: nothing is."""


class Replicated:
    """Every rank holds the whole model; gradients are added up once a step.

    Ranks hold shares of one sum, so gradients are summed, not averaged. The exchange is done here and not by DDP's hooks
    because it then does not matter which parameters a rank's micro-batches used: image-free or empty micro-batches on some
    ranks are no special case.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        mask: GradientMask | None = None,
    ) -> None:
        """Collect the parameters that change; `mask` is what masked terms pass."""
        self.model = model
        self.parameters = trainable(model, family)
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.mask = mask
        self._kinds = {"masked": 0.0, "free": 0.0}

    @property
    def asked(self) -> nn.Module:
        """The model itself."""
        return self.model

    def begin(self, passes: int) -> None:
        """All backward passes are alike."""

    @property
    def ranks(self) -> Ranks | None:
        """Every rank has all weights."""
        return None

    def gathered(self) -> Gathered | None:
        """Every rank has all weights."""
        return None

    def backward(self, loss: Tensor, *, masked: bool = False) -> None:
        """Add the gradient of one term of one micro-batch.

        Raises:
            RunError: the term is masked, but there is no mask, so it would act on every weight.
        """
        if masked and self.mask is None:
            raise RunError("A term of the method is masked, but no mask was given. Set trainer.method.mask.")
        if not loss.requires_grad:
            # Questions without a picture, while only vision or projector are tuned: no trained weight took part.
            return
        self._kinds["masked" if masked else "free"] = 1.0
        with self.mask.acting() if masked and self.mask is not None else contextlib.nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> dict[str, float]:
        """Exchange, clip, update, clear; see `Engine.step`."""
        self._exchange()
        norms = {str(part): _norm([parameter for _, parameter in own]) for part, own in self.parameters.items()}
        whole = math.sqrt(sum(norm**2 for norm in norms.values()))
        require_finite(whole, norms)
        if max_norm and whole > max_norm:
            for _, parameter in self._all():
                if parameter.grad is not None:
                    parameter.grad.mul_(max_norm / whole)
        self._mask_after_clipping()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _mask_after_clipping(self) -> None:
        """What the published script does instead of masking before the norm is taken."""
        kinds = dict(self._kinds)
        self._kinds = {"masked": 0.0, "free": 0.0}
        if self.mask is None or not self.mask.after_clipping or not kinds["masked"]:
            return
        if kinds["free"]:
            raise RunError(
                "trainer.method.clip_before_mask=true needs steps whose terms are all masked or all free, so that the mask "
                "can be applied to their sum. Set trainer.schedule=alternating."
            )
        self.mask.apply()

    def _all(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for part in Part for pair in self.parameters.get(part, [])]

    def _exchange(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        parameters = [parameter for _, parameter in self._all()]
        own = [float(p.grad is not None) for p in parameters] + list(self._kinds.values())
        counts = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), reduction="sum").tolist()
        ranks_with_gradient = counts[: len(parameters)]
        self._kinds = dict(zip(self._kinds, counts[len(parameters) :], strict=True))
        for parameter, ranks in zip(parameters, ranks_with_gradient, strict=True):
            if not ranks:
                # No rank met an image: as in one process, the optimizer passes over the weight. With a gradient of zero
                # it would go on moving it by its momentum.
                continue
            # A rank without a gradient (no image in its share) still takes part in the sum.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, reduction="sum")


def require_finite(whole: float, norms: Mapping[str, float]) -> None:
    """Look at the norm of a gradient before the step is taken.

    Raises:
        RunError: it is not finite.
    """
    if not math.isfinite(whole):
        raise RunError(
            f"The gradient is not finite ({norms}), so the step was not taken; the last checkpoint is untouched. "
            "Lower trainer.args.learning_rate, or, in half precision, use model.dtype=float32."
        )


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
