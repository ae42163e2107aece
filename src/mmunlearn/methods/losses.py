"""Losses that methods share. Each is a micro-batch's share of the whole optimizer step.

Legend: B sequences, N supervised tokens.
"""

from torch import Tensor, nn

from mmunlearn.data.batch import Batch, Pair
from mmunlearn.methods.base import Prepared
from mmunlearn.models.likelihood import answer_log_probs


def answer_nll(model: nn.Module, batch: Batch | Pair, prepared: Prepared) -> Tensor:
    """Negative log-likelihood of the answers, per supervised token of the step, nats.

    Normalisation: the sum over this micro-batch's supervised tokens divided by the number of them in the whole step, so
    that a step's gradient does not depend on how it is split. A mean of micro-batch means, as the published scripts take,
    would weigh a one-word answer like a paragraph.
    """
    assert isinstance(batch, Batch)
    return -answer_log_probs(model, batch).sum() / batch.step_tokens
