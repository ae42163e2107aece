"""The matrix of methods: what the loop has to compute for each, written with transformers' own loss and full logits.

A new method joins by one row; every test of `test_loop_invariants.py` then holds it to account.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_cases import batch_of

from mmunlearn.config_enums import Schedule, Scope
from mmunlearn.data.batch import IGNORE
from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.methods.grad_diff import GradDiff, RetainLoss
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.npo import NPO
from mmunlearn.methods.preference import PO
from mmunlearn.methods.salun import SalUn


@dataclass(frozen=True)
class Case:
    """What an objective is a function of."""

    model: torch.nn.Module
    reference: torch.nn.Module
    processor: Any
    data: TrainingData
    """With the answers that are trained."""

    def nll(self, side):
        """Mean over all answer tokens, one example at a time."""
        sums, tokens = 0, 0
        for batch in self._batches(side):
            sums = sums + negative_log_likelihood(self.model, batch)
            tokens += count(batch)
        return sums / tokens

    def kl(self, side):
        """Sum over tokens of sum_v p0 (log p0 - log p), p0 of the reference, per token."""
        sums, tokens = 0, 0
        for batch in self._batches(side):
            with torch.no_grad():
                before = predictions(self.reference, batch)
            sums = sums + (before.exp() * (before - predictions(self.model, batch))).sum()
            tokens += count(batch)
        return sums / tokens

    def npo(self, beta):
        """Mean over answers of (2 / beta) log(1 + (p / p0)^beta)."""
        values = []
        for batch in self._batches("forget"):
            with torch.no_grad():
                before = -negative_log_likelihood(self.reference, batch)
            ratio = -negative_log_likelihood(self.model, batch) - before
            values.append(2 / beta * torch.log1p((beta * ratio).exp()))
        return sum(values) / len(values)

    def _batches(self, side):
        return [batch_of(self.processor, example) for example in getattr(self.data, side)]


def count(batch):
    return int((batch.labels != IGNORE).sum())


def negative_log_likelihood(model, batch):
    return model(**batch.inputs, labels=batch.labels).loss * count(batch)


def predictions(model, batch):
    """log p over the vocabulary at each position that predicts a supervised token, float64."""
    (row,) = model(**batch.inputs).logits.double()
    return torch.log_softmax(row[(batch.labels[0, 1:] != IGNORE).nonzero()[:, 0]], dim=-1)


@dataclass(frozen=True)
class Summand:
    """Part of an objective."""

    weight: float
    value: torch.Tensor
    masked: bool = False


@dataclass(frozen=True)
class Row:
    """A method, and what each of its first steps minimises."""

    name: str
    method: Any
    steps: tuple[Callable[[Case], tuple[Summand, ...]], ...]
    schedule: Schedule = Schedule.joint
    lora: bool = True
    """Whether it can be used with adapters."""
    strict: bool = False
    """Nothing outside the mask may move."""

    def __str__(self) -> str:
        return self.name

    def data(self, data):
        """The examples that the row is trained on."""
        return TrainingData(retain=data.forget) if isinstance(self.method, FineTune) else data


def joint(name, method, *summands, **more):
    return Row(name, method, (lambda case: tuple(make(case) for make in summands),), **more)


def alternating(name, method, forget, retain, **more):
    """A forget step and then a retain step, both sides being one batch."""
    steps = (lambda case: (forget(case),), lambda case: (retain(case),))
    return Row(name, method, steps, schedule=Schedule.alternating, **more)


def nll(weight, side, *, masked=False):
    return lambda case: Summand(weight, case.nll(side), masked)


def kl(weight):
    return lambda case: Summand(weight, case.kl("retain"))


def npo(weight, beta):
    return lambda case: Summand(weight, case.npo(beta))


UP, DOWN = nll(-0.7, "forget"), nll(1.3, "retain")
W = {"forget_weight": 0.7, "retain_weight": 1.3}
FINE_TUNE = joint("FineTune", FineTune(), nll(1, "retain"))
GRAD_ASCENT = joint("GradAscent", GradAscent(forget_weight=0.7), UP)
GRAD_DIFF = joint("GradDiff", GradDiff(**W), UP, DOWN)
ROWS = (
    FINE_TUNE,
    GRAD_ASCENT,
    GRAD_DIFF,
    alternating("GradDiff-alternating", GradDiff(**W), UP, DOWN),
    joint("GradDiff-kl", GradDiff(**W, retain_loss=RetainLoss.kl), UP, kl(1.3)),
    joint("KLMin", KLMin(**W), UP, kl(1.3)),
    joint("NPO", NPO(beta=0.3, forget_weight=0.7), npo(0.7, 0.3)),
    joint("NPO-retain", NPO(beta=0.3, **W), npo(0.7, 0.3), DOWN),
    alternating("NPO-alternating", NPO(beta=0.3, **W), npo(0.7, 0.3), DOWN),
    joint("PO", PO(**W), nll(0.7, "forget"), DOWN),
    joint("MMUnlearner", MMUnlearner(**W), nll(-0.7, "forget", masked=True), DOWN, lora=False),
    joint(
        "MMUnlearner-strict",
        MMUnlearner(**W, scope=Scope.update),
        nll(-0.7, "forget", masked=True),
        nll(1.3, "retain", masked=True),
        strict=True,
    ),
    alternating(
        "MMUnlearner-official",
        MMUnlearner(**W, clip_before_mask=True),
        nll(-0.7, "forget", masked=True),
        DOWN,
        lora=False,
    ),
    joint("SalUn", SalUn(**W), nll(0.7, "forget", masked=True), nll(1.3, "retain", masked=True), strict=True),
)


QUICK = {"GradDiff", "KLMin", "NPO-retain", "PO", "MMUnlearner-official"}
"""One of each kind of loss, mask and schedule: every run of the tests goes through these, thorough runs through all."""
EACH_ROW = [pytest.param(row, marks=() if row.name in QUICK else pytest.mark.thorough) for row in ROWS]


def expected_gradients(row: Row, case: Case, mask) -> dict[str, torch.Tensor]:
    """What the optimizer should get in each of the row's steps, as `{step}/{parameter}`; `mask` by parameter name."""
    named = {name: parameter for name, parameter in case.model.named_parameters() if parameter.requires_grad}
    found = {}
    for number, step in enumerate(row.steps):
        total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for summand in step(case):
            gradients = torch.autograd.grad(summand.value, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    total[name] += summand.weight * gradient * (mask.tensor(name) if summand.masked else 1)
        found |= {f"{number}/{name}": gradient for name, gradient in total.items()}
    return found


def relabelled(row: Row, data: TrainingData) -> TrainingData:
    """With the answers that the method trains, which tests of the methods look at."""
    return row.method.relabelled(data, 0) if hasattr(row.method, "relabelled") else data
