"""Negative preference optimisation: lower the likelihood of the forget answers relative to a reference."""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mmunlearn.data.batch import Batch, Pair
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, check_weights
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.likelihood import answer_log_probs, sequence_sums
from mmunlearn.models.reference import Reference


class Unit(StrEnum):
    """Whose likelihood is compared with the reference's."""

    sequence = "sequence"
    """That of each answer: the sum over its tokens."""
    batch = "batch"
    """The mean over all tokens of a batch, as in the published multimodal scripts."""


@dataclass(frozen=True, kw_only=True)
class NPO:
    """NPO: (2 / beta) E log(1 + (p / p_ref)^beta) on forget, p the likelihood of a whole answer; optionally + retain NLL.

    Source: Zhang et al. 2024 (arXiv:2404.05868), eq. 3; with a retain term it is their NPO+RT. p_ref is the model before
    unlearning; its likelihoods are computed once and stored by example id. With beta -> 0 the gradient becomes that of
    ascent on the summed log-likelihood. Normalisation: the mean over the answers of the step; the retain term per
    supervised token.
    Deviation of the scripts of MLLMU-Bench and MMUnlearner (preset npo_official): they compare the mean loss of a whole
    batch (`unit=batch`) with that of the gold model, which is what unlearning is supposed to do without.
    """

    beta: float = 0.1
    """Inverse temperature: the smaller, the closer to gradient ascent."""
    forget_weight: float = 1.0
    """Multiplies the NPO term."""
    retain_weight: float = 0.0
    """Multiplies the negative log-likelihood of the retain answers; 0: retain is not used."""
    unit: Unit = Unit.sequence
    """sequence: as in the paper; batch: as in the published multimodal scripts (one rank, no accumulation)."""

    def __post_init__(self) -> None:
        """Check temperature and weights.

        Raises:
            ConfigError: beta is not positive and finite, or a weight is negative or not finite.
        """
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"trainer.method.beta={self.beta}: must be a finite number above 0 (0.1 in the paper).")
        check_weights(self, "forget_weight", "retain_weight")

    @property
    def whole_steps(self) -> bool:
        """With `unit=batch` a step must be one batch."""
        return self.unit == Unit.batch

    @property
    def whole_batches(self) -> bool:
        """With `unit=batch` a batch has one loss."""
        return self.unit == Unit.batch

    def prepare(self, model: nn.Module, reference: Reference, data: TrainingData) -> Prepared:
        """The likelihoods of the forget answers under the reference."""
        return Prepared(log_likelihoods=reference.log_likelihoods(data.forget))

    def terms(self) -> tuple[Term, ...]:
        """The preference against the forget answers, and the retain term if it has a weight."""
        against = partial(batch_npo if self.unit == Unit.batch else npo, beta=self.beta)
        forget = Term(name="npo", on=Side.forget, weight=self.forget_weight, loss=against)
        if not self.retain_weight:
            return (forget,)
        return forget, Term(name="retain", on=Side.retain, weight=self.retain_weight, loss=answer_nll)


def npo(model: nn.Module, batch: Batch | Pair, prepared: Prepared, *, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(-beta r), r = log p - log p_ref of each answer, per sequence of the step."""
    assert isinstance(batch, Batch)
    now = sequence_sums(answer_log_probs(model, batch), batch)
    ratio = now - _stored(batch, prepared).to(now)
    return -2 / beta * logsigmoid(-beta * ratio).sum() / batch.step_sequences


def batch_npo(model: nn.Module, batch: Batch | Pair, prepared: Prepared, *, beta: float) -> Tensor:
    """The same with one r for a whole batch: the difference of the mean losses per token.

    Raises:
        ConfigError: the step is split, which would change its meaning.
    """
    assert isinstance(batch, Batch)
    tokens = batch.num_tokens
    if tokens != batch.step_tokens:
        raise ConfigError(
            "trainer.method.unit=batch compares the mean of a whole batch, so a step must be one batch: set "
            "trainer.args.gradient_accumulation_steps=1 and use one process."
        )
    now = answer_log_probs(model, batch).sum() / tokens
    ratio = now - (_stored(batch, prepared).sum() / tokens).to(now)
    return -2 / beta * logsigmoid(-beta * ratio)


def _stored(batch: Batch, prepared: Prepared) -> Tensor:
    """[B], the reference's log-likelihoods."""
    return torch.tensor([prepared.log_likelihoods[name] for name in batch.ids], dtype=torch.float64)
