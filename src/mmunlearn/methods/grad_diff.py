"""Gradient difference: ascent on the forget set, descent on the retain set."""

from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_kl, answer_nll
from mmunlearn.models.reference import Reference


class RetainLoss(StrEnum):
    """What holds the retain set."""

    nll = "nll"
    """The negative log-likelihood of the retain answers."""
    kl = "kl"
    """The divergence from the reference's predictions on them."""


@dataclass(frozen=True, kw_only=True)
class GradDiff:
    """Gradient difference: -forget_weight L_f + retain_weight L_r in one joint step.

    Source: Liu et al. 2022 (arXiv:2203.12817), as in TOFU (arXiv:2401.06121), eq. 3. Normalisation: each loss per supervised
    token of the step. Deviation: the scripts of MLLMU-Bench and MMUnlearner take a step on one set and then on the other
    instead of this sum; `trainer.schedule=alternating` (preset grad_diff_official) does that.
    """

    forget_weight: float = 1.0
    """Multiplies the ascent term."""
    retain_weight: float = 1.0
    """Multiplies the descent term."""
    retain_loss: RetainLoss = RetainLoss.nll
    """nll: the retain answers; kl: KL(reference || model) at their tokens."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight", "retain_weight")

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Keep the reference if the retain term needs it."""
        return Prepared(reference=reference.kept()) if self.retain_loss == RetainLoss.kl else Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Ascent on the forget side, descent on the retain side."""
        hold = answer_kl if self.retain_loss == RetainLoss.kl else answer_nll
        return (
            Term(name="forget", on=Side.forget, weight=-self.forget_weight, loss=answer_nll),
            Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=hold),
        )
