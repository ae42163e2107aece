"""Membership inference of a made-up study, against counting pairs in its files."""

import json
import math
import zlib

import pytest
from made_up_study import all_tasks, fabricate_all, fabricate_evaluation

from mmunlearn.report.answers import Answers
from mmunlearn.report.collect import collect
from mmunlearn.report.inference import inference
from mmunlearn.run import Run

TASK, HOLDOUT = "forget_text_choice", "holdout_text_choice"
ANSWERS = {example.id: example.answer for task in all_tasks() for example in task.examples}
KNOWN = Answers(by_id=ANSWERS, missing="")


def stored(model, task):
    return [json.loads(line) for line in Run(model.path).predictions(task).read_text().splitlines()]


def loss(line):
    return sum(line["answer_log_probs"]) / len(line["answer_log_probs"])


def counted_auc(model, score):
    pairs = [(score(a), score(b)) for a in stored(model, TASK) for b in stored(model, HOLDOUT)]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def compressed(line):
    return sum(line["answer_log_probs"]) / len(zlib.compress(ANSWERS[line["id"]].encode()))


def test_against_counting(collected):
    found = inference(collected, KNOWN)
    assert set(found.tasks) == {"forget_image_choice", "forget_text_choice"}
    golds = collected.of_role("gold")
    for label in ("vanilla", "GradDiff"):
        (model,) = [model for model in collected.evaluations if model.label == label]
        rows = {row.attack: row for row in found.of(model, TASK).rows}
        for attack, score in (("loss", loss), ("zlib", compressed)):
            auc = counted_auc(model, score)
            gold = sum(counted_auc(one, score) for one in golds) / 2
            assert rows[attack].auc == pytest.approx(auc)
            assert rows[attack].auc_gold == pytest.approx(gold)
            assert rows[attack].distance == pytest.approx(abs(auc - gold))
            assert rows[attack].privleak == pytest.approx(100 * (gold - auc) / (1 - gold))
            assert rows[attack].low < auc < rows[attack].high
        assert (rows["loss"].members, rows["loss"].non_members) == (60, 50)
    (vanilla,) = collected.of_role("vanilla")
    assert found.of(vanilla, TASK).worst.distance == max(row.distance for row in found.of(vanilla, TASK).rows)
    assert found.of(vanilla, TASK).rows[0].auc > 0.9


def test_the_reference_is_the_base_model_and_never_gold(collected, folders):
    found = inference(collected, KNOWN)
    (base,), (vanilla,) = collected.of_role("base"), collected.of_role("vanilla")
    before = {line["id"]: loss(line) for task in (TASK, HOLDOUT) for line in stored(base, task)}
    expected = counted_auc(vanilla, lambda line: loss(line) - before[line["id"]])
    attacks = {row.attack: row.auc for row in found.of(vanilla, TASK).rows}
    assert attacks["reference"] == pytest.approx(expected)
    assert "reference" not in {row.attack for row in found.of(base, TASK).rows}
    without = inference(collect([path for path in folders[0] if path.name != "base"], {}), KNOWN)
    assert without.notes == ("reference: left out, because no base model was evaluated to compare with.",)


def test_the_rows(collected):
    numbers = inference(collected, KNOWN).numbers()
    (vanilla,) = collected.of_role("vanilla")
    mine = {(n.metric, n.of): n.estimate for n in numbers if n.evaluation is vanilla and n.task == TASK}
    metrics = {"membership_auc", "membership_tpr", "membership_distance", "privleak"}
    # The made-up predictions have no moments of the vocabulary, hence no Min-K++.
    assert set(mine) == {(m, a) for m in metrics for a in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")}
    assert math.isnan(mine["membership_auc", "min_k_plus_plus"].value)
    assert mine["membership_auc", "min_k_plus_plus"].unscored == 110
    assert mine["membership_auc", "loss"].low > 0.8


def test_without_answers_zlib_is_left_out_and_the_rest_stays(collected):
    found = inference(collected, Answers(by_id={}, missing="the benchmark could not be opened: /x/Quillon.csv"))
    assert not any("Quillon" in note for note in found.notes)
    assert any("zlib: left out" in note for note in found.notes)
    assert {row.attack for attacked in found.found for row in attacked.rows} == {
        "loss",
        "min_k",
        "min_k_plus_plus",
        "reference",
    }
    all_but_one = Answers(by_id=dict(list(ANSWERS.items())[1:]), missing="")
    (note,) = inference(collected, all_but_one).notes
    assert note == "zlib: left out, because 1 expected answers could not be read from the benchmark."


def test_without_gold_there_is_an_auc_but_no_distance(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "GradDiff"))
    for attacked in inference(collect(evaluations, {}), KNOWN).found:
        assert attacked.worst is None
        assert attacked.rows[0].auc > 0.5


def test_why_there_is_nothing(tmp_path):
    folder = fabricate_evaluation(tmp_path / "v", "vanilla", only=(TASK,))
    assert "the holdout was not asked" in inference(collect([folder], {}), KNOWN).missing
    whole = fabricate_evaluation(tmp_path / "w", "vanilla")
    Run(whole).predictions(TASK).unlink()
    Run(whole).predictions("forget_image_choice").unlink()
    assert "were not kept" in inference(collect([whole], {}), KNOWN).missing


def test_attacks_on_a_part_of_the_questions_say_so(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "gold"), gold_seeds=(0,))
    file = Run(evaluations[0]).predictions(TASK)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:40]))
    notes = inference(collect(evaluations, {}), KNOWN).notes
    assert "vanilla: only 40 of 60 predictions of “forget, text, choice” were kept." in notes
    assert "vanilla and gold were not asked the same questions of “forget, text, choice” and the holdout." in notes
    assert not any("image" in note for note in notes)
