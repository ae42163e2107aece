"""The likelihood of an answer. One place owns which logits are computed, the shift by one and the log-softmax.

Legend: B sequences, T tokens, N supervised tokens of the batch (row by row, left to right), V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmunlearn.data.batch import IGNORE, Batch


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits at the positions that predict a supervised token.

    The language head runs on these positions only: with a vocabulary of 32,000 to 150,000 and short answers that is most
    of the activation memory of a step.

    Returns:
        [N, V], float32.
    """
    if batch.packing is not None:
        packed: Tensor = model(**batch.inputs, logits_to_keep=batch.packing.wanted, use_cache=False).logits
        return packed.reshape(-1, packed.shape[-1])[batch.packing.lines].float()
    predicts = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicts[:, :-1] = batch.labels[:, 1:] != IGNORE  # the logits at t - 1 predict token t
    logits: Tensor = model(**batch.inputs, logits_to_keep=predicts, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1]).float()


def all_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits at every position, padding included; only for what the published scripts compute there.

    Returns:
        [B, T, V], float32.

    Raises:
        ValueError: the batch is packed, so that its sequences have no positions of their own.
    """
    if batch.packing is not None:
        raise ValueError("logits of all positions are there for batches of one row a sequence only")
    logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits.float()


def answer_tokens(batch: Batch) -> Tensor:
    """[N], the supervised token ids, in the order of `answer_logits`."""
    shifted = batch.labels[:, 1:]
    return shifted[shifted != IGNORE]


def sequence_counts(batch: Batch) -> Tensor:
    """[B], the number of supervised tokens of each sequence."""
    return (batch.labels[:, 1:] != IGNORE).sum(dim=1)


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """[N], the log-probability of each supervised token, nats, float32."""
    return -nn.functional.cross_entropy(answer_logits(model, batch), answer_tokens(batch), reduction="none")


def sequence_sums(values: Tensor, batch: Batch) -> Tensor:
    """Add up per-token values over each sequence.

    Args:
        values: [N], in the order of `answer_tokens`.
        batch: where the tokens come from.

    Returns:
        [B]
    """
    counts = sequence_counts(batch)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts.to(values.device))
    return torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add(0, rows, values)


class TokenStatistics(NamedTuple):
    """What the stored predictions keep of each supervised token; every field is [N], float32 but for `hits`."""

    log_probs: Tensor
    hits: Tensor
    """bool: the token was the arg-max."""
    means: Tensor
    """Mean of log p over the vocabulary, weighted by p."""
    deviations: Tensor
    """Standard deviation of log p, weighted by p."""


def answer_statistics(model: nn.Module, batch: Batch) -> TokenStatistics:
    """Log-probability, arg-max hit and moments over the vocabulary of each supervised token; see `token_statistics`."""
    with torch.no_grad():
        return token_statistics(answer_logits(model, batch), answer_tokens(batch))


@torch.no_grad()
def token_statistics(logits: Tensor, tokens: Tensor) -> TokenStatistics:
    """Log-probability, arg-max hit and moments over the vocabulary.

    The moments are those of Min-K++ (Zhang et al. 2024, arXiv:2404.02936, eq. 3): mean and standard deviation of
    log p(z | prefix) over z drawn from the model itself.

    Args:
        logits: [N, V], float32; line n predicts token n.
        tokens: [N]
    """
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    means = (probs * log_probs).sum(dim=-1)
    # The centred form: E[x^2] - E[x]^2 loses three digits of a small deviation, by which Min-K++ divides.
    variances = (probs * (log_probs - means[:, None]).square()).sum(dim=-1)
    return TokenStatistics(
        log_probs=log_probs.gather(1, tokens[:, None])[:, 0],
        hits=log_probs.argmax(dim=-1) == tokens,
        means=means,
        deviations=variances.sqrt(),
    )
