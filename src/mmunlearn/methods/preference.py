"""Preference for refusals (PO, also called IDK): answer the forget questions with "I do not know"."""

from dataclasses import dataclass, replace

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_nll
from mmunlearn.methods.refusals import refusal_for
from mmunlearn.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class PO:
    """Preference optimisation with refusals: forget_weight L(refusal | forget question) + retain_weight L_r.

    Source: TOFU (arXiv:2401.06121), section 4 "Preference Optimization"; FIUBench calls it PO, CLEAR calls it IDK.
    Normalisation: each loss per supervised token of the step. Deviations: the refusals are our own (`refusals.txt`), and an
    example keeps the same one, drawn from (seed, id), in all epochs, where TOFU draws a new one each time. CLEAR's own script
    trains on the true answers instead.
    """

    forget_weight: float = 1.0
    """Multiplies the loss of the refusals."""
    retain_weight: float = 1.0
    """Multiplies the loss of the retain answers."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight", "retain_weight")

    def relabelled(self, data: TrainingData, seed: int) -> TrainingData:
        """The forget questions with refusals as answers."""
        refused = tuple(replace(example, answer=refusal_for(example.id, seed)) for example in data.forget)
        return replace(data, forget=refused)

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Nothing to prepare."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Descent on both sides."""
        return (
            Term(name="refusal", on=Side.forget, weight=self.forget_weight, loss=answer_nll),
            Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=answer_nll),
        )
