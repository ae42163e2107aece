"""What is read, what is refused, and how people and models are called."""

import json
import math

import pytest
from made_up_study import FORGET, fabricate_evaluation, fabricate_training

from mmunlearn.errors import RunError
from mmunlearn.report.collect import collect, pseudonyms, read_replies, redact
from mmunlearn.run import Run, write_json, write_text

ONE_TASK = ("forget_image_choice",)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"version": "2"}, "version"),
        ({"protocol": "official"}, "protocol"),
        ({"benchmark": "mllmu"}, "name"),
        ({"shots": "few_shot"}, "shots"),
    ],
)
def test_different_benchmarks_do_not_stand_in_one_table(tmp_path, other, field):
    first = fabricate_evaluation(tmp_path / "a", "vanilla", only=ONE_TASK)
    second = fabricate_evaluation(tmp_path / "b", "gold", only=ONE_TASK, **other)
    with pytest.raises(RunError, match=f"differ in benchmark {field}") as caught:
        collect([first, second], {})
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_results_from_before_there_were_shots_are_zero_shot(tmp_path):
    first = fabricate_evaluation(tmp_path / "a", "vanilla", only=ONE_TASK)
    second = fabricate_evaluation(tmp_path / "b", "gold", only=ONE_TASK, shots="zero_shot")
    assert collect([first, second], {}).protocol == "fixed"
    third = fabricate_evaluation(tmp_path / "c", "gold", only=ONE_TASK, shots="few_shot")
    assert collect([third], {}).protocol == "fixed, few_shot"


def test_no_evaluation_is_an_error():
    with pytest.raises(RunError, match="at least one evaluation"):
        collect([], {})


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"results\.json.*mmunlearn score"):
        collect([tmp_path], {})


@pytest.mark.parametrize("content", ['{"schema": 2}', "[]", "{", '"text"'])
def test_results_of_another_kind_are_refused(tmp_path, content):
    write_text(Run(tmp_path).results, content)
    with pytest.raises(RunError, match=r"results\.json"):
        collect([tmp_path], {})


def test_an_unknown_role_is_refused(tmp_path):
    folder = fabricate_evaluation(tmp_path, "vanilla", only=ONE_TASK)
    results = json.loads(Run(folder).results.read_text())
    results["model"]["role"] = "vanila"
    write_json(Run(folder).results, results)
    with pytest.raises(RunError, match="unknown model role 'vanila'"):
        collect([folder], {})


def test_a_training_folder_that_is_not_there_is_refused(tmp_path):
    folder = fabricate_evaluation(tmp_path / "a", "vanilla", only=ONE_TASK)
    with pytest.raises(RunError, match="GradDiff"):
        collect([folder], {"GradDiff": tmp_path / "nothing"})


def test_order_and_labels(collected):
    labels = [model.label for model in collected.evaluations]
    assert labels == ["base", "vanilla", "gold (seed 0)", "gold (seed 1)", "GradAscent", "GradDiff", "MMUnlearner"]
    assert [training.label for training in collected.trainings] == ["GradAscent", "GradDiff", "MMUnlearner"]


def test_labels_are_unique_even_with_equal_seeds(tmp_path):
    twins = [fabricate_evaluation(tmp_path / name, "NPO", only=ONE_TASK) for name in "ab"]
    assert [model.label for model in collect(twins, {}).evaluations] == ["NPO (seed 0) #1", "NPO (seed 0) #2"]


def test_rows_hold_every_number(collected, folders):
    rows = collected.rows()
    for folder in folders[0]:
        results = json.loads(Run(folder).results.read_text())
        for task, metrics in results["tasks"].items():
            for metric, estimate in metrics.items():
                model = results["model"]
                expected = {"benchmark": "people", "version": "1", "protocol": "fixed", "role": model["role"]}
                expected |= {"fingerprint": model["fingerprint"], "seed": model["seed"], "task": task, "metric": metric}
                expected |= {"method": (model["method"] or "").split(".")[-1], **estimate}
                assert expected in rows
    json.dumps(rows, allow_nan=False)


def test_null_becomes_nan_and_null_again(tmp_path):
    folder = fabricate_evaluation(tmp_path, "vanilla", only=ONE_TASK)
    results = json.loads(Run(folder).results.read_text())
    results["tasks"]["forget_image_choice"]["accuracy"] |= {"value": None, "low": None, "high": None, "count": 0}
    write_json(Run(folder).results, results)
    study = collect([folder], {})
    assert math.isnan(study.evaluations[0].tasks["forget_image_choice"]["accuracy"].value)
    assert next(row for row in study.rows() if row["metric"] == "accuracy")["value"] is None


def test_chance_comes_from_the_number_of_options(collected):
    assert collected.chance["forget_image_choice"] == 0.25
    assert "forget_image_cloze" not in collected.chance


def test_different_numbers_of_questions_are_noted(tmp_path, collected):
    assert collected.notes == ()
    folders = [fabricate_evaluation(tmp_path / name, name, only=ONE_TASK) for name in ("vanilla", "gold")]
    results = json.loads(Run(folders[1]).results.read_text())
    for estimate in results["tasks"]["forget_image_choice"].values():
        estimate["count"] -= 7
    write_json(Run(folders[1]).results, results)
    (note,) = collect(folders, {}).notes
    assert "vanilla: 60" in note
    assert "gold: 53" in note


def test_different_goals_are_noted(tmp_path):
    a = fabricate_evaluation(tmp_path / "a", "GradDiff", only=ONE_TASK)
    b = fabricate_evaluation(tmp_path / "b", "MMUnlearner", only=ONE_TASK, goal="visual_only")
    (note,) = collect([a, b], {}).notes
    assert "MMUnlearner: visual_only" in note


def test_predictions_are_read_by_question(collected):
    texts = read_replies(collected.evaluations[1], "forget_image_cloze")
    assert len(texts) == 24
    assert read_replies(collected.evaluations[1], "no_such_task") == {}


def test_subjects_by_family(collected):
    assert collected.subjects({"forget"}) == frozenset(FORGET)
    assert len(collected.subjects()) > len(FORGET)


def test_pseudonyms_count_the_first_group_first_and_do_not_follow_the_alphabet():
    labels = pseudonyms(FORGET, [*FORGET, "Someone Else"])
    assert sorted(labels.values(), key=lambda label: int(label.split()[1])) == [f"person {n}" for n in range(1, 14)]
    assert labels["Someone Else"] == "person 13"
    assert list(labels) != FORGET
    assert labels == pseudonyms(reversed(FORGET), ["Someone Else"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("forget: ['Ann Lee', 'Jo']", "forget: ['person 1', 'person 2']"),
        ("id=ann lee_q3 Joanna 12", "id=person 1_q3 Joanna 12"),
        ("outputs/forget-ANN_Lee/model and ann  -  lee", "outputs/forget-person 1/model and person 1"),
        (
            "Rene\u0301e was asked about",
            "person 4 was asked about",
        ),  # as some systems write it
        ("nothing", "nothing"),
    ],
)
def test_redact(text, expected):
    assert redact(text, {"Ann Lee": "person 1", "Jo": "person 2", "12": "person 3", "Renée": "person 4"}) == expected
    assert redact(text, {}) == text


def test_a_training_without_a_logged_step_is_fine(tmp_path):
    folder = fabricate_evaluation(tmp_path / "a", "GradDiff", only=ONE_TASK)
    training = fabricate_training(tmp_path / "t", "GradDiff", steps=0)
    assert collect([folder], {"GradDiff": training}).trainings[0].steps == ()


@pytest.mark.parametrize(("protocol", "choice"), [("fixed", "text"), ("official", "")])
def test_which_score_decides_a_choice(tmp_path, protocol, choice):
    folder = fabricate_evaluation(tmp_path / "a", "GradDiff", only=ONE_TASK)
    results = json.loads(Run(folder).results.read_text())
    results["benchmark"] |= {"choice": "text", "protocol": protocol}
    write_json(Run(folder).results, results)
    assert collect([folder], {}).choice == choice
