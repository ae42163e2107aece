"""SalUn: relabel the forget set and change only the weights that are salient for it."""

import random
from collections import defaultdict
from dataclasses import dataclass, replace

from torch import nn

from mmunlearn.config_enums import Scope
from mmunlearn.data.example import Example
from mmunlearn.errors import DataError
from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class SalUn:
    """SalUn: forget_weight L(other answer | forget question) + retain_weight L_r, on the weights of a saliency mask alone.

    Source: Fan et al. 2024 (arXiv:2310.12508), random labelling on the weights of a gradient mask; the mask is that of
    `mmunlearn saliency saliency=salun`. Normalisation: each loss per supervised token of the step. Deviation: there are no
    class labels to draw from, so a random label is the answer of another forget question, if possible to the same question
    about somebody else; drawn once from (seed, id).
    """

    mask: str = ""
    """Folder or file of `mmunlearn saliency`."""
    scope: Scope = Scope.update
    """update: nothing outside the mask moves, as in the paper; forget: retain changes every tuned weight."""
    forget_weight: float = 1.0
    """Multiplies the loss of the other answers."""
    retain_weight: float = 1.0
    """Multiplies the loss of the retain answers."""
    clip_before_mask: bool = False
    """Clip the norm of the unmasked gradient."""

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            ConfigError: one is negative or not finite.
        """
        check_weights(self, "forget_weight", "retain_weight")

    def relabelled(self, data: TrainingData, seed: int) -> TrainingData:
        """The forget questions, each with the answer of another one.

        Raises:
            DataError: all forget answers are the same.
        """
        by_question: dict[str, set[str]] = defaultdict(set)
        for example in data.forget:
            by_question[example.question].add(example.answer)
        everything = {example.answer for example in data.forget}
        return replace(
            data,
            forget=tuple(_with_other_answer(e, by_question[e.question], everything, seed) for e in data.forget),
        )

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Nothing to prepare: the mask has been made before."""
        return Prepared()

    def terms(self) -> tuple[Term, ...]:
        """Descent on both sides, through the mask."""
        strict = self.scope == Scope.update
        return (
            Term(name="relabelled", on=Side.forget, weight=self.forget_weight, loss=answer_nll, masked=True),
            Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=answer_nll, masked=strict),
        )


def _with_other_answer(example: Example, same_question: set[str], everything: set[str], seed: int) -> Example:
    others = sorted(same_question - {example.answer}) or sorted(everything - {example.answer})
    if not others:
        raise DataError("SalUn needs another answer for each forget question, but all forget answers are the same.")
    return replace(example, answer=random.Random(f"{seed}/{example.id}").choice(others))
