"""Membership inference: can one tell from a model's probabilities that it was trained on a question and its answer?

Members are questions about people whom the first (vanilla) model was trained on and who are to be forgotten;
non-members are questions of the same kind about people whom no model was trained on (`holdout`). An attack gives every
question a score, higher for members. The scores mean nothing by themselves (they are in nats or in deviations, and
depend on the question), so they are no metric of a task: what counts is how well they separate the two groups (AUC),
compared with a gold model, which was trained on neither. Without non-members everything here is NaN, never 0.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.statistics import resampled

LOWEST_SHARE = 0.2
"""Of the tokens, the lowest, that Min-K% and Min-K++ average; 20 % in the papers."""
SMALLEST_DEVIATION = 1e-3
"""Of log p under the model itself, in nats; Min-K++ divides by it (variance 1e-6 in open-unlearning)."""
SMALLEST_REST = 0.1
"""Below this 1 - AUC of gold, `privleak` is not defined."""

_Array = NDArray[np.float64]
Answers = Sequence[tuple[Prediction, Example]]


def loss_score(prediction: Prediction) -> float:
    """Mean log p of the answer's tokens, in nats: minus the loss. From -inf to 0, higher: more likely a member.

    Source: the LOSS attack of Yeom et al. (2018, arXiv:1709.01604). Normalised by the number of tokens.
    """
    return _mean(prediction.answer_log_probs)


def zlib_score(prediction: Prediction, example: Example) -> float:
    """Total log p / number of bytes of the zlib-compressed answer (UTF-8). From -inf to 0, higher: more likely a member.

    Divides out how surprising the text is in itself. Source: Carlini et al. (2021, arXiv:2012.07805).
    Deviation: they and open-unlearning divide the mean log p; as the compressed length already grows with the text, that
    makes members of all long answers. Here the sum is divided, nats a byte.
    """
    log_probs = prediction.answer_log_probs
    return sum(log_probs) / len(zlib.compress(example.answer.encode())) if log_probs else math.nan


def min_k_score(prediction: Prediction, *, share: float = LOWEST_SHARE) -> float:
    """Min-K%: mean of the lowest `share` of the tokens' log p, at least one. From -inf to 0, higher: more likely a member.

    Source: Shi et al. (2024, arXiv:2310.16789). In nats; normalised by the number of tokens averaged.
    """
    return _mean_of_lowest(prediction.answer_log_probs, share)


def min_k_plus_plus_score(prediction: Prediction, *, share: float = LOWEST_SHARE) -> float:
    """Min-K++: mean of the lowest `share` of (log p - mu) / sigma, at least one. Higher: more likely a member.

    mu and sigma are mean and standard deviation of log p over the vocabulary under the model itself. No bounds.
    Source: Zhang et al. (2024, arXiv:2404.02936).
    Deviation: sigma is at least 1e-3 nats, as in open-unlearning: a model that is certain has sigma 0. Then a token that
    it expected scores about 0 and any other a large negative number. NaN where the moments were not recorded.
    """
    moments = prediction.vocabulary_means, prediction.vocabulary_deviations
    if any(len(numbers) != len(prediction.answer_log_probs) for numbers in moments):
        return math.nan
    scores = [
        (log_prob - mean) / (deviation if math.isnan(deviation) else max(deviation, SMALLEST_DEVIATION))
        for log_prob, mean, deviation in zip(prediction.answer_log_probs, *moments, strict=True)
    ]
    return _mean_of_lowest(scores, share)


def reference_score(prediction: Prediction, other: Prediction) -> float:
    """Mean log p of the model minus that of a reference model, in nats. No bounds, higher: more likely a member.

    Source: the reference attack of Carlini et al. (2021) and of open-unlearning, whose reference is the gold model.

    Args:
        prediction: of the attacked model.
        other: of a model that saw neither group, on the same question (base, or gold).

    Raises:
        ValueError: the predictions are about different questions.
    """
    if prediction.id != other.id:
        raise ValueError(f"The question {prediction.id} cannot be compared with the question {other.id}.")
    return loss_score(prediction) - loss_score(other)


def auc(members: Sequence[float], non_members: Sequence[float]) -> float:
    """Probability that a member scores higher than a non-member, ties counted half: the area under the ROC curve.

    Range 0 to 1; 0.5: the attack is blind. The ideal is gold's number, which need not be 0.5. Equals U / (n m) of Mann
    and Whitney. Scores that are NaN are left out; NaN where a group has none left.
    """
    inside, outside = _scored(members), np.sort(_scored(non_members))
    if not len(inside) or not len(outside):
        return math.nan
    return float(_wins(inside, outside).sum() / (len(inside) * len(outside)))


def tpr_at_fpr(members: Sequence[float], non_members: Sequence[float], fpr: float = 0.01) -> float:
    """Largest share of members that a threshold finds while at most `fpr` of the non-members are called members.

    Range 0 to 1, higher: more given away; the ideal is gold's number, the blind attack's is `fpr`. No interpolation
    between thresholds, and a score that ties with the threshold is not called a member: so with fewer than 1 / fpr
    non-members none may be called one, and the result is a lower bound.
    Source: Carlini et al. (2022, arXiv:2112.03570). NaN as in `auc`.
    """
    inside, outside = _scored(members), np.sort(_scored(non_members))[::-1]
    if not len(inside) or not len(outside):
        return math.nan
    allowed = math.floor(fpr * len(outside) + 1e-9)  # 0.29 * 100 is 28.999…
    return 1.0 if allowed >= len(outside) else float((inside > outside[allowed]).mean())


def auc_interval(
    members: Sequence[float],
    non_members: Sequence[float],
    member_subjects: Sequence[str],
    non_member_subjects: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of `auc` for persons like these: percentile bootstrap, persons resampled in both groups, 2000 draws.

    With few persons it is too narrow, as every bootstrap. If the groups are separated without exception (AUC 0 or 1) no
    draw differs; then the bound is the exact binomial one with as many independent pairs as the smaller group has
    persons, since the AUC of a pair of persons is at most 1. NaN with fewer than two persons in a group.

    Args:
        members: scores; NaN ones are left out.
        non_members: scores.
        member_subjects: whom each question is about; an empty subject counts as a person of its own.
        non_member_subjects: likewise.
        level: two-sided coverage.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: scores and subjects differ in number.
    """
    inside, persons = _by_person(members, member_subjects)
    outside, others = _by_person(non_members, non_member_subjects)
    groups = len(np.unique(persons)), len(np.unique(others))
    if min(groups) < 2:
        return math.nan, math.nan
    wins = np.stack(
        [np.bincount(persons, _wins(inside, np.sort(outside[others == other]))) for other in range(groups[1])], axis=1
    )
    sizes = np.bincount(persons).astype(np.float64), np.bincount(others).astype(np.float64)
    value = float(wins.sum() / (sizes[0].sum() * sizes[1].sum()))
    if value in (0.0, 1.0):
        reach = 1 - ((1 - level) / 2) ** (1 / min(groups))  # Clopper-Pearson for 0 of as many
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    drawn = resampled(seed, *groups)
    values = ((drawn[0] @ wins) * drawn[1]).sum(axis=1) / ((drawn[0] @ sizes[0]) * (drawn[1] @ sizes[1]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def distance_to_gold(auc_model: float, auc_gold: float) -> float:
    """|AUC of the model - AUC of gold|. Range 0 to 1, lower is better; NaN without either.

    Deviation from scores like 1 - 2|AUC - 0.5|: a gold model's AUC need not be 0.5 (the two groups of people differ by
    more than membership), and a model that unlearned perfectly must not be punished for gold's number.
    """
    return abs(auc_model - auc_gold)


def privleak(auc_model: float, auc_gold: float) -> float:
    """100 ((1 - AUC) - (1 - AUC_gold)) / (1 - AUC_gold): relative to gold, how much better non-members stand out.

    From -100; 0 is ideal. Negative: traces are left; positive: over-unlearned, so that forgotten people stand out.
    Source: MUSE (Shi et al. 2024, arXiv:2407.06460), whose AUC counts non-members as positive: 1 - AUC here.
    Deviation: NaN, not a huge number, where 1 - AUC_gold is below 0.1 (open-unlearning adds 1e-10 and reported 5215). A
    gold model that separates the groups so well shows that they differ by more than membership; `distance_to_gold` is
    defined then too. So the value never exceeds 900; with a gold near 0.5 it lies between -100 and 100.
    """
    rest = 1 - auc_gold
    if math.isnan(auc_model) or not rest >= SMALLEST_REST:
        return math.nan
    return 100 * (auc_gold - auc_model) / rest


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What one model said about the people whom vanilla was trained on, and about people whom nobody was trained on."""

    members: Answers
    non_members: Answers


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack on one model; NaN where something is missing."""

    attack: str
    """loss, zlib, min_k, min_k_plus_plus or reference."""
    auc: float
    low: float
    """Lower end of the interval of `auc`, clustered by person."""
    high: float
    tpr: float
    """At the false positive rate that was asked for."""
    auc_gold: float
    distance: float
    """To gold; 0 is ideal."""
    privleak: float
    """Percent."""
    members: int
    """Scored questions."""
    non_members: int
    unscored: int
    """Questions of both groups whose score is NaN."""


def membership_table(
    model: Sides,
    *,
    golds: Sequence[Sides] = (),
    reference: Sides | None = None,
    fpr: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[AttackRow, ...]:
    """Every attack on a model, and on gold for comparison; all from stored predictions.

    Args:
        model: the attacked model, unlearned or vanilla.
        golds: the same questions answered by models that were trained on neither group (seeds); the mean of their AUCs is
            gold's. None of them: distances are NaN.
        reference: the same questions answered by the reference model of the reference attack; None: without that attack.
            It should not be gold, whose own attack would then be blind by construction.
        fpr: false positive rate of `tpr`.
        level: two-sided coverage of the interval.
        seed: of the interval.
    """
    rows = []
    for attack, score in _attacks(reference).items():
        inside, outside = _scores(score, model.members), _scores(score, model.non_members)
        low, high = auc_interval(
            inside, outside, _subjects(model.members), _subjects(model.non_members), level=level, seed=seed
        )
        value = auc(inside, outside)
        auc_gold = _mean([auc(_scores(score, gold.members), _scores(score, gold.non_members)) for gold in golds])
        counts = len(_scored(inside)), len(_scored(outside))
        rows.append(
            AttackRow(
                attack=attack,
                auc=value,
                low=low,
                high=high,
                tpr=tpr_at_fpr(inside, outside, fpr),
                auc_gold=auc_gold,
                distance=distance_to_gold(value, auc_gold),
                privleak=privleak(value, auc_gold),
                members=counts[0],
                non_members=counts[1],
                unscored=len(inside) + len(outside) - sum(counts),
            )
        )
    return tuple(rows)


def _attacks(reference: Sides | None) -> dict[str, Callable[[Prediction, Example], float]]:
    attacks: dict[str, Callable[[Prediction, Example], float]] = {
        "loss": lambda prediction, _: loss_score(prediction),
        "zlib": zlib_score,
        "min_k": lambda prediction, _: min_k_score(prediction),
        "min_k_plus_plus": lambda prediction, _: min_k_plus_plus_score(prediction),
    }
    if reference is None:
        return attacks
    others = {other.id: other for other, _ in (*reference.members, *reference.non_members)}

    def against_reference(prediction: Prediction, _: Example) -> float:
        other = others.get(prediction.id)
        return math.nan if other is None else reference_score(prediction, other)

    return attacks | {"reference": against_reference}


def _scores(score: Callable[[Prediction, Example], float], answers: Answers) -> list[float]:
    return [score(prediction, example) for prediction, example in answers]


def _subjects(answers: Answers) -> list[str]:
    return [example.subject for _, example in answers]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def _mean_of_lowest(numbers: Sequence[float], share: float) -> float:
    """NaN if there is none or one of them is NaN, which has no place in an order."""
    if any(map(math.isnan, numbers)):
        return math.nan
    return _mean(sorted(numbers)[: max(1, math.floor(share * len(numbers) + 1e-9))])


def _scored(scores: Sequence[float]) -> _Array:
    values = np.asarray(scores, dtype=np.float64)
    return values[~np.isnan(values)]


def _wins(inside: _Array, outside: _Array) -> _Array:
    """For each member, how many of the sorted non-members it beats, ties counted half."""
    return (np.searchsorted(outside, inside, side="left") + np.searchsorted(outside, inside, side="right")) / 2.0


def _by_person(scores: Sequence[float], subjects: Sequence[str]) -> tuple[_Array, NDArray[np.intp]]:
    """The scored ones, and a number from 0 for the person of each."""
    if len(scores) != len(subjects):
        raise ValueError(f"{len(scores)} scores but {len(subjects)} subjects: each question needs its person.")
    names = [subject or f"\0question {index}" for index, subject in enumerate(subjects)]
    kept = [name for name, score in zip(names, scores, strict=True) if not math.isnan(score)]
    return _scored(scores), np.unique(np.asarray(kept, dtype=object), return_inverse=True)[1]
