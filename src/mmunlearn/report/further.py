"""All numbers of a report that need more than one question set or more than one model, put together."""

from dataclasses import dataclass
from typing import Any

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.metrics.card import Card
from mmunlearn.metrics.cards import CARDS
from mmunlearn.report.answers import expected_answers, judged
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.compared import (
    ALL_TASKS,
    Differences,
    ForgetQuality,
    Number,
    differences,
    exactly,
    forget_qualities,
    number_rows,
)
from mmunlearn.report.condition import Replies, Useful, replies, usefulness
from mmunlearn.report.crossmodal import CrossModal, cross_modal_agreement
from mmunlearn.report.inference import Inference, inference
from mmunlearn.report.probes import probe_rows


@dataclass(frozen=True, kw_only=True)
class Further:
    """What the section on comparisons shows."""

    collected: Collected
    """The single models: each seed has numbers of its own."""
    differences: Differences
    quality: ForgetQuality
    inference: Inference
    cross_modal: CrossModal
    useful: tuple[Useful, ...]
    replies: tuple[Replies, ...]
    judged: tuple[Number, ...]
    judge_notes: tuple[str, ...]

    def utility_of(self, model: Evaluation) -> Useful | None:
        """Of one model."""
        return next((useful for useful in self.useful if useful.evaluation is model), None)

    def replies_of(self, model: Evaluation) -> tuple[Replies, ...]:
        """Of one model, task by task."""
        return tuple(one for one in self.replies if one.evaluation is model)

    def numbers(self) -> list[Number]:
        """All of them, as rows."""
        return [
            *self.differences.numbers(),
            *self.quality.numbers(),
            *self.inference.numbers(),
            *self.cross_modal.numbers(),
            *(_utility(useful) for useful in self.useful),
            *(number for one in self.replies for number in _condition(one)),
            *self.judged,
        ]

    def cards(self) -> tuple[Card, ...]:
        """Of every number of this section, whether it could be given or not, but ratings only where there are any."""
        return tuple(CARDS[name] for name in _SHOWN if name != "judge_factuality" or self.judged)


_SHOWN = (
    "model_utility",
    "collapsed",
    "share_of_same_reply",
    "difference_to_gold",
    "difference_to_vanilla",
    "gap_to_gold",
    "noise_floor",
    "forget_quality",
    "forget_quality_js",
    "membership_auc",
    "membership_tpr",
    "membership_distance",
    "privleak",
    "cross_modal_both_right",
    "cross_modal_image_only",
    "cross_modal_text_only",
    "cross_modal_both_wrong",
    "cross_modal_agreement",
    "cross_modal_phi",
    "judge_factuality",
)


def further(collected: Collected, benchmark: Benchmark | None) -> Further:
    """Compute everything, for each single model where the report folds seeds.

    Args:
        collected: the report's data.
        benchmark: if it is open already; else the one that the evaluations recorded is opened, where it is needed.
    """
    collected = collected.unfolded()
    answers, ratings = expected_answers(collected, benchmark), judged(collected)
    return Further(
        collected=collected,
        differences=differences(collected),
        quality=forget_qualities(collected),
        inference=inference(collected, answers),
        cross_modal=cross_modal_agreement(collected, answers),
        useful=usefulness(collected),
        replies=tuple(one for model in collected.evaluations for one in replies(collected, model)),
        judged=ratings.numbers,
        judge_notes=ratings.notes,
    )


def further_rows(found: Further) -> list[dict[str, Any]]:
    """Flat rows for `results.json`, those of probes last."""
    return number_rows(found.collected, found.numbers()) + probe_rows(found.collected.probes)


def _utility(useful: Useful) -> Number:
    estimate = exactly(useful.utility.value, useful.utility.count, len(useful.utility.unscored))
    return Number(evaluation=useful.evaluation, task=ALL_TASKS, metric="model_utility", estimate=estimate)


def _condition(one: Replies) -> list[Number]:
    shares = {"collapsed": one.found.collapsed, "share_of_same_reply": one.found.same}
    return [
        Number(evaluation=one.evaluation, task=one.task, metric=metric, estimate=exactly(value, one.found.count))
        for metric, value in shares.items()
    ]
