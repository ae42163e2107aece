"""Replies that hang by a hair: the two likeliest next tokens were so close that rounding can choose between them."""

from mmunlearn.data.example import Prediction

NEAR_TIE = {"float32": 1e-4, "float16": 2.0**-6, "bfloat16": 2.0**-3}
"""The gap between the two best logits, by the model's number format, below which another batch size may choose another token.

In float32 the order of summation moves a logit by some 1e-5; 1e-4 leaves room. In the half formats the logits themselves are
rounded: the best ones of language models lie around 16 to 32, where two neighbouring numbers are 16 x 2^-10 (float16, a
10-bit fraction) or 16 x 2^-7 (bfloat16, 7 bits) apart. That is the least that rounding moves; what earlier layers add is not
counted."""


def is_near_tie(prediction: Prediction) -> bool:
    """Whether somewhere in the reply rounding may have chosen the token; False where the gap was not kept."""
    limit = NEAR_TIE.get(str(prediction.settings.get("dtype", "float32")), NEAR_TIE["float32"])
    return prediction.smallest_gap is not None and prediction.smallest_gap < limit
