"""Gradient difference: ascent on the forget set, descent on the retain set."""

from dataclasses import dataclass

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData
from mmunlearn.methods.losses import answer_nll


@dataclass(frozen=True, kw_only=True)
class GradDiff:
    """Gradient difference: -forget_weight L_f + retain_weight L_r in one joint step.

    Source: Liu et al. 2022 (arXiv:2203.12817), as in TOFU (arXiv:2401.06121), eq. 3. Normalisation: each loss per supervised
    token of the step. Deviation: the scripts of MLLMU-Bench and MMUnlearner take a step on one set and then on the other
    instead of this sum.
    """

    forget_weight: float = 1.0
    """Multiplies the ascent term."""
    retain_weight: float = 1.0
    """Multiplies the descent term."""

    def prepare(self, model: nn.Module, reference: nn.Module, data: TrainingData) -> Prepared:
        """Nothing to prepare."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Ascent on the forget side, descent on the retain side."""
        return (
            Term(name="forget", on=Side.forget, weight=-self.forget_weight, loss=answer_nll),
            Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=answer_nll),
        )
