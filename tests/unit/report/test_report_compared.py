"""Differences, noise floor and forget quality of a made-up study, against sums over its files and against scipy."""

import json
import math
from dataclasses import replace

import pytest
from made_up_study import fabricate_all, fabricate_evaluation, record_recipe
from scipy import stats

from mmunlearn.metrics.statistics import Estimate
from mmunlearn.metrics.truth_ratio import js_similarity
from mmunlearn.report.collect import collect
from mmunlearn.report.compared import differences, forget_qualities, surely
from mmunlearn.run import Run

TASK = "forget_image_choice"


def scores(model, task, metric):
    lines = Run(model.path).scores(task).read_text().splitlines()
    return {line["id"]: line["metrics"][metric] for line in map(json.loads, lines)}


def by_label(collected):
    return {model.label: model for model in collected.evaluations}


def test_differences_against_sums_over_the_files(collected):
    models, found = by_label(collected), differences(collected)
    golds = [scores(gold, TASK, "accuracy") for gold in collected.of_role("gold")]
    vanilla = scores(models["vanilla"], TASK, "accuracy")
    for label in ("vanilla", "base", "GradDiff"):
        mine = scores(models[label], TASK, "accuracy")
        one = found.of(models[label], TASK)
        to_gold = sum(value - (golds[0][id_] + golds[1][id_]) / 2 for id_, value in mine.items()) / len(mine)
        assert one.to_gold.value == pytest.approx(to_gold)
        assert one.to_gold.low < to_gold < one.to_gold.high
        if label != "vanilla":
            assert one.to_vanilla.value == pytest.approx(sum(mine[id_] - vanilla[id_] for id_ in mine) / len(mine))
        means = [sum(gold.values()) / len(gold) for gold in golds]
        assert one.gap.gap == pytest.approx(sum(mine.values()) / len(mine) - sum(means) / 2)
        assert one.gap.noise_floor == pytest.approx(abs(means[0] - means[1]))
    assert found.of(models["vanilla"], TASK).to_vanilla is None
    assert not any(one.evaluation.role == "gold" for one in found.found)
    assert found.noise_floor(TASK) == pytest.approx(abs(means[0] - means[1]))


def test_every_headline_task_but_the_holdout(collected):
    tasks = differences(collected).tasks
    assert tasks[:2] == ("forget_image_choice", "forget_text_choice")
    assert {"retain_image_choice", "real_text_choice", "general_image_choice"} <= set(tasks)
    assert not any(task.startswith("holdout") for task in tasks)


def test_one_gold_has_no_noise_floor_and_no_gold_no_gap(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "gold", "GradDiff"), gold_seeds=(0,))
    one = differences(collect(evaluations, {}))
    assert math.isnan(one.noise_floor(TASK))
    rows = {(number.metric, number.of): number.estimate for number in one.numbers() if number.task == TASK}
    assert math.isnan(rows["noise_floor", "accuracy"].value)
    assert rows["noise_floor", "accuracy"].count == 1
    none = differences(collect(evaluations[:2], {}))
    assert {number.metric for number in none.numbers()} == {"difference_to_vanilla"}


def test_the_visual_goal_is_held_against_gold_text(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "gold"), gold_seeds=(0,))
    evaluations.append(fabricate_evaluation(tmp_path / "gold_text", "gold_text", seed=3))
    evaluations.append(fabricate_evaluation(tmp_path / "seeing", "MMUnlearner", goal="visual_only"))
    collected = collect(evaluations, {})
    (method,), (gold_text,) = collected.of_role("unlearned"), collected.of_role("gold_text")
    mine, ideal = scores(method, TASK, "accuracy"), scores(gold_text, TASK, "accuracy")
    expected = sum(mine[id_] - ideal[id_] for id_ in mine) / len(mine)
    assert differences(collected).of(method, TASK).to_gold.value == pytest.approx(expected)
    ratios = [list(scores(model, TASK, "truth_ratio").values()) for model in (method, gold_text)]
    assert forget_qualities(collected).of(method, TASK).p_value == pytest.approx(stats.ks_2samp(*ratios).pvalue)


def test_surely():
    def estimate(low, high):
        return Estimate(value=(low + high) / 2, low=low, high=high, count=9, unscored=0)

    assert [surely(estimate(*ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), (0, 0))] == [
        "above", "below", "", "", ""
    ]  # fmt: skip
    assert surely(None) == surely(estimate(math.nan, math.nan)) == ""


def test_forget_quality_against_scipy(collected):
    models, found = by_label(collected), forget_qualities(collected)
    golds = [list(scores(gold, TASK, "truth_ratio").values()) for gold in collected.of_role("gold")]
    for label in ("vanilla", "GradDiff"):
        mine = list(scores(models[label], TASK, "truth_ratio").values())
        quality = found.of(models[label], TASK)
        assert quality.p_value == pytest.approx(min(stats.ks_2samp(mine, gold).pvalue for gold in golds))
        assert quality.count == len(mine)
        likeness = [js_similarity(mine, gold) for gold in golds]
        assert likeness[0] != likeness[1]
        assert quality.similarity == min(likeness)
    between = [found.of(gold, TASK).p_value for gold in collected.of_role("gold")]
    assert between == pytest.approx([stats.ks_2samp(*golds).pvalue] * 2)
    assert found.of(models["vanilla"], TASK).p_value < 0.001 < min(between)


def test_a_question_that_a_gold_was_not_scored_on_counts_for_nobody(collected):
    id_ = next(iter(collected.evaluations[0].scores[TASK]))

    def without(model):
        questions = model.scores[TASK]
        unscored = replace(questions[id_], metrics=questions[id_].metrics | {"truth_ratio": math.nan})
        return replace(model, scores={**model.scores, TASK: {**questions, id_: unscored}})

    gold = collected.of_role("gold")[0]
    changed = replace(collected, evaluations=tuple(without(m) if m is gold else m for m in collected.evaluations))
    counts = {quality.evaluation.label: quality.count for quality in forget_qualities(changed).found if quality.task == TASK}
    assert set(counts.values()) == {len(collected.evaluations[0].scores[TASK]) - 1}


def test_gold_models_that_are_no_seeds_of_one_another_have_no_noise_floor(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "gold", "GradDiff"))
    golds = evaluations[-2:]

    def floor():
        collected = collect(evaluations, {})
        found = differences(collected)
        (method,) = collected.of_role("unlearned")
        return found, found.of(method, TASK).gap, collected

    assert floor()[0].no_floor == ""
    record_recipe(golds[1], "gold", 1, num_train_epochs=9)
    found, gap, collected = floor()
    assert math.isnan(found.noise_floor(TASK))
    assert found.no_floor == "gold (seed 0) and gold (seed 1) were not trained alike (trainer.args.num_train_epochs)"
    assert gap.golds == 1
    first = collected.of_role("gold")[0]
    mine = collected.of_role("unlearned")[0].tasks[TASK]["accuracy"].value
    assert gap.gap == pytest.approx(mine - first.tasks[TASK]["accuracy"].value)
    Run(golds[1].parent / "trained-gold1").config.unlink()
    found, gap, _ = floor()
    assert found.no_floor == "the settings of the training of gold (seed 1) are not at hand"
    assert math.isnan(gap.noise_floor)
    assert gap.golds == 2


def test_a_part_of_the_questions_is_told(collected):
    """One question fewer on the other side: counted as such in the difference, and in the forget quality."""
    (vanilla,) = collected.of_role("vanilla")
    id_ = next(iter(vanilla.scores[TASK]))
    less = replace(vanilla, scores={**vanilla.scores, TASK: {i: q for i, q in vanilla.scores[TASK].items() if i != id_}})
    changed = replace(collected, evaluations=tuple(less if m is vanilla else m for m in collected.evaluations))
    method = changed.of_role("unlearned")[0]
    one = differences(changed).of(method, TASK)
    assert (one.to_vanilla.count, one.to_vanilla.unscored) == (59, 1)
    assert (one.to_gold.count, one.to_gold.unscored) == (60, 0)
    quality = forget_qualities(changed).of(less, TASK)
    assert (quality.count, quality.asked) == (59, 59)


def test_why_there_is_no_forget_quality(tmp_path):
    evaluations, _ = fabricate_all(tmp_path, names=("vanilla", "GradDiff"))
    assert forget_qualities(collect(evaluations, {})).missing == "no gold model was evaluated"
    written = [fabricate_evaluation(tmp_path / name, name, only=("forget_image_generation",)) for name in ("vanilla", "gold")]
    assert "comes with wrong answers to compare with" in forget_qualities(collect(written, {})).missing
    kept = [fabricate_evaluation(tmp_path / f"kept-{name}", name, only=("retain_text_choice",)) for name in ("vanilla", "gold")]
    assert forget_qualities(collect(kept, {})).missing == "no task asked about the forget people"
    chosen = [fabricate_evaluation(tmp_path / f"chosen-{name}", name, only=(TASK,)) for name in ("vanilla", "gold")]
    without = [
        replace(model, tasks={TASK: {"accuracy": model.tasks[TASK]["accuracy"]}}) for model in collect(chosen, {}).evaluations
    ]
    assert "kept no truth ratio" in forget_qualities(replace(collect(chosen, {}), evaluations=tuple(without))).missing
    gold_text = fabricate_evaluation(tmp_path / "gold_text", "gold_text")
    assert "gold model of its goal" in forget_qualities(collect([evaluations[0], gold_text], {})).missing
