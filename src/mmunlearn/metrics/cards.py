"""What must be known to read a number: one card for each metric of the project, whether of a task or of a comparison."""

import math

from mmunlearn.metrics.card import Card as Card
from mmunlearn.metrics.card import both
from mmunlearn.metrics.cards_compared import COMPARED_CARDS
from mmunlearn.metrics.truth_ratio import CEILING

GOLD = "gold's number"
NO_GOAL = "no goal in itself"


def _of_answers(
    name: str,
    title: str,
    meaning: str,
    *,
    formula: str,
    source: str,
    higher_means: str = "knows more",
    range_: tuple[float, float] = (0.0, 1.0),
    is_cut: bool = False,
) -> Card:
    """A number for each question, whose ideal on forget questions is that of a model which never knew."""
    return Card(
        name=name,
        title=title,
        meaning=meaning,
        range=range_,
        is_cut=is_cut,
        higher_means=higher_means,
        ideal_erase=GOLD,
        ideal_visual_only=f"{GOLD} on image questions; that of gold_text on text questions",
        formula=formula,
        source=source,
    )


_TASK_CARDS = (
    _of_answers(
        "accuracy",
        "accuracy",
        "Share of multiple-choice questions answered right; the primary number. The configuration key "
        "evaluation.choice decides whether letters or option texts are compared.",
        formula="option_letter_accuracy or option_text_accuracy",
        source="letter probability or text likelihood, below",
    ),
    _of_answers(
        "option_letter_accuracy",
        "letter probability",
        "The options are listed; right if the right option's letter is the most probable, averaged "
        "over all cyclic orders of the options. Ties count 1/k.",
        formula="1[argmax_i p(letter_i) = right]",
        source="this project",
    ),
    _of_answers(
        "option_text_accuracy",
        "text likelihood",
        "The options are not listed; right if the right option's text has the highest mean "
        "log-probability a token. Ties count 1/k.",
        formula="1[argmax_i log p(option_i) / |option_i| = right]",
        source="this project",
    ),
    _of_answers(
        "letter_accuracy",
        "written letter",
        "The first letter that the model writes is the right option's. Replies without one are unscored.",
        formula="1[first letter of the reply = right letter]",
        source="MLLMU-Bench (there, replies without a letter count as wrong)",
    ),
    _of_answers(
        "probability",
        "answer probability",
        "Probability of the expected answer, to the power of one over its number of tokens.",
        formula="p(y)^(1/|y|)",
        source="TOFU, CLEAR",
    ),
    _of_answers(
        "cloze_accuracy",
        "cloze",
        "The expected words stand somewhere in the reply, whatever the case.",
        formula="1[answer in reply]",
        source="MLLMU-Bench",
    ),
    _of_answers(
        "rougeL",
        "ROUGE-L",
        "Longest common sequence of words with the expected answer (F1, stemmed; letters of all scripts count).",
        formula="F1 of the longest common subsequence",
        source="MLLMU-Bench (CLEAR and TOFU report recall)",
    ),
    _of_answers(
        "rougeL_recall",
        "ROUGE-L recall",
        "Share of the expected answer's words that the reply has in the same order (stemmed); long replies lose nothing.",
        formula="longest common subsequence / words of the answer",
        source="CLEAR, TOFU",
    ),
    _of_answers(
        "rouge1",
        "ROUGE-1",
        "Words shared with the expected answer (F1, stemmed; letters of all scripts count).",
        formula="F1 of words",
        source="MLLMU-Bench",
    ),
    _of_answers(
        "rouge2",
        "ROUGE-2",
        "Pairs of neighbouring words shared with the expected answer (F1, stemmed; letters of all scripts count).",
        formula="F1 of pairs of words",
        source="MLLMU-Bench",
    ),
    _of_answers(
        "bleu",
        "BLEU",
        "Sentence BLEU-4 with the expected answer, smoothing method 1, words split at white space.",
        formula="brevity penalty * (prod_n precision_n)^(1/4), n = 1..4",
        source="MLLMU-Bench",
    ),
    _of_answers(
        "truth_ratio",
        "truth ratio",
        f"How much more probable wrong answers are than the right one; may exceed 1 and is cut at {CEILING:g}.",
        formula="mean_i p(wrong_i)^(1/|wrong_i|) / p(right)^(1/|right|); right: in other words, where the data set has them; "
        "under CLEAR's official protocol the geometric mean of the wrong ones, as its script has it",
        source="TOFU, CLEAR",
        higher_means="knows less; above 1 avoids the right answer",
        range_=(0.0, CEILING),
        is_cut=True,
    ),
    _of_answers(
        "exact_memorisation",
        "exact memorisation",
        "Share of the expected answer's tokens that are the model's first choice when the true ones before are given.",
        formula="(1/|y|) sum_t 1[argmax_t = y_t]",
        source="Tirumala et al. 2022, open-unlearning",
    ),
    _of_answers(
        "extraction_strength",
        "extraction strength",
        "Share of the expected answer that the model finishes by itself, word for word, once the part before is given.",
        formula="1 - k/|y|, k: shortest true prefix after which greedy decoding writes the rest",
        source="Carlini et al. 2021, open-unlearning (whose lowest value is 1/|y|, here 0)",
    ),
    _of_answers(
        "exact_match",
        "exact match",
        "Every token of the expected answer is the model's first choice: greedy decoding writes it.",
        formula="1[exact_memorisation = 1]",
        source="this project",
    ),
    _of_answers(
        "option_probability",
        "option probability",
        "Probability of the right answer among right and wrong ones, each to the power of one over its number of tokens.",
        formula="p(right)^(1/|right|) / sum_i p(option_i)^(1/|option_i|)",
        source="TOFU, CLEAR",
    ),
    _of_answers(
        "truth_ratio_forget",
        "truth ratio, forget form",
        "Truth ratio brought between 0 and 1 for forget questions: 1 where right and wrong answers are equally likely.",
        formula="min(R, 1/R)",
        source="TOFU's code",
        higher_means="knows less",
    ),
    Card(
        name="truth_ratio_retain",
        title="truth ratio, retain form",
        meaning="Truth ratio brought between 0 and 1 for what is to be kept: how much likelier the right answer is.",
        higher_means="knows more",
        **both(NO_GOAL),
        formula="max(0, 1 - R)",
        source="TOFU's code",
    ),
)

_ATTACK_CARDS = tuple(
    Card(
        name=f"membership_{name}",
        title=f"{title} attack score",
        meaning=meaning,
        **both(NO_GOAL),
        formula=formula,
        source=source,
        higher_means="more likely a member",
        range=range_,
    )
    for name, title, meaning, formula, source, range_ in (
        (
            "loss",
            "loss",
            "Mean log-probability of the answer's tokens.",
            "mean_t log p_t",
            "Yeom et al. 2018",
            (-math.inf, 0.0),
        ),
        (
            "zlib",
            "zlib",
            "Log-probability of the answer for each byte of the compressed answer.",
            "sum_t log p_t / |zlib(y)|",
            "Carlini et al. 2021 (there the mean log-probability is divided)",
            (-math.inf, 0.0),
        ),
        (
            "min_k",
            "Min-K%",
            "Mean log-probability of the least likely fifth of the answer's tokens.",
            "mean of the lowest 20 % of log p_t",
            "Shi et al. 2024",
            (-math.inf, 0.0),
        ),
        (
            "min_k_plus_plus",
            "Min-K++",
            "Like Min-K%, each token compared with what the model expects of its own choices there.",
            "mean of the lowest 20 % of (log p_t - mu_t) / sigma_t",
            "Zhang et al. 2024",
            (-math.inf, math.inf),
        ),
        (
            "reference",
            "reference",
            "Mean log-probability of the answer's tokens, less that under a model which saw neither group.",
            "mean_t log p_t - mean_t log q_t",
            "Carlini et al. 2021",
            (-math.inf, math.inf),
        ),
    )
)

_MEMBERSHIP_CARDS = (
    Card(
        name="membership_auc",
        title="membership AUC",
        meaning="How often an attack ranks a question about a forget person above one about a person of the holdout.",
        **both(f"{GOLD}, which need not be 0.5"),
        formula="P(score of a member > score of a non-member), ties 1/2",
        source="Yeom et al. 2018, MUSE",
        higher_means="members stand out",
        needs_holdout=True,
    ),
    Card(
        name="membership_tpr",
        title="members found at 1 % false alarms",
        meaning="Share of members that an attack finds when at most 1 % of the non-members are called members.",
        **both(GOLD),
        formula="max TPR over thresholds with FPR <= 0.01",
        source="Carlini et al. 2022",
        higher_means="members stand out",
        needs_holdout=True,
    ),
    Card(
        name="membership_distance",
        title="membership AUC, distance to gold",
        meaning="How far the AUC of an attack is from the one on gold.",
        **both("0"),
        formula="|AUC - AUC_gold|",
        source="this project (others measure the distance to 0.5)",
        higher_means="worse: traces left, or forgotten people stand out",
        needs_gold=True,
        needs_holdout=True,
    ),
    Card(
        name="privleak",
        title="PrivLeak",
        meaning="AUC of an attack relative to gold's, in percent: negative, traces left; positive, over-unlearned. Not defined "
        "where gold's AUC is above 0.9.",
        **both("0"),
        formula="100 ((1 - AUC) - (1 - AUC_gold)) / (1 - AUC_gold)",
        source="MUSE",
        higher_means="more unlearned, above 0 too much",
        range=(-100.0, 900.0),
        needs_gold=True,
        needs_holdout=True,
    ),
)

_COMPARISON_CARDS = (
    Card(
        name="forget_quality",
        title="forget quality",
        meaning="p-value of the test that the model's truth ratios on forget questions are distributed as gold's. Below 0.05: "
        "told apart. Above: not told apart by so many questions, which is no proof of likeness; few questions alone bring it "
        "about.",
        **both("that of another gold seed, which is any number between 0 and 1"),
        formula="Kolmogorov-Smirnov p-value of the truth ratios of model and gold",
        source="TOFU",
        higher_means="harder to tell from gold",
        needs_gold=True,
    ),
    Card(
        name="forget_quality_js",
        title="forget quality, Jensen-Shannon",
        meaning="Likeness of the histograms of the truth ratios of model and gold.",
        **both("that of another gold seed, near 1"),
        formula="1 - JSD of histograms of R/(1+R), 50 bins, base 2",
        source="CLEAR (there without histograms)",
        higher_means="more like gold",
        needs_gold=True,
    ),
    Card(
        name="model_utility",
        title="model utility",
        meaning="Harmonic mean of several numbers about what is to be kept; unscored if one of them is.",
        **both("not below vanilla's"),
        formula="n / sum_i 1/x_i",
        source="TOFU",
        higher_means="keeps more",
    ),
    Card(
        name="gap_to_gold",
        title="gap to gold",
        meaning="A number less the mean of the gold models'. Within the noise floor it is what another seed does.",
        **both("0"),
        formula="x - mean_s x_gold,s",
        source="retrain gap of exact unlearning",
        higher_means="above gold",
        range=(-1.0, 1.0),
        needs_gold=True,
    ),
    Card(
        name="noise_floor",
        title="noise floor",
        meaning="Largest difference between gold models of different weights whose recorded trainings differ by the seed only.",
        **both(NO_GOAL),
        formula="max_s x_gold,s - min_s x_gold,s",
        source="this project",
        higher_means="less can be concluded from small gaps",
        needs_gold=True,
    ),
)

_COLLAPSE_CARDS = tuple(
    Card(
        name=name,
        title=title,
        meaning=meaning,
        formula=formula,
        source=source,
        higher_means=higher_means,
        **both("vanilla's number"),
    )
    for name, title, meaning, formula, source, higher_means in (
        (
            "distinct_1",
            "distinct-1",
            "Share of different words in a reply.",
            "|words| / words",
            "Li et al. 2016",
            "more varied",
        ),
        (
            "distinct_2",
            "distinct-2",
            "Share of different pairs in a reply.",
            "|pairs| / pairs",
            "Li et al. 2016",
            "more varied",
        ),
        ("repetition", "repetition", "Share of repeated pairs in a reply.", "1 - distinct_2", "this project", "more circular"),
        (
            "share_of_same_reply",
            "same reply",
            "Share of the questions that get the most common reply.",
            "max_reply count / n",
            "this project",
            "less to say",
        ),
        (
            "collapsed",
            "collapsed replies",
            "Share of the replies that are empty, go round in circles, or are one reply to more than half of the questions.",
            "mean of 1[empty or repetition >= 0.5 or the reply of more than half]",
            "this project",
            "more broken",
        ),
    )
)

CARDS: dict[str, Card] = {
    card.name: card
    for cards in (_TASK_CARDS, _ATTACK_CARDS, _MEMBERSHIP_CARDS, _COMPARISON_CARDS, COMPARED_CARDS, _COLLAPSE_CARDS)
    for card in cards
}
"""Every metric of the project; those of tasks first, in the order of a report."""


def bounds_of(metric: str) -> tuple[float, float] | None:
    """The natural range of a metric that is no share, which its values alone do not show; None: 0 to 1, or unknown."""
    return CARDS[metric].bounds if metric in CARDS else None
