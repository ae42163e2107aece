"""From sums of gradients, or from the weights themselves, to masks. Pure functions on tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Weights looked at together while ranking: counting takes eight bytes for each."""
LOW_BITS = 16


def ratio_mask(difference: Tensor, used: Tensor, *, threshold: float, epsilon: float) -> Tensor:
    """The rule of MMUnlearner: F_f + epsilon >= threshold * (F_p + epsilon), and F_f > 0 if epsilon is 0.

    Huo et al. 2025 (arXiv 2502.11051, section 4.2, and its code, where epsilon is 1e-15). With epsilon = 0 a weight that no
    forget example uses is never selected; with their epsilon 0/0 counts as 1. Here the inequality is exact, there both sides
    are rounded to the dtype of the model, so that an epsilon can swallow them.

    Args:
        difference: F_f - threshold * F_p, float32, F the mean squared gradient on forget and on preserve.
        used: F_f > 0, bool.
        threshold: how many times F_p at least.
        epsilon: added to both.

    Returns:
        bool, of the same shape.
    """
    selected = difference >= (threshold - 1) * epsilon
    return selected if epsilon > 0 else selected & used


def zero_over_zero(difference: Tensor, used: Tensor) -> int:
    """How many weights have neither a forget nor a preserve gradient; arguments as for `ratio_mask`."""
    return int(((difference == 0) & ~used).sum())


@dataclass(frozen=True)
class Cutoff:
    """The value from which on the largest are taken."""

    value: float
    ties: int
    """Of the weights that equal it so many are taken, the first ones."""


def cutoff(read: Callable[[], Iterable[Tensor]], count: int) -> Cutoff:
    """Where to cut so that exactly `count` of all values lie above, ties counted in order.

    Ranks by the bits of the numbers, the upper half first, so that nothing is sorted and little memory is needed.

    Args:
        read: the tensors, float32, at least 0, in the same order and with the same values each of the two times.
        count: at least 1 and at most the number of values.
    """
    high, above = _find(read, count, lambda bits: bits >> LOW_BITS)
    in_bin = count - above
    low, above = _find(read, in_bin, lambda bits: (bits & ((1 << LOW_BITS) - 1))[bits >> LOW_BITS == high])
    bits = torch.tensor((high << LOW_BITS) + low, dtype=torch.int32)
    return Cutoff(float(bits.view(torch.float32)), in_bin - above)


def _find(read: Callable[[], Iterable[Tensor]], count: int, digits: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """The digit of the value with rank `count`, and how many values have a larger digit."""
    histogram = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
    for values in read():
        for chunk in torch.split(values.flatten(), CHUNK):
            # Floats that are not negative have the order of their bits.
            histogram += torch.bincount(digits(chunk.view(torch.int32)), minlength=len(histogram)).cpu()
    at_least = histogram.flip(0).cumsum(0).flip(0)
    digit = int((at_least >= count).nonzero()[-1])
    return digit, int(at_least[digit] - histogram[digit])


def top_mask(values: Tensor, cut: Cutoff) -> tuple[Tensor, Cutoff]:
    """The values above a cutoff, and as many that equal it as it still allows.

    Returns:
        The mask, and the cutoff for the next tensor.
    """
    equal = values == cut.value
    taken = equal & (equal.flatten().cumsum(0).view(values.shape) <= cut.ties)
    return (values > cut.value) | taken, Cutoff(cut.value, cut.ties - int(taken.sum()))


def largest(values: Tensor, count: int) -> Tensor:
    """The mask of the `count` largest values of one tensor, float32 and at least 0; the first ones among equals."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    return top_mask(values, cutoff(lambda: [values], count))[0]


def drawn(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """The mask of `count` weights of one tensor, drawn at random; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return largest(torch.rand(shape, generator=generator), count)
