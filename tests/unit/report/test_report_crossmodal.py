"""Facts asked with and without the picture, in a made-up study, against counting in its files."""

import json
from dataclasses import replace

import pytest
from made_up_study import all_tasks, fabricate_evaluation

from mmunlearn.report.answers import Answers
from mmunlearn.report.collect import collect
from mmunlearn.report.crossmodal import cross_modal_agreement
from mmunlearn.run import Run

TASK, TEXT = "forget_image_choice", "forget_text_choice"
ANSWERS = {example.id: example.answer for task in all_tasks() for example in task.examples}
KNOWN = Answers(by_id=ANSWERS, missing="")


def right(model, task):
    lines = map(json.loads, Run(model.path).scores(task).read_text().splitlines())
    return {line["id"]: line["metrics"]["accuracy"] > 0.5 for line in lines}


def test_against_counting(collected):
    found = cross_modal_agreement(collected, KNOWN)
    assert found.missing == ""
    examples = {task.name: task.examples for task in all_tasks()}

    def facts(task):
        return [(example.subject, example.answer) for example in examples[task]]

    image, text = facts(TASK), facts(TEXT)
    pairs = [
        (e.id, t.id)
        for e in examples[TASK]
        for t in examples[TEXT]
        if (fact := (e.subject, e.answer)) == (t.subject, t.answer) and image.count(fact) == text.count(fact) == 1
    ]
    assert 10 < len(pairs) < len(image)
    assert sorted(found.pairs[TASK].ids) == sorted(pairs)
    assert found.pairs[TASK].unpaired == len(image) + len(text) - 2 * len(pairs)
    for one in found.in_task(TASK):
        hits = right(one.evaluation, TASK), right(one.evaluation, TEXT)
        table = [(hits[0][i], hits[1][t]) for i, t in pairs]
        values = {name: estimate.value for name, estimate in one.estimates().items()}
        assert values["both_right"] == pytest.approx(table.count((True, True)) / len(pairs))
        assert values["text_only"] == pytest.approx(table.count((False, True)) / len(pairs))
        assert values["image_only"] == pytest.approx(table.count((True, False)) / len(pairs))
        assert one.found.agreement.count == len(pairs)
    assert len(found.in_task(TASK)) == len(collected.evaluations)


def test_a_model_that_lost_the_faces_only_knows_facts_in_text_only(tmp_path):
    evaluations = [fabricate_evaluation(tmp_path / name, name) for name in ("vanilla", "MMUnlearner")]
    found = {one.evaluation.label: one.found for one in cross_modal_agreement(collect(evaluations, {}), KNOWN).in_task(TASK)}
    assert found["vanilla"].both_right.value > 0.7
    assert found["MMUnlearner"].text_only.value > 0.5


def test_intervals_are_over_persons(collected):
    """Everything in one person's hands: no interval."""
    models = tuple(
        replace(m, scores={t: {i: replace(q, subject="one") for i, q in qs.items()} for t, qs in m.scores.items()})
        for m in collected.evaluations
    )
    found = cross_modal_agreement(
        replace(collected, evaluations=models), Answers(by_id={id_: id_[-4:] for id_ in ANSWERS}, missing="")
    )
    assert all(one.found.agreement.low != one.found.agreement.low for one in found.found)


def test_why_there_are_no_pairs(collected, tmp_path):
    gone = Answers(by_id={}, missing="the benchmark could not be opened: no person 'Quillon' in people.csv")
    found = cross_modal_agreement(collected, gone)
    assert found.missing == "the expected answers could not be read from the benchmark (the benchmark could not be opened)"
    assert not any("Quillon" in text for text in (found.missing, *found.notes))
    other = {id_: f"{number} {id_}" for number, id_ in enumerate(ANSWERS)}
    assert cross_modal_agreement(collected, Answers(by_id=other, missing="")).missing == "no fact was asked both ways"
    only = [fabricate_evaluation(tmp_path / "v", "vanilla", only=(TASK, "forget_text_generation"))]
    assert "with and without pictures" in cross_modal_agreement(collect(only, {}), KNOWN).missing


def test_questions_without_an_expected_answer_are_named(collected):
    lacking = [id_ for id_ in ANSWERS if id_.startswith("forget-image-choice")][:7]
    some = Answers(by_id={id_: answer for id_, answer in ANSWERS.items() if id_ not in lacking}, missing="")
    found = cross_modal_agreement(collected, some)
    assert found.notes == ("7 of 60 questions of “forget, image, choice” have no expected answer in the benchmark.",)
    assert not {image for image, _ in found.pairs[TASK].ids} & set(lacking)
    assert cross_modal_agreement(collected, KNOWN).notes == ()
