"""Answers that hang by a hair: the two likeliest tokens, or options, were so close that rounding can choose between them."""

import math

from mmunlearn.config_enums import Choice
from mmunlearn.data.example import Prediction
from mmunlearn.metrics.probability import mean_option_log_probs

NEAR_TIE = {"float32": 1e-4, "float16": 2.0**-6, "bfloat16": 2.0**-3}
"""The gap between the two best logits, by the model's number format, below which another batch size may choose another token.

In float32 the order of summation moves a logit by some 1e-5; 1e-4 leaves room. In the half formats the logits themselves are
rounded: the best ones of language models lie around 16 to 32, where two neighbouring numbers are 16 x 2^-10 (float16, a
10-bit fraction) or 16 x 2^-7 (bfloat16, 7 bits) apart. That is the least that rounding moves; what earlier layers add is not
counted."""


def is_near_tie(prediction: Prediction) -> bool:
    """Whether somewhere in the reply rounding may have chosen the token; False where the gap was not kept."""
    return prediction.smallest_gap is not None and prediction.smallest_gap < _limit(prediction)


def is_near_choice(prediction: Prediction, choice: Choice) -> bool:
    """Whether rounding may have put another option first, by the score that decides; False where it was not recorded.

    Held against the same limit are the logarithms: of the letters' probabilities, which were averaged over the orders of the
    options, or of the options' texts, per token. A mean of logits is moved by at most what moves each of them.
    """
    if choice is Choice.letter:
        scores = [math.log(p) if p > 0 else -math.inf for p in prediction.option_letter_probabilities]
    else:
        scores = list(mean_option_log_probs(prediction))
    if len(scores) < 2:
        return False
    second, first = sorted(scores)[-2:]
    return first - second < _limit(prediction)  # False if either is NaN, or both are -inf


def _limit(prediction: Prediction) -> float:
    return NEAR_TIE.get(str(prediction.settings.get("dtype", "float32")), NEAR_TIE["float32"])
