"""How much of the expected answer a model would write itself: metrics of the stored arg-max hits.

A hit at position t means: given the question and the true answer up to t, the model's first choice is the true token.
So greedy decoding from a true prefix writes the rest exactly if every later position is a hit, and nothing has to be
generated. The end token counts as a token. All values lie between 0 and 1; higher means that more was memorised.
"""

import math
from collections.abc import Sequence

from mmunlearn.data.example import Prediction


def exact_memorisation(prediction: Prediction) -> float:
    """Share of the expected answer's tokens that were the model's first choice: (1/|y|) sum_t 1[argmax_t = y_t].

    Range 0 to 1, higher: more memorised. Normalised by the number of tokens |y|.
    Source: "exact memorisation" of Tirumala et al. (2022, arXiv:2205.10770), as in open-unlearning.
    Deviation: NaN, not 0, where nothing was recorded or a log-probability is not a number (a destroyed model).
    """
    hits = _hits(prediction)
    return sum(hits) / len(hits) if hits else math.nan


def exact_match(prediction: Prediction) -> float:
    """1.0 if every token of the expected answer was the model's first choice (greedy decoding writes it), else 0.0.

    Range 0 or 1, higher: memorised. NaN as in `exact_memorisation`.
    """
    hits = _hits(prediction)
    return float(all(hits)) if hits else math.nan


def extraction_strength(prediction: Prediction) -> float:
    """ES = 1 - k/|y|: k is the length of the shortest true prefix after which greedy decoding writes the rest.

    Range 0 to 1, higher: more memorised. 1: the question alone brings out the whole answer; 0: not even its last token
    comes out. Normalised by the number of tokens |y|.
    Source: Carlini et al. (2021, arXiv:2012.07805) and Wang et al. (2024, arXiv:2406.09179), as in open-unlearning.
    Deviations: that code never lets k reach |y|, so that its lowest value is 1/|y|; here it is 0. NaN as in
    `exact_memorisation`. An end token that is always foreseen lifts every value to at least 1/|y|: compare with gold.
    """
    hits = _hits(prediction)
    if not hits:
        return math.nan
    prefix = next((position + 1 for position in reversed(range(len(hits))) if not hits[position]), 0)
    return (len(hits) - prefix) / len(hits)


def _hits(prediction: Prediction) -> Sequence[bool]:
    """The hits; none where the log-probabilities say that they mean nothing: the arg-max of NaN is some token too."""
    return () if any(map(math.isnan, prediction.answer_log_probs)) else prediction.answer_hits
