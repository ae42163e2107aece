"""MMUnlearner: ascent on the forget set through a saliency mask, descent on the retain set."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mmunlearn.config_enums import Goal, Scope
from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class MMUnlearner:
    """MMUnlearner: -forget_weight m * grad L_f + retain_weight grad L_r, m a saliency mask of `mmunlearn saliency`.

    Source: Huo et al. 2025 (arXiv:2502.11051). Normalisation: each loss per supervised token of the step. Its goal is
    `visual_only`: forget the questions with the picture, keep the text facts. The published script (preset
    mmunlearner_official) takes the two gradients in separate steps and clips the norm before it masks. Deviations from
    that script: the mask is found for every tuned parameter or training is refused (there it matches none under LoRA, and
    only names with proj, fc, linear, mlp or qkv elsewhere); a failing forget step is an error (there it is passed over).
    """

    goal: ClassVar[Goal] = Goal.visual_only

    mask: str = ""
    """Folder or file of `mmunlearn saliency`."""
    scope: Scope = Scope.forget
    """forget: the mask acts on the forget gradient, retain changes every tuned weight (as published). update: nothing
    outside the mask moves at all. With LoRA only update is possible."""
    forget_weight: float = 1.0
    """Multiplies the ascent term."""
    retain_weight: float = 1.0
    """Multiplies the descent term."""
    clip_before_mask: bool = False
    """Clip the norm of the whole forget gradient and mask then, as the published script; only with schedule alternating."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight", "retain_weight")

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Nothing to prepare: the mask has been made before."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Masked ascent on the forget side, descent on the retain side."""
        strict = self.scope == Scope.update
        return (
            Term(name="forget", on=Side.forget, weight=-self.forget_weight, loss=answer_nll, masked=True),
            Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=answer_nll, masked=strict),
        )
