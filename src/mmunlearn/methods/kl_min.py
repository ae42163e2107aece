"""KL minimisation: ascent on the forget set while the predictions on the retain set stay as they were."""

from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_kl, answer_nll, everywhere_kl
from mmunlearn.models.reference import Reference


class Positions(StrEnum):
    """Where predictions are compared."""

    supervised = "supervised"
    """At the supervised tokens, per token."""
    everywhere = "everywhere"
    """At every position, padding too, per sequence: what the published scripts do."""


@dataclass(frozen=True, kw_only=True)
class KLMin:
    """KL minimisation: -forget_weight L_f + retain_weight KL(reference || model) on retain.

    Source: TOFU (arXiv:2401.06121), section 4 "KL Minimization"; MLLMU-Bench (arXiv:2410.22108), baseline KL_Min. The
    reference is the model before unlearning. Normalisation: both per supervised token of the step. Deviations: the scripts
    of MLLMU-Bench and MMUnlearner sum the divergence over all positions, padding too, and divide by the number of sequences
    alone (`positions=everywhere`), and they alternate between forget and retain steps; the preset kl_min_official does both.
    """

    forget_weight: float = 1.0
    """Multiplies the ascent term."""
    retain_weight: float = 1.0
    """Multiplies the divergence."""
    positions: Positions = Positions.supervised
    """Where the divergence is taken."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight", "retain_weight")

    @property
    def whole_batches(self) -> bool:
        """Taken everywhere, the divergence depends on how much a batch is padded."""
        return self.positions == Positions.everywhere

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Keep the reference."""
        return Prepared(reference=reference.kept())

    def terms(self) -> tuple[Term, ...]:
        """Ascent on the forget side, divergence on the retain side."""
        divergence = everywhere_kl if self.positions == Positions.everywhere else answer_kl
        return (
            Term(name="forget", on=Side.forget, weight=-self.forget_weight, loss=answer_nll),
            Term(name="retain_kl", on=Side.retain, weight=self.retain_weight, loss=divergence),
        )
