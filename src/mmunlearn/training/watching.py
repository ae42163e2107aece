"""Losses on a fixed few examples, watched without being trained on, and the bound at which a run ends early."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mmunlearn.config import TrainerArgs
from mmunlearn.data.batch import Batch, Encoder, collate
from mmunlearn.data.example import Example
from mmunlearn.errors import RunError
from mmunlearn.methods.base import Prepared, TrainingData
from mmunlearn.methods.losses import answer_nll

WATCHED_EXAMPLES = 16
"""Of each side; the retain loss is watched also by methods without a retain term."""
NOT_FINITE = (
    "The weights of the last checkpoint are untouched. Lower trainer.args.learning_rate or the term's weight, stop earlier "
    "(trainer.args.max_steps), or, in half precision, use model.dtype=float32."
)


@dataclass(frozen=True)
class Watch:
    """The watched examples of each side, as batches: retain always, forget where its loss has a bound."""

    batches: Mapping[str, Sequence[Batch]]
    bound: float
    """`trainer.args.stop_forget_loss`; 0: none."""

    def losses(self, model: nn.Module, step: int) -> dict[str, float | None]:
        """The loss of each side.

        Raises:
            RunError: one is not finite.
        """
        found = {side: watched_loss(model, batches) for side, batches in self.batches.items()}
        for side, loss in found.items():
            require_finite(loss or 0.0, f"The loss on the watched {side} examples", step)
        return found

    def is_over(self, losses: Mapping[str, float | None]) -> bool:
        """Whether enough is forgotten."""
        return self.bound > 0 and (losses.get("forget") or 0.0) > self.bound


def watch(
    data: TrainingData, encoder: Encoder, args: TrainerArgs, device: torch.device, prepare: Callable[[Batch], Batch]
) -> Watch:
    """Choose what is watched: examples spread evenly over each side."""
    sides = {"retain": data.retain} | ({"forget": data.forget} if args.stop_forget_loss else {})
    size = args.per_device_train_batch_size
    return Watch(
        {side: [prepare(batch) for batch in _batches(all_, encoder, size, device)] for side, all_ in sides.items()},
        args.stop_forget_loss,
    )


def _batches(examples: Sequence[Example], encoder: Encoder, size: int, device: torch.device) -> list[Batch]:
    stride = max(1, len(examples) // WATCHED_EXAMPLES)
    chosen = [encoder(example) for example in examples[::stride][:WATCHED_EXAMPLES]]
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [collate(part, pad_token_id=encoder.pad_token_id).to(device) for part in parts]


@torch.no_grad()
def watched_loss(model: nn.Module, batches: Sequence[Batch]) -> float | None:
    """Mean negative log-likelihood per answer token, nats; None without any batch."""
    if not batches:
        return None
    tokens = sum(batch.num_tokens for batch in batches)
    return sum(float(answer_nll(model, replace(batch, step_tokens=tokens), Prepared())) for batch in batches)


def require_finite(value: float, what: str, step: int) -> None:
    """Make sure that a number can be trained with.

    Raises:
        RunError: it is infinite or not a number.
    """
    if not math.isfinite(value):
        raise RunError(f"{what} became {value} in step {step}. {NOT_FINITE}")
