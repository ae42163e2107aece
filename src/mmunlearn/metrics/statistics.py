"""Means with intervals that respect persons: questions about one person are not independent of each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEW_PERSONS = 20
"""Below this many persons the interval is t-based; from it on the persons are resampled."""
DRAWS = 2000
"""Number of bootstrap samples."""

_EQUAL = 1e-12
"""Floating-point numbers that are no closer than this are different."""

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a metric over questions, with an interval for the mean over persons like these."""

    value: float
    """NaN if no question could be scored."""
    low: float
    """Lower end of the interval; NaN where none can be given."""
    high: float
    """Upper end of the interval; NaN where none can be given."""
    count: int
    """Questions that went into the mean."""
    unscored: int
    """Questions left out because their metric was NaN."""

    def to_json(self) -> dict[str, float | int | None]:
        """A dictionary that `json.dumps` accepts; NaN becomes None."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, float | int | None]) -> "Estimate":
        """The inverse of `to_json`."""

        def number(name: str) -> float:
            value = record[name]
            return math.nan if value is None else float(value)

        return cls(
            value=number("value"),
            low=number("low"),
            high=number("high"),
            count=int(record["count"] or 0),
            unscored=int(record["unscored"] or 0),
        )


def clustered_interval(
    values: Sequence[float],
    subjects: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean over questions and an interval that is clustered by person.

    Below 20 persons: the cluster-robust standard error of the mean (CR1: residuals summed within each person, times
    G/(G-1)) and Student's t with G-1 degrees of freedom, G being the number of persons. From 20 on: the percentile
    bootstrap over persons, 2000 draws. Both keep every person's questions together and weight persons by their number
    of scored questions, as the mean does.

    Where the spread says nothing, the interval follows these rules instead:

    - no question could be scored: value and bounds are NaN;
    - one person: the bounds are NaN, since nothing is known about how persons differ;
    - every value the same, v (all right, all wrong, or anything between): no person of the sample is unlike the others, which
      leaves a share p of up to 1 - (alpha / 2)^(1 / persons) of all persons who may be (Clopper-Pearson for none of so many),
      each down to the smallest possible value a or up to the largest b. The interval is v - (v - a) p to v + (b - v) p, e.g.
      [0, 0.26] when 12 persons have nothing right. Where the range has no natural end (`bounds` infinite, as for ratios)
      equal values say nothing of it, and the bounds are NaN;
    - every person with the same mean, but not every question: the standard error between questions takes the place of
      the one between persons, which is 0 by accident.

    Args:
        values: one number a question; NaN means that it could not be scored: counted, and left out of everything else.
        subjects: whom each question is about. A question with an empty subject counts as a person of its own.
        level: two-sided coverage, between 0 and 1. The lower end at level 0.9 is the one-sided 95 % bound.
        seed: seed of the bootstrap; the same seed gives the same interval.
        bounds: smallest and largest possible value, to which the interval is cut; either may be infinite. None: 0 and 1 if
            all values lie there, else no bounds.

    Raises:
        ValueError: the lengths differ, or a value lies outside `bounds`.
    """
    if len(values) != len(subjects):
        raise ValueError(f"{len(values)} values but {len(subjects)} subjects: each question needs its person.")
    scores = np.asarray(values, dtype=np.float64)
    scored = ~np.isnan(scores)
    unscored = int((~scored).sum())
    names = [subject or f"\0question {index}" for index, subject in enumerate(subjects)]
    persons = np.unique([name for name, keep in zip(names, scored, strict=True) if keep], return_inverse=True)[1]
    scores = scores[scored]
    if not len(scores):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0, unscored=unscored)
    low, high = _interval(scores, persons, _bounds(scores, bounds), level, seed)
    return Estimate(value=_mean(scores), low=low, high=high, count=len(scores), unscored=unscored)


def _interval(
    scores: _Array, persons: NDArray[np.intp], bounds: tuple[float, float], level: float, seed: int
) -> tuple[float, float]:
    """The rules of `clustered_interval`, cut to the bounds; `persons` numbers each score's person from 0."""
    sums = np.bincount(persons, scores).astype(np.float64)
    counts = np.bincount(persons).astype(np.float64)
    mean, (lowest, highest) = _mean(scores), bounds
    if len(sums) == 1:
        return math.nan, math.nan
    if scores.max() - scores.min() <= _EQUAL:
        low, high = _interval_of_equals(mean, len(sums), lowest, highest, 1 - level)
    elif np.allclose(sums / counts, mean, rtol=0, atol=1e-12):
        low, high = _t_interval(mean, float(scores.std(ddof=1)) / math.sqrt(len(scores)), len(sums), level)
    elif len(sums) < FEW_PERSONS:
        low, high = _t_interval(mean, _clustered_error(sums, counts), len(sums), level)
    else:
        low, high = _bootstrap_interval(sums, counts, level, seed)
    return (low, high) if math.isnan(low) else (max(low, lowest), min(high, highest))


def _mean(scores: _Array) -> float:
    """Rounding may push the mean of equal values outside their range, hence the clip."""
    return float(np.clip(scores.mean(), scores.min(), scores.max()))


def paired_difference(
    minuend: Mapping[str, float],
    subtrahend: Mapping[str, float],
    subjects: Mapping[str, str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean difference of two models on the questions that both answered, clustered by person.

    Pairing removes what makes questions easy or hard for both. `unscored` counts the questions of `minuend` for which
    either side has no number. For metrics between 0 and 1; see `clustered_interval`.

    Where every question has the same difference, above all 0, the rule for equal values of `clustered_interval` holds, with a
    range of -1 to 1: two models that agree on two people are not known to be equal.

    Args:
        minuend: value by question id.
        subtrahend: value by question id.
        subjects: person by question id.
        level: two-sided coverage.
        seed: seed of the bootstrap.
    """
    differences = [value - subtrahend.get(id_, math.nan) for id_, value in minuend.items()]
    people = [subjects[id_] for id_ in minuend]
    return clustered_interval(differences, people, level=level, seed=seed, bounds=(-1.0, 1.0))


def _bounds(scores: _Array, bounds: tuple[float, float] | None) -> tuple[float, float]:
    if bounds is None:
        return (0.0, 1.0) if scores.min() >= 0 and scores.max() <= 1 else (-math.inf, math.inf)
    if scores.min() < bounds[0] or scores.max() > bounds[1]:
        raise ValueError(f"A value lies outside {bounds}: smallest {scores.min()}, largest {scores.max()}.")
    return bounds


def _interval_of_equals(value: float, persons: int, lowest: float, highest: float, alpha: float) -> tuple[float, float]:
    """All values are `value`: what persons unlike these would do to the mean, as many as may have been missed."""
    if math.isinf(lowest) or math.isinf(highest):
        return math.nan, math.nan
    share = 1 - (alpha / 2) ** (1 / persons)  # Clopper-Pearson for 0 of `persons`
    return value - (value - lowest) * share, value + (highest - value) * share


def _clustered_error(sums: _Array, counts: _Array) -> float:
    """Standard error of the mean over questions, from the residuals summed within each person."""
    groups, total = len(sums), float(counts.sum())
    residuals = sums - sums.sum() / total * counts
    return math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / total


def _t_interval(mean: float, error: float, persons: int, level: float) -> tuple[float, float]:
    margin = float(stats.t.ppf((1 + level) / 2, persons - 1)) * error
    return mean - margin, mean + margin


def _bootstrap_interval(sums: _Array, counts: _Array, level: float, seed: int) -> tuple[float, float]:
    (weights,) = resampled(seed, len(sums))
    low, high = np.quantile((weights @ sums) / (weights @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)
def resampled(seed: int, *groups: int) -> tuple[_Array, ...]:
    """How often each bootstrap draw has each person of a group, for each group [DRAWS, persons], drawn one behind the other.

    Multinomial weights are the resampled persons: DRAWS x persons numbers, not DRAWS x questions. Kept, since every metric
    of a task asks for the same.
    """
    generator = np.random.default_rng(seed)
    drawn = (generator.multinomial(persons, np.full(persons, 1 / persons), size=DRAWS) for persons in groups)
    found = tuple(weights.astype(np.float64) for weights in drawn)
    for weights in found:
        weights.setflags(write=False)  # others will get the same
    return found
