"""Every metric has a card, and the ranges on the cards hold on predictions made up at random."""

import math
import random
from dataclasses import astuple
from functools import cache

from mmunlearn.benchmarks import clear_official
from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics import agreement, membership, memorisation, probability, truth_ratio, utility
from mmunlearn.metrics.cards import CARDS, Card
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS, SUMMARIES
from mmunlearn.metrics.statistics import clustered_interval, paired_difference
from mmunlearn.report.words import METRIC_CARDS

WORDS = ("the", "old", "town", "of", "Zorblax", "镇", "مدينة", "café", "😀", "B", "(b)", "!", "")
OTHERS = {
    "accuracy": probability.option_letter_accuracy,
    "exact_match": lambda said, _: memorisation.exact_match(said),
    "rougeL_recall": clear_official.METRICS["compared"]["rougeL_recall"],
    "option_probability": probability.option_probability,
    "truth_ratio_forget": lambda said, asked: truth_ratio.forget_form(truth_ratio.truth_ratio(said, asked)),
    "truth_ratio_retain": lambda said, asked: truth_ratio.retain_form(truth_ratio.truth_ratio(said, asked)),
    "membership_loss": lambda said, _: membership.loss_score(said),
    "membership_zlib": membership.zlib_score,
    "membership_min_k": lambda said, _: membership.min_k_score(said),
    "membership_min_k_plus_plus": lambda said, _: membership.min_k_plus_plus_score(said),
    "membership_reference": lambda said, _: membership.reference_score(said, said),
    "distinct_1": lambda said, _: utility.distinct(said.text, 1),
    "distinct_2": lambda said, _: utility.distinct(said.text, 2),
    "repetition": lambda said, _: utility.repetition(said.text),
}
"""What a prediction alone is enough for, besides the catalog."""


def of_lists(values, others):
    """The metrics of groups of questions, from two lists of numbers between 0 and 1."""
    auc, gold = membership.auc(values, others), membership.auc(others[:2], values)
    gap = utility.gap_to_gold(values[0], others)
    shared = min(len(values), len(others))
    both = agreement.cross_modal(values[:shared], others[:shared], [str(n) for n in range(shared)])
    sides = [{str(n): value for n, value in enumerate(side)} for side in (values, others)]
    difference = paired_difference(*sides, {str(n): str(n) for n in range(len(values))}).value
    ratings = [1 + round(9 * value) for value in values]
    return {
        **{f"cross_modal_{name}": getattr(both, name).value for name in ("both_right", "both_wrong", "agreement")},
        **{f"cross_modal_{name}": getattr(both, name).value for name in ("image_only", "text_only")},
        "cross_modal_phi": both.phi,
        "difference_to_gold": difference,
        "difference_to_vanilla": difference,
        "judge_factuality": clustered_interval(ratings, [str(n) for n in range(len(ratings))]).value,
        "membership_auc": auc,
        "membership_tpr": membership.tpr_at_fpr(values, others),
        "membership_distance": membership.distance_to_gold(auc, gold),
        "privleak": membership.privleak(auc, gold),
        "forget_quality": truth_ratio.forget_quality(values, others),
        "forget_quality_js": truth_ratio.js_similarity(values, others),
        "model_utility": utility.model_utility({str(n): value for n, value in enumerate(values)}).value,
        "gap_to_gold": gap.gap,
        "noise_floor": gap.noise_floor,
    }


def of_texts(texts):
    """The metrics of all replies."""
    return {"share_of_same_reply": utility.share_of_same_reply(texts), "collapsed": utility.collapse(texts).collapsed}


def random_question(generator):
    """Anything that a model may give, extremes included."""

    def log_prob():
        return generator.choice([0.0, -1e-7, -40.0, -generator.expovariate(0.5)])

    tokens = generator.randint(1, 12)
    choices = tuple(generator.sample(["Oslo", "Rome", "a fine old city", "北京", "café"], generator.randint(2, 5)))
    letters = [generator.random() for _ in choices]
    answer, words = generator.choice(choices), " ".join(generator.choices(WORDS, k=generator.randint(0, 12)))
    said = Prediction(
        id="q",
        prompt="",
        text=generator.choice([words, answer, "B"]),
        answer_log_probs=tuple(log_prob() for _ in range(tokens)),
        answer_hits=tuple(generator.random() < 0.7 for _ in range(tokens)),
        vocabulary_means=tuple(log_prob() for _ in range(tokens)),
        vocabulary_deviations=tuple(abs(log_prob()) for _ in range(tokens)),
        option_log_likelihoods=tuple(log_prob() for _ in choices),
        option_tokens=tuple(generator.randint(1, 4) for _ in choices),
        option_letter_probabilities=tuple(letter / sum(letters) for letter in letters),
    )
    return said, Example(id="q", question="?", answer=answer, choices=choices)


@cache
def measured():
    """Metric by metric, what it gave on many random inputs."""
    generator, found = random.Random(0), {}
    catalog = CHOICE_METRICS | CLOZE_METRICS | GENERATION_METRICS | OTHERS
    for _ in range(300):
        said, asked = random_question(generator)
        numbers = {name: metric(said, asked) for name, metric in catalog.items()}
        numbers |= of_lists(*([generator.random() for _ in range(generator.randint(2, 9))] for _ in range(2)))
        numbers |= of_texts([random_question(generator)[0].text for _ in range(generator.randint(1, 5))])
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
    return found


def test_every_metric_has_a_card_and_every_card_a_metric_whose_range_holds():
    found = measured()
    assert found.keys() == CARDS.keys()
    for name, numbers in found.items():
        low, high = CARDS[name].range
        scored = [number for number in numbers if not math.isnan(number)]
        assert len(scored) > 100, name
        assert all(low <= number <= high for number in scored), name


def test_finite_ranges_are_not_wider_than_need_be():
    """Between 0 and 1 a metric comes near both ends, else the card would say too little."""
    for name, numbers in measured().items():
        scored = [number for number in numbers if not math.isnan(number)]
        if CARDS[name].range == (0.0, 1.0) and name not in ("model_utility", "forget_quality_js", "noise_floor", "bleu"):
            assert min(scored) < 0.45, name
            assert max(scored) > 0.55, name


def test_cards_say_something_everywhere():
    for name, card in CARDS.items():
        assert isinstance(card, Card)
        assert card.name == name
        assert all(value for value in astuple(card) if isinstance(value, str)), name
        assert card.meaning.endswith("."), name
        assert card.range[0] < card.range[1], name
    assert len({card.title for card in CARDS.values()}) == len(CARDS)


def test_listing_and_report_say_what_the_cards_say():
    for name, meaning in SUMMARIES.items():
        assert meaning == CARDS[name].meaning
    assert list(METRIC_CARDS) == list(CARDS)
    for name, card in METRIC_CARDS.items():
        assert (card.title, card.meaning, card.source) == (CARDS[name].title, CARDS[name].meaning, CARDS[name].source)


def test_what_an_auc_needs_is_on_its_card():
    assert {name for name, card in CARDS.items() if card.needs_holdout} == {
        "membership_auc", "membership_tpr", "membership_distance", "privleak",
    }  # fmt: skip
    assert {name for name, card in CARDS.items() if card.needs_gold} == {
        "membership_distance", "privleak", "forget_quality", "forget_quality_js", "gap_to_gold", "noise_floor",
        "difference_to_gold",
    }  # fmt: skip
