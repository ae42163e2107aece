"""The section on comparisons: its rows, its cards, what it says where something is missing, and that it names nobody."""

import json
import math
from dataclasses import replace

import pytest
from made_up_study import ANSWERS, FORGET, RETAIN, MadeUpBenchmark, fabricate_all, fabricate_evaluation

from mmunlearn.benchmarks.people import People
from mmunlearn.judge.ratings import answer_mark
from mmunlearn.metrics.cards import CARDS
from mmunlearn.report.answers import Judged, expected_answers, judged
from mmunlearn.report.collect import collect
from mmunlearn.report.compared import Number, exactly, number_rows
from mmunlearn.report.further import further, further_rows
from mmunlearn.report.html import write_report
from mmunlearn.report.seeds import fold_seeds
from mmunlearn.run import Run, append_json_line, read_json_lines, write_json_lines, write_text

TASK = "forget_text_generation"


def page(folder, collected, benchmark=None, show=False):
    write_report(folder, collected, benchmark=benchmark, show_subjects=show, title="A study", banner=None, commands=[])
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_row_has_a_card_and_its_own_place(collected):
    rows = further_rows(further(collected, MadeUpBenchmark()))
    assert {row["metric"] for row in rows} <= CARDS.keys()
    for row in rows:
        low, high = CARDS[row["metric"]].range
        assert row["value"] is None or low <= row["value"] <= high
    keys = [(row["fingerprint"], row["task"], row["metric"], row["of"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    shown = {card.name for card in further(collected, MadeUpBenchmark()).cards()}
    assert shown == {row["metric"] for row in rows}


def test_the_row_of_one_number(collected):
    model = collected.evaluations[0]
    number = Number(evaluation=model, task="all", metric="model_utility", estimate=exactly(0.5, 12))
    (row,) = number_rows(collected, [number])
    assert set(collected.rows()[0]) | {"of"} == set(row)
    assert (row["role"], row["value"], row["low"], row["count"], row["of"]) == ("base", 0.5, None, 12, "")


def test_the_page_shows_them_all_and_names_nobody(tmp_path, collected):
    text = page(tmp_path, collected)  # a benchmark that is there is not needed for privacy to be kept
    text += page(tmp_path, collected, benchmark=MadeUpBenchmark())
    for expected in ("Held against gold and vanilla", "noise floor", "Min-K%", "ideal: near 1", "What these numbers are"):
        assert expected in text
    for expected in ("▲ ", "▼ ", "The same fact with and without the picture", "harmonic mean"):
        assert expected in text
    assert [secret for secret in (*ANSWERS, *FORGET, *RETAIN) if secret in text] == []
    assert not [line for line in (tmp_path / "results.json").read_text().splitlines() if any(s in line for s in ANSWERS)]


def test_what_is_missing_is_said(tmp_path):
    evaluations, _ = fabricate_all(tmp_path / "study", names=("GradDiff",))
    text = page(tmp_path / "a", collect(evaluations, {}))
    assert "Forget quality (truth ratios like gold’s): not available, because no gold model was evaluated." in text
    assert "with and without picture: not available, because the expected answers could not be read" in text
    assert "Model − gold: not available, because no gold model" in text
    assert "Model − vanilla: not available, because no vanilla model" in text
    few = fabricate_evaluation(tmp_path / "few", "GradDiff", only=(TASK,))
    text = page(tmp_path / "b", collect([few], {}))
    assert "Membership inference: not available, because the holdout was not asked" in text
    assert "Utility: not available" in text
    less = fabricate_evaluation(tmp_path / "less", "GradDiff", only=("retain_text_choice",))
    text = page(tmp_path / "c", collect([less], {}))
    assert "Broken replies: not available" in text


def test_one_gold_model_has_no_noise_floor(tmp_path):
    evaluations, _ = fabricate_all(tmp_path / "study", names=("vanilla", "gold", "GradDiff"), gold_seeds=(0,))
    assert "Noise floor unknown: only one gold model was evaluated." in page(tmp_path / "a", collect(evaluations, {}))
    evaluations.append(fabricate_evaluation(tmp_path / "gold1", "gold", seed=1))
    text = page(tmp_path / "b", collect(evaluations, {}))
    assert "Noise floor unknown" not in text
    assert "between seeds of gold" in text


@pytest.mark.thorough
def test_folded_seeds_are_compared_one_by_one(tmp_path):
    evaluations, _ = fabricate_all(tmp_path / "study", names=("vanilla", "gold", "GradDiff"))
    evaluations.append(fabricate_evaluation(tmp_path / "again", "GradDiff", seed=1))
    single = collect(evaluations, {})
    folded = fold_seeds(single)
    assert len(folded.evaluations) == 3
    assert further_rows(further(folded, MadeUpBenchmark())) == further_rows(further(single, MadeUpBenchmark()))
    assert "Each seed is shown by itself." in page(tmp_path / "a", folded)


def test_no_row_of_a_nan(collected):
    estimate = exactly(math.nan, 0)
    (row,) = number_rows(
        collected, [Number(evaluation=collected.evaluations[0], task="t", metric="privleak", estimate=estimate)]
    )
    assert row["value"] is None


# The expected answers -----------------------------------------------------------------------------------------------------


def test_answers_come_from_the_benchmark_that_was_recorded(tmp_path, collected):
    settings = {"root": str(tmp_path / "people"), "num_people": 20, "num_public_figures": 4, "num_holdout": 3}
    settings |= {"num_general_faces": 4}
    config = json.dumps({"data": {"_target_": "mmunlearn.benchmarks.people.People", **settings}})
    first = collected.evaluations[0]
    study = replace(collected, evaluations=(replace(first, record=replace(first.record, config=config)),))
    found = expected_answers(study, None)
    tasks = People(**settings).tasks(["forget", "test", "reworded", "holdout"])
    assert found.missing == ""
    assert found.by_id == {example.id: example.answer for task in tasks for example in task.examples}
    assert not any(task.name.startswith("retain") for task in tasks)


def test_a_benchmark_that_is_gone_is_no_error(collected):
    config = json.dumps({"data": {"_target_": "mmunlearn.benchmarks.mllmu.MLLMUBench", "root": "/nowhere/at/all"}})
    first = collected.evaluations[0]
    study = replace(collected, evaluations=(replace(first, record=replace(first.record, config=config)),))
    assert "could not be opened" in expected_answers(study, None).missing
    assert expected_answers(collected, None).missing == "no evaluation recorded which benchmark it asked"


def test_nothing_is_opened_where_nothing_needs_it(tmp_path):
    folder = fabricate_evaluation(tmp_path, "vanilla", only=("retain_text_choice",))
    write_text(Run(folder).config, json.dumps({"data": {"_target_": "no.such.Benchmark"}}))
    assert expected_answers(collect([folder], {}), None).missing == "no task asked about the forget people"


# The judge ----------------------------------------------------------------------------------------------------------------


def rate(folder, scores, *, model="x", stale=()):
    """Ratings of the first answers of a task, added as `mmunlearn judge` adds them."""
    answers = read_json_lines(Run(folder).predictions(TASK))
    for answer, score in zip(answers, scores, strict=False):
        about = answer_mark(answer["key"], "former words" if answer["id"] in stale else answer["text"])
        judge = {"model": model, "endpoint": "here", "prompt": "1"}
        append_json_line(Run(folder).judged(TASK), {"id": answer["id"], "score": score, "judge": judge, "about": about})
    return [answer["id"] for answer in answers]


@pytest.fixture
def rated(tmp_path):
    folder = fabricate_evaluation(tmp_path / "rated", "GradDiff")
    count = len(read_json_lines(Run(folder).predictions(TASK)))
    ratings = [1 + number % 10 for number in range(count - 1)]
    rate(folder, [None, *ratings])
    other = {"id": "another question", "score": 10, "judge": {"model": "x"}, "about": "x"}
    append_json_line(Run(folder).judged(TASK), other)
    return folder, ratings


def test_the_mean_rating(rated, tmp_path):
    folder, ratings = rated
    collected = collect([folder], {})
    found = judged(collected)
    (number,) = found.numbers
    assert (number.task, number.metric, number.of, found.notes) == (TASK, "judge_factuality", "x", ())
    assert number.estimate.value == pytest.approx(sum(ratings) / len(ratings))
    assert (number.estimate.count, number.estimate.unscored) == (len(ratings), 1)
    assert 1 <= number.estimate.low < number.estimate.value < number.estimate.high <= 10
    text = page(tmp_path / "page", collected)
    assert "What the judge says" in text
    assert "do not compare" not in text.split("What the judge says")[1].split("<h3>")[0]
    assert "judge_factuality" in {row["metric"] for row in json.loads((tmp_path / "page" / "results.json").read_text())}


def test_ratings_of_replaced_answers_do_not_count(tmp_path):
    folder = fabricate_evaluation(tmp_path / "rated", "GradDiff")
    ids = rate(folder, [])
    rate(folder, [9] * 3, stale=ids[:3])
    collected = collect([folder], {})
    found = judged(collected)
    assert found.numbers == ()
    assert f"GradDiff, {TASK}: 3" in found.notes[0]
    assert "answers that have been replaced since" in page(tmp_path / "page", collected)
    rate(folder, [2] * 2)
    found = judged(collected)
    assert [number.estimate.value for number in found.numbers] == [2]
    assert f"GradDiff, {TASK}: 1" in found.notes[0]


def test_ratings_that_do_not_say_what_they_are_about_do_not_count(rated):
    folder, _ = rated
    file = Run(folder).judged(TASK)
    write_json_lines(file, [{k: v for k, v in line.items() if k != "about"} for line in read_json_lines(file)])
    assert judged(collect([folder], {})).numbers == ()


def test_the_judge_with_most_ratings_counts(rated):
    folder, ratings = rated
    rate(folder, [5, 5], model="newer")
    (number,) = judged(collect([folder], {})).numbers
    assert (number.of, number.estimate.value) == ("x", pytest.approx(sum(ratings) / len(ratings)))


@pytest.mark.thorough
def test_different_judges_are_told_apart_and_named(rated, tmp_path):
    folder, ratings = rated
    other = fabricate_evaluation(tmp_path / "other", "NPO")
    rate(other, ratings, model="newer")
    collected = collect([folder, other], {})
    found = judged(collected)
    assert {number.evaluation.label: number.of for number in found.numbers} == {"GradDiff": "x", "NPO": "newer"}
    text = page(tmp_path / "page", collected)
    assert "Not all ratings are by the same judge (x: GradDiff; newer: NPO)." in text


def test_mean_rating_at_the_lowest_mark_is_uncertain_upwards_only(rated):
    folder, ratings = rated
    file = Run(folder).judged(TASK)
    write_json_lines(file, [line | {"score": 1} for line in read_json_lines(file)])
    (number,) = judged(collect([folder], {})).numbers
    assert (number.estimate.value, number.estimate.low) == (1, 1)
    assert 1 < number.estimate.high < 10
    assert number.estimate.count == len(ratings) + 1


def test_without_ratings_there_is_no_word_of_a_judge(tmp_path, collected):
    assert judged(collected) == Judged()
    assert "judge" not in page(tmp_path, collected)
