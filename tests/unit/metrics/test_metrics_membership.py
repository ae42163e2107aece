"""Attack scores against their formulas; AUC and threshold against scipy and loops over all pairs and thresholds."""

import math
import random
import zlib

import numpy as np
import pytest
from scipy import stats

from mmunlearn.data.example import Example, Prediction
from mmunlearn.metrics.membership import (
    SMALLEST_DEVIATION,
    Sides,
    auc,
    auc_interval,
    distance_to_gold,
    loss_score,
    membership_table,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    reference_score,
    tpr_at_fpr,
    zlib_score,
)

ANSWERS = (
    "Oslo",
    "a fine old city by the sea",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "北京是一座古老的城市",
    "مدينة قديمة",
    "café 😀",
)


def prediction(log_probs, means=(), deviations=(), id_="q"):
    return Prediction(
        id=id_, prompt="", text="", answer_log_probs=log_probs, vocabulary_means=means, vocabulary_deviations=deviations
    )


def example(answer="Oslo", subject="p", id_="q"):
    return Example(id=id_, question="?", answer=answer, subject=subject)


def test_loss_is_the_mean():
    assert loss_score(prediction((-1.0, -2.0, -6.0))) == -3


@pytest.mark.parametrize("answer", ANSWERS)
def test_zlib_divides_by_compressed_bytes(answer):
    size = len(zlib.compress(answer.encode("utf-8")))
    assert zlib_score(prediction((-1.0, -2.0)), example(answer)) == pytest.approx(-3 / size)


@pytest.mark.parametrize("length", [1, 4, 5, 9, 10, 14, 15, 35, 100])
def test_min_k_is_the_mean_of_the_lowest_fifth(length):
    log_probs = [-float(n) for n in range(length)]
    random.Random(length).shuffle(log_probs)
    kept = max(1, length // 5)
    lowest = [-float(length - 1 - n) for n in range(kept)]
    assert min_k_score(prediction(tuple(log_probs))) == pytest.approx(sum(lowest) / kept)


def test_min_k_takes_as_many_as_the_share_says():
    log_probs = tuple(-float(n) for n in range(100))
    assert min_k_score(prediction(log_probs), share=0.29) == -sum(range(71, 100)) / 29, "not 28, by rounding"
    assert min_k_score(prediction(log_probs), share=1.0) == pytest.approx(loss_score(prediction(log_probs)))


def test_min_k_plus_plus_from_whole_distributions():
    """The moments as a model would give them, computed here from random softmaxes by counting."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(10, 30)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tokens = generator.integers(0, 30, size=10)
    logs = np.log(probabilities)
    means = [sum(p * log for p, log in zip(row, of, strict=True)) for row, of in zip(probabilities, logs, strict=True)]
    spreads = [
        math.sqrt(sum(p * (log - mean) ** 2 for p, log in zip(row, of, strict=True)))
        for row, of, mean in zip(probabilities, logs, means, strict=True)
    ]
    own = [logs[n, token] for n, token in enumerate(tokens)]
    expected = np.mean(sorted((a - b) / c for a, b, c in zip(own, means, spreads, strict=True))[:2])
    assert min_k_plus_plus_score(prediction(tuple(own), tuple(means), tuple(spreads))) == pytest.approx(expected)


def test_min_k_plus_plus_of_a_certain_model():
    certain = prediction((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    surprised = prediction((0.0, -20.0), (0.0, 0.0), (0.0, 0.0))
    assert min_k_plus_plus_score(certain) == 0
    assert min_k_plus_plus_score(surprised) == pytest.approx(-20 / SMALLEST_DEVIATION)
    assert math.isnan(min_k_plus_plus_score(prediction((-1.0, -1.0), (-1.0, -1.0), (math.nan, 1.0))))


def test_reference_is_the_difference():
    assert reference_score(prediction((-1.0, -2.0)), prediction((-3.0, -5.0))) == 2.5
    with pytest.raises(ValueError, match=r"a cannot be compared with the question b"):
        reference_score(prediction((-1.0,), id_="a"), prediction((-1.0,), id_="b"))


def test_what_was_not_recorded_is_nan():
    nothing, broken = prediction(()), prediction((-1.0, math.nan), (-1.0, -1.0), (1.0, 1.0))
    for found in (nothing, broken):
        assert math.isnan(loss_score(found))
        assert math.isnan(zlib_score(found, example()))
        assert math.isnan(min_k_score(found))
        assert math.isnan(min_k_plus_plus_score(found))
        assert math.isnan(reference_score(found, prediction((-1.0,))))
    assert math.isnan(min_k_plus_plus_score(prediction((-1.0, -2.0)))), "without moments"


def groups(generator, ties=False):
    members = [generator.gauss(0.5, 1) for _ in range(generator.randint(1, 40))]
    others = [generator.gauss(0, 1) for _ in range(generator.randint(1, 40))]
    return [[round(score) if ties else score for score in scores] for scores in (members, others)]


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_mann_and_whitney_and_of_all_pairs(ties):
    generator = random.Random(0)
    for _ in range(50):
        members, others = groups(generator, ties)
        pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
        found = auc(members, others)
        assert found == pytest.approx(sum(pairs) / len(pairs))
        assert found == pytest.approx(stats.mannwhitneyu(members, others).statistic / len(pairs))
        assert auc(others, members) == pytest.approx(1 - found)


def test_auc_of_special_scores():
    assert auc([1.0, 2.0], [0.0, -math.inf]) == 1
    assert auc([1.0, 1.0], [1.0]) == 0.5
    assert auc([1.0, math.nan], [0.0, math.nan]) == 1, "NaN is left out"


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_without_a_group_nothing_is_known(members, others):
    assert math.isnan(auc(members, others))
    assert math.isnan(tpr_at_fpr(members, others))
    assert all(map(math.isnan, auc_interval(members, others, [""] * len(members), [""] * len(others))))


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_tpr_is_the_best_of_all_thresholds(fpr, ties):
    generator = random.Random(1)
    for _ in range(50):
        members, others = groups(generator, ties)
        allowed = [
            sum(score >= threshold for score in members) / len(members)
            for threshold in [*members, *others, math.inf]
            if sum(score >= threshold for score in others) <= fpr * len(others) + 1e-9
        ]
        assert tpr_at_fpr(members, others, fpr) == pytest.approx(max(allowed))


def test_one_per_cent_of_a_hundred_is_one():
    others = [float(n) for n in range(100)]
    assert tpr_at_fpr([98.5, 98.0, 200.0], others) == pytest.approx(2 / 3)
    assert tpr_at_fpr([98.5, 98.0, 200.0], others[:99]) == pytest.approx(2 / 3), "of 99 none, and the highest is 98"


def people(generator, count, shift):
    """Persons who differ more than their questions do, with unequal numbers of questions."""
    scores, subjects = [], []
    for person in range(count):
        level = generator.gauss(shift, 1)
        for _ in range(generator.randint(2, 5)):
            scores.append(level + generator.gauss(0, 0.3))
            subjects.append(f"p{person}")
    return scores, subjects


def test_the_interval_is_that_of_drawing_persons_one_by_one():
    generator = random.Random(2)
    (members, who), (others, whose) = people(generator, 12, 0.8), people(generator, 9, 0)
    low, high = auc_interval(members, others, who, whose)
    by_person = [
        {name: [score for score, subject in zip(scores, subjects, strict=True) if subject == name] for name in set(subjects)}
        for scores, subjects in ((members, who), (others, whose))
    ]
    drawn = []
    for _ in range(2000):
        sides = [[score for name in generator.choices(sorted(own), k=len(own)) for score in own[name]] for own in by_person]
        wins = stats.mannwhitneyu(*sides, method="asymptotic").statistic
        drawn.append(wins / (len(sides[0]) * len(sides[1])))
    assert low < auc(members, others) < high
    assert [low, high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Persons drawn anew 200 times; the AUC of two normal distributions is known. Resampling questions would fail."""
    truth = stats.norm.cdf(0.8 / math.sqrt(2 * (1 + 0.3**2)))
    generator = random.Random(3)
    held = 0
    for _ in range(200):
        (members, who), (others, whose) = people(generator, 25, 0.8), people(generator, 25, 0)
        low, high = auc_interval(members, others, who, whose, level=0.9)
        held += low <= truth <= high
    assert 0.84 <= held / 200 <= 0.96


def test_the_interval_has_a_seed_and_a_level():
    generator = random.Random(4)
    (members, who), (others, whose) = people(generator, 8, 0.5), people(generator, 8, 0)
    first, again, other, narrow = (
        auc_interval(members, others, who, whose, **settings)
        for settings in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"level": 0.5})
    )
    assert first == again != other
    assert first[0] < narrow[0] < narrow[1] < first[1]


def test_more_questions_about_the_same_persons_say_no_more():
    generator = random.Random(5)
    (members, who), (others, whose) = people(generator, 10, 0.5), people(generator, 10, 0)
    once = auc_interval(members, others, who, whose)
    tenfold = auc_interval(members * 10, others * 10, who * 10, whose * 10)
    assert tenfold == pytest.approx(once)


def test_a_perfect_separation_is_not_certain():
    subjects = [f"p{n}" for n in range(10)]
    low, high = auc_interval([1.0] * 10, [0.0] * 10, subjects, subjects)
    assert high == 1
    assert low == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95, "exact").low)
    low, high = auc_interval([0.0] * 10, [1.0] * 10, subjects, subjects)
    assert low == 0
    assert high == pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95, "exact").high)


def test_one_person_tells_nothing_about_persons_and_nameless_questions_are_persons():
    assert all(map(math.isnan, auc_interval([1.0, 0.0], [0.0, 0.5], ["a", "a"], ["b", "c"])))
    assert not any(map(math.isnan, auc_interval([1.0, 0.0], [0.0, 0.5], ["", ""], ["", ""])))
    with pytest.raises(ValueError, match="2 scores but 1 subjects"):
        auc_interval([1.0, 0.0], [0.0], ["a"], ["b"])


def test_distance_to_gold():
    assert distance_to_gold(0.9, 0.6) == pytest.approx(distance_to_gold(0.3, 0.6)) == pytest.approx(0.3)
    assert math.isnan(distance_to_gold(0.9, math.nan))
    assert math.isnan(distance_to_gold(math.nan, 0.9))


def test_privleak():
    assert privleak(0.6, 0.6) == 0
    assert privleak(1.0, 0.5) == -100, "traces left"
    assert privleak(0.2, 0.5) == pytest.approx(60), "over-unlearned"
    assert privleak(0.0, 0.89) == pytest.approx(0.89 / 0.11 * 100)


@pytest.mark.parametrize("gold", [0.95, 1.0, math.nan])
def test_privleak_does_not_explode(gold):
    assert math.isnan(privleak(0.0, gold))
    assert math.isnan(privleak(math.nan, 0.5))


def answers(shift, generator, names, prefix):
    """Ten-token answers about some people, likelier by `shift` nats a token."""
    return [
        (
            prediction(
                tuple(-abs(generator.gauss(3 - shift, 0.5)) for _ in range(10)), (-2.0,) * 10, (1.0,) * 10, id_=f"{prefix}{n}"
            ),
            example("a fine old city by the sea", subject=name, id_=f"{prefix}{n}"),
        )
        for n, name in enumerate(names)
    ]


def sides(shift, seed):
    generator = random.Random(seed)
    who, whose = [f"m{n // 2}" for n in range(16)], [f"h{n // 2}" for n in range(14)]
    return Sides(members=answers(shift, generator, who, "m"), non_members=answers(0, generator, whose, "h"))


def test_the_table():
    vanilla, gold, base = sides(2, 0), sides(0, 1), sides(0, 2)
    rows = {row.attack: row for row in membership_table(vanilla, golds=[gold], reference=base)}
    assert list(rows) == ["loss", "zlib", "min_k", "min_k_plus_plus", "reference"]
    for row in rows.values():
        assert row.auc > 0.9
        assert 0 <= row.low <= row.auc <= row.high <= 1
        assert 0.2 < row.auc_gold < 0.8
        assert row.distance == pytest.approx(abs(row.auc - row.auc_gold))
        assert row.privleak == pytest.approx(100 * (row.auc_gold - row.auc) / (1 - row.auc_gold))
        assert (row.members, row.non_members, row.unscored) == (16, 14, 0)
    scores = [[loss_score(said) for said, _ in side] for side in (vanilla.members, vanilla.non_members)]
    subjects = [[asked.subject for _, asked in side] for side in (vanilla.members, vanilla.non_members)]
    assert rows["loss"].auc == auc(*scores)
    assert rows["loss"].tpr == tpr_at_fpr(*scores)
    assert (rows["loss"].low, rows["loss"].high) == auc_interval(*scores, *subjects)
    gold_scores = [[loss_score(said) for said, _ in side] for side in (gold.members, gold.non_members)]
    assert rows["loss"].auc_gold == auc(*gold_scores)


def test_the_table_passes_its_settings_on():
    mixed, gold = sides(0.2, 0), sides(0, 1)
    plain, other = (membership_table(mixed, golds=[gold], **settings)[0] for settings in ({}, {"fpr": 0.5, "level": 0.5}))
    assert other.tpr > plain.tpr
    assert plain.low < other.low < other.high < plain.high
    assert [row.low for row in membership_table(mixed, seed=1)] != [row.low for row in membership_table(mixed)]


def test_gold_is_attacked_with_the_same_reference():
    """A model that is gold is at distance 0 in every row."""
    gold, base = sides(0, 1), sides(0, 2)
    assert [row.distance for row in membership_table(gold, golds=[gold], reference=base)] == [0] * 5


def test_the_table_without_gold_or_holdout():
    vanilla = sides(2, 0)
    assert [row.attack for row in membership_table(vanilla)] == ["loss", "zlib", "min_k", "min_k_plus_plus"]
    for row in membership_table(vanilla):
        assert math.isnan(row.auc_gold)
        assert math.isnan(row.distance)
        assert math.isnan(row.privleak)
    for row in membership_table(Sides(members=vanilla.members, non_members=[]), golds=[sides(0, 1)]):
        assert all(map(math.isnan, (row.auc, row.low, row.high, row.tpr, row.distance, row.privleak)))
        assert (row.members, row.non_members) == (16, 0)


def test_a_question_that_the_reference_did_not_answer_is_unscored():
    vanilla, base = sides(2, 0), sides(0, 2)
    fewer = Sides(members=base.members[1:], non_members=base.non_members[:-2])
    row = membership_table(vanilla, reference=fewer)[-1]
    assert (row.members, row.non_members, row.unscored) == (15, 12, 3)
