"""Cards of numbers that pair questions, or models on the same questions, and of the ratings of a judge."""

from mmunlearn.metrics.card import Card, both

_GOLD = "gold's number"

_AGREEMENT_CARDS = tuple(
    Card(
        name=f"cross_modal_{name}",
        title=title,
        meaning=meaning,
        higher_means=higher_means,
        ideal_erase=_GOLD,
        ideal_visual_only="gold_text's number",
        formula=formula,
        source="this project",
        range=range_,
    )
    for name, title, meaning, higher_means, formula, range_ in (
        (
            "both_right",
            "right with and without picture",
            "Share of the facts asked both ways that are answered right both times.",
            "knows more",
            "P(image right, text right)",
            (0.0, 1.0),
        ),
        (
            "image_only",
            "right with the picture only",
            "Share of the facts asked both ways that are answered right with the picture and wrong in text.",
            "known by the face alone",
            "P(image right, text wrong)",
            (0.0, 1.0),
        ),
        (
            "text_only",
            "right in text only",
            "Share of the facts asked both ways that are answered wrong with the picture and right in text: the face is gone, "
            "the fact is not.",
            "known by the name alone",
            "P(image wrong, text right)",
            (0.0, 1.0),
        ),
        (
            "both_wrong",
            "wrong with and without picture",
            "Share of the facts asked both ways that are answered wrong both times.",
            "knows less",
            "P(image wrong, text wrong)",
            (0.0, 1.0),
        ),
        (
            "agreement",
            "cross-modal agreement",
            "Share of the facts asked both ways that are right both times or wrong both times. Guessing agrees too.",
            "more consistent",
            "P(image right = text right)",
            (0.0, 1.0),
        ),
        (
            "phi",
            "cross-modal correlation",
            "Whether the facts that are right with the picture are those that are right in text; 0: no connection. Unscored "
            "where everything is right, or everything wrong, in a modality.",
            "more consistent",
            "(n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0)",
            (-1.0, 1.0),
        ),
    )
)

COMPARED_CARDS = (
    Card(
        name="difference_to_gold",
        title="difference to gold",
        meaning="A number less gold's on the same questions, with an interval over persons.",
        higher_means="above gold",
        **both("0"),
        formula="mean_q (x_q - x_gold,q)",
        source="this project",
        range=(-1.0, 1.0),
        needs_gold=True,
    ),
    Card(
        name="difference_to_vanilla",
        title="difference to vanilla",
        meaning="A number less vanilla's on the same questions, with an interval over persons.",
        higher_means="above vanilla",
        ideal_erase="that of gold, below 0; 0 on what is to be kept",
        ideal_visual_only="that of gold_text; 0 on what is to be kept",
        formula="mean_q (x_q - x_vanilla,q)",
        source="this project",
        range=(-1.0, 1.0),
    ),
    *_AGREEMENT_CARDS,
    Card(
        name="judge_factuality",
        title="judge's rating",
        meaning="Mean rating of the free answers' factuality by another model, from 1 to 10. A judge errs, and differs from "
        "other judges.",
        higher_means="knows more",
        ideal_erase=_GOLD,
        ideal_visual_only=f"{_GOLD} on image questions; that of gold_text on text questions",
        formula="mean of the ratings",
        source="MLLMU-Bench's factuality score (there gpt-4o-mini)",
        range=(1.0, 10.0),
    ),
)
