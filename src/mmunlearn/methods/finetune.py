"""Ordinary fine-tuning: how vanilla (on everybody) and gold (on the retain people only) models are made."""

from dataclasses import dataclass

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Minimise the negative log-likelihood of the answers of one set of examples (`data.split`)."""

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Nothing to prepare."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """One term on the retain side: these examples are to be known."""
        return (Term(name="finetune", on=Side.retain, weight=1.0, loss=answer_nll),)
