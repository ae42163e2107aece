"""Losses that methods share. Each is a micro-batch's share of the whole optimizer step.

Legend: B sequences, T tokens, N supervised tokens, V vocabulary.
"""

from torch import Tensor, nn
from torch.nn.functional import kl_div

from mmunlearn.data.batch import Batch, Pair
from mmunlearn.methods.base import Prepared
from mmunlearn.models.likelihood import all_logits, answer_log_probs, answer_logits


def answer_nll(model: nn.Module, batch: Batch | Pair, prepared: Prepared) -> Tensor:
    """Negative log-likelihood of the answers, per supervised token of the step, nats.

    Normalisation: the sum over this micro-batch's supervised tokens divided by the number of them in the whole step, so
    that a step's gradient does not depend on how it is split. A mean of micro-batch means, as the published scripts take,
    would weigh a one-word answer like a paragraph.
    """
    assert isinstance(batch, Batch)
    return -answer_log_probs(model, batch).sum() / batch.step_tokens


def answer_kl(model: nn.Module, batch: Batch | Pair, prepared: Prepared) -> Tensor:
    """KL(reference || model) of the next-token distributions at the supervised tokens, per supervised token, nats.

    Normalisation: as `answer_nll`. The sum over the vocabulary is exact, [N, V] in float32.
    """
    assert isinstance(batch, Batch)
    assert prepared.reference is not None
    before = prepared.reference.answer_logits(batch).log_softmax(dim=-1)
    now = answer_logits(model, batch).log_softmax(dim=-1)
    return kl_div(now, before, reduction="sum", log_target=True) / batch.step_tokens


def everywhere_kl(model: nn.Module, batch: Batch | Pair, prepared: Prepared) -> Tensor:
    """KL(reference || model) summed over all positions (question, image and padding tokens too), per sequence, nats.

    What the KL_Min scripts of MLLMU-Bench and MMUnlearner compute with `batchmean` on [B, T, V]: it outweighs a loss per
    token by about T, and depends on how much a batch is padded.
    """
    assert isinstance(batch, Batch)
    assert prepared.reference is not None
    before = prepared.reference.all_logits(batch).log_softmax(dim=-1)
    now = all_logits(model, batch).log_softmax(dim=-1)
    return kl_div(now, before, reduction="sum", log_target=True) / batch.step_sequences
