"""The truth ratio: whether a model that lost the right answer finds it as likely as wrong ones, as a gold model does.

`truth_ratio` is one number a question; `forget_form` and `retain_form` bring it between 0 and 1; `forget_quality` and
`js_similarity` compare all numbers of a model with those of a gold model.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.probability import as_choice, comparable, mean_option_log_probs

CEILING = 100.0
"""Largest ratio: without it a single answer that a model rules out would decide every mean."""
BINS = 50
"""Of the histograms that `js_similarity` compares."""


def truth_ratio(prediction: Prediction, example: Example, *, paraphrase: float | None = None, geometric: bool = False) -> float:
    """R = mean_i p(wrong_i)^(1/|wrong_i|) / p(right)^(1/|right|), from the options' log-likelihoods.

    The options other than the right one are the perturbed answers; a free answer has `Example.perturbed`. Range 0 to
    100. Near 0: the right answer is known; near 1: it is as likely as wrong ones; above 1: it is avoided. Neither
    direction is better in itself: the ideal on forget questions is gold's number. Each probability is normalised by its
    number of tokens.
    Source: TOFU (Maini et al. 2024, arXiv:2401.06121), eq. 1.
    Deviations: the mean over wrong answers is the arithmetic one, as the paper prints it; the published scripts (TOFU's,
    CLEAR's, open-unlearning's) take the geometric one, since they average losses, which is never larger: see
    `geometric_truth_ratio`. TOFU divides by the
    probability of a paraphrase of the right answer; here by that of the answer itself where there is none. Ratios above
    `CEILING` are cut to it, which changes the mean of R and nothing else that is published. No 1e-10 is added.

    Args:
        prediction: with option_log_likelihoods and option_tokens; NaN without them.
        example: with at least one wrong option or perturbed answer, else NaN.
        paraphrase: mean log-probability a token of a paraphrased right answer, in nats; by default that of
            `Example.paraphrase`.
        geometric: take the geometric mean over wrong answers. A single one that the model rules out makes it 0.
    """
    means, options = as_choice(prediction, example)
    if not comparable(means, options):
        return math.nan
    if paraphrase is None and example.paraphrase:
        paraphrase = mean_option_log_probs(prediction)[-1]
    wrong = [mean for mean, choice in zip(means, options.choices, strict=True) if choice != options.answer]
    right = means[options.choices.index(options.answer)] if paraphrase is None else paraphrase
    if not wrong or math.isnan(right):
        return math.nan
    highest = max(wrong)
    if highest == -math.inf:
        return math.nan if right == -math.inf else 0.0
    if geometric:
        log_ratio = sum(wrong) / len(wrong) - right
    else:
        log_ratio = highest + math.log(sum(math.exp(mean - highest) for mean in wrong) / len(wrong)) - right
    if math.isnan(log_ratio):  # a wrong answer and the right one are both ruled out
        return math.nan
    return math.exp(log_ratio) if log_ratio < math.log(CEILING) else CEILING


def geometric_truth_ratio(prediction: Prediction, example: Example) -> float:
    """R with the geometric mean over wrong answers: exp(mean_i log p(wrong_i)/|wrong_i| - log p(right)/|right|).

    Range 0 to 100, read like `truth_ratio`; never larger than it.
    Source: the published scripts of TOFU and CLEAR, which average losses before they take the exponential.
    Deviation: of each question by itself, as TOFU's does; CLEAR's averages over the wrong answers of all questions.
    """
    return truth_ratio(prediction, example, geometric=True)


def forget_form(ratio: float) -> float:
    """min(R, 1/R): 1 where right and wrong answers are equally likely. Range 0 to 1; for forget questions.

    Source: TOFU's code ("Truth Ratio Forget"), "closer_to_1_better" of open-unlearning. Higher means less known, but a
    gold model does not reach 1: compare with its number.
    """
    if ratio <= 1 or math.isnan(ratio):
        return ratio
    return 1 / ratio


def retain_form(ratio: float) -> float:
    """max(0, 1 - R): how much likelier the right answer is. Range 0 to 1, higher is better; for what is to be kept.

    Source: TOFU's code ("Truth Ratio" of its utility), "true_better" of open-unlearning.
    """
    return ratio if math.isnan(ratio) else max(0.0, 1 - ratio)


def forget_quality(model_ratios: Sequence[float], gold_ratios: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test: are the model's truth ratios distributed as gold's?

    Range 0 to 1, higher is better; tables often show log10 of it. Small: the model can be told from gold. Not
    normalised: it falls with the number of questions, so compare only where that is the same. The test takes the
    questions as independent, which questions about one person are not, so it is too sure of differences. It depends on
    the order of the ratios alone: any increasing function of R gives the same.
    Source: TOFU (Maini et al. 2024), "forget quality"; `scipy.stats.ks_2samp`.
    Deviation: NaN with fewer than two scored ratios on either side.
    """
    model, gold = _scored(model_ratios), _scored(gold_ratios)
    if min(len(model), len(gold)) < 2:
        return math.nan
    with warnings.catch_warnings():
        # An exact p of 1 comes out as 1 + rounding in scipy, which warns and takes the asymptotic one: 1 as well.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ks_2samp(model, gold).pvalue)


def js_similarity(model_ratios: Sequence[float], gold_ratios: Sequence[float]) -> float:
    """1 - JSD: JSD is the Jensen-Shannon distance (base 2) between histograms of the model's and gold's ratios.

    Range 0 to 1, higher is better; 1: the histograms are equal, 0: no bin holds ratios of both. Normalised to shares,
    so that it hardly depends on the number of questions, unlike `forget_quality`.
    Source: CLEAR's second forget quality (arXiv:2410.18057); 50 bins as in later work.
    Deviations: the histograms are of R/(1+R) over its whole range 0 to 1, the same for every model; between the
    smallest and the largest R one outlier would put everything else in one bin. CLEAR's code compares the ratios
    themselves, question by question, not histograms. NaN with fewer than two scored ratios on either side.
    """
    model, gold = _scored(model_ratios), _scored(gold_ratios)
    if min(len(model), len(gold)) < 2:
        return math.nan
    shares = [np.histogram(ratios / (1 + ratios), bins=BINS, range=(0.0, 1.0))[0] / len(ratios) for ratios in (model, gold)]
    return 1 - float(np.clip(distance.jensenshannon(*shares, base=2), 0.0, 1.0))


def _scored(ratios: Sequence[float]) -> NDArray[np.float64]:
    """Without those that could not be scored."""
    values = np.asarray(ratios, dtype=np.float64)
    return values[~np.isnan(values)]
