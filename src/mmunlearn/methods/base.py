"""What an unlearning method is: named terms of an objective. The training loop does everything else."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mmunlearn.config_enums import Goal, Scope
from mmunlearn.data.batch import Batch, Pair
from mmunlearn.data.example import Example
from mmunlearn.errors import ConfigError
from mmunlearn.models.reference import Reference


class Side(StrEnum):
    """What a term is computed on."""

    forget = "forget"
    retain = "retain"
    pair = "pair"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a method computed before the first step."""

    log_likelihoods: Mapping[str, float] = field(default_factory=dict)
    """By example id, under the reference: the sum over the supervised tokens, nats. Stored with the run."""
    reference: Reference | None = None
    """The reference itself, for terms that need more of it than likelihoods."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of the objective."""

    name: str
    on: Side
    weight: float
    """Its sign is part of it: ascent on the forget set has weight -1."""
    loss: Callable[[nn.Module, Batch | Pair, Prepared], Tensor]
    """Unweighted; this micro-batch's share of the whole step, so that shares add up over micro-batches and ranks."""
    masked: bool = False
    """Its gradient passes the method's saliency mask."""

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

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """Compute what the terms need, once, before the optimizer exists.

        Args:
            model: the model about to be changed.
            reference: the model before unlearning, or the one that `trainer.reference` names.
            data: the training examples.
        """

    def terms(self) -> tuple[Term, ...]:
        """The summands, in the order in which they are computed."""


@runtime_checkable
class Relabels(Protocol):
    """A method that trains the forget questions on other answers."""

    def relabelled(self, data: TrainingData, seed: int) -> TrainingData:
        """The examples with the answers that are to be trained; a pure function of data and seed."""


@runtime_checkable
class NeedsWholeSteps(Protocol):
    """A method that may compare whole steps, so that a step must not be split."""

    @property
    def whole_steps(self) -> bool:
        """Whether it does, with its present settings."""


@runtime_checkable
class NeedsWholeBatches(Protocol):
    """A method with a loss that may depend on which examples share a batch, so that a micro-batch must not be divided."""

    @property
    def whole_batches(self) -> bool:
        """Whether it does, with its present settings."""


@runtime_checkable
class Masked(Protocol):
    """A method whose terms may be masked."""

    @property
    def mask(self) -> str:
        """Path of the saliency mask."""

    @property
    def scope(self) -> Scope:
        """What the mask acts on."""

    @property
    def clip_before_mask(self) -> bool:
        """Clip the norm of the unmasked gradient, as the published script does."""


def check_weights(method: object, *names: str) -> None:
    """Make sure that weights of terms are numbers from 0 on: a negative one would turn a method into its opposite.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(method, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"trainer.method.{name}={value}: must be a finite number, 0 or above.")


def divisible(method: Method) -> bool:
    """Whether a micro-batch may be divided: every loss is a sum over tokens or sequences of one side."""
    whole = isinstance(method, NeedsWholeBatches) and method.whole_batches
    return not whole and all(term.on is not Side.pair for term in method.terms())


def goal_of(method: Method) -> Goal:
    """What a method is made for: its class variable `goal`, else to erase."""
    return Goal(getattr(type(method), "goal", Goal.erase))
