"""What an unlearning method is: named terms of an objective. The training loop does everything else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from torch import Tensor, nn

from mmunlearn.data.batch import Batch, Pair
from mmunlearn.data.example import Example


class Side(StrEnum):
    """What a term is computed on."""

    forget = "forget"
    retain = "retain"
    pair = "pair"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a method computed before the first step (control vectors, say)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of the objective."""

    name: str
    on: Side
    weight: float
    """Its sign is part of it: ascent on the forget set has weight -1."""
    loss: Callable[[nn.Module, Batch | Pair, Prepared], Tensor]
    """Unweighted; this micro-batch's share of the whole step, so that shares add up over micro-batches and ranks."""

    def applies_to(self, pair: Pair) -> Batch | Pair | None:
        """What the term is computed on in this micro-batch; None if the side is absent."""
        if self.on is Side.pair:
            return pair if pair.forget is not None and pair.retain is not None else None
        return pair.forget if self.on is Side.forget else pair.retain


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The examples that a method may look at while it prepares."""

    forget: Sequence[Example] = ()
    retain: Sequence[Example] = ()


class Method(Protocol):
    """An unlearning objective: a frozen dataclass that holds hyper-parameters only."""

    def prepare(self, model: nn.Module, reference: nn.Module, data: TrainingData) -> Prepared:
        """Compute what the terms need, once, before the optimizer exists.

        Args:
            model: the model about to be changed.
            reference: the model before unlearning; must not be changed.
            data: the training examples.
        """

    def terms(self) -> tuple[Term, ...]:
        """The summands, in the order in which they are computed."""
