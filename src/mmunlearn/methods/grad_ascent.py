"""Gradient ascent on the forget set."""

from dataclasses import dataclass

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class GradAscent:
    """Gradient ascent: maximise the negative log-likelihood of the forget answers; nothing holds the rest together.

    Source: MLLMU-Bench (arXiv:2410.22108), baseline GA; the loss is -L_f. Normalisation: per supervised token of the step.
    Deviation: the authors' script supervises question and image tokens too (`data.answer_only=false` adds the question,
    image tokens are never supervised here).
    """

    forget_weight: float = 1.0
    """Multiplies the ascent term."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight")

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Nothing to prepare."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Ascent on the forget side."""
        return (Term(name="forget", on=Side.forget, weight=-self.forget_weight, loss=answer_nll),)
