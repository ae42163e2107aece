"""Utility against scipy's harmonic mean, and when a model is said to have collapsed."""

import json
import math
from dataclasses import replace

import pytest
from made_up_study import fabricate_all, fabricate_evaluation
from scipy import stats

from mmunlearn.report import verdict
from mmunlearn.report.collect import collect
from mmunlearn.report.condition import replies, usefulness, warnings
from mmunlearn.report.html import write_report
from mmunlearn.report.narrative import narrative
from mmunlearn.run import Run, write_json_lines

RETAIN, FORGET = "retain_text_generation", "forget_text_generation"


@pytest.fixture
def study(tmp_path):
    return fabricate_all(tmp_path, names=("vanilla", "gold", "GradDiff"), gold_seeds=(0,))


def say(folder, task, text):
    """Replace what a model wrote."""
    file = Run(folder).predictions(task)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    write_json_lines(file, [line | {"text": text(number, line["text"])} for number, line in enumerate(lines)])


def method(collected):
    (found,) = collected.of_role("unlearned")
    return found


def test_utility_against_scipy(study):
    collected = collect(*study)
    model = method(collected)
    (useful,) = [one for one in usefulness(collected) if one.evaluation is model]

    def mean(task, metric, form=lambda value: value):
        lines = [json.loads(line) for line in Run(model.path).scores(task).read_text().splitlines()]
        return sum(form(line["metrics"][metric]) for line in lines) / len(lines)

    expected = []
    for prefix in ("retain_image", "retain_text"):
        expected += [mean(f"{prefix}_cloze", "cloze_accuracy")]
        expected += [mean(f"{prefix}_generation", metric) for metric in ("rougeL", "probability")]
    for prefix in ("retain_image", "retain_text", "real_image", "real_text", "general_image"):
        expected += [mean(f"{prefix}_choice", "accuracy")]
        expected += [mean(f"{prefix}_choice", "truth_ratio", lambda ratio: max(0.0, 1 - ratio))]
    assert sorted(useful.components.values()) == pytest.approx(sorted(expected))
    assert useful.utility.value == pytest.approx(stats.hmean(expected))
    assert not any("Forget" in title or "Holdout" in title for title in useful.components)


def test_truth_ratios_of_free_answers_count_where_there_are_any(study):
    """As TOFU has it: each of probability, ROUGE-L and truth ratio; here of perturbed answers, which not every data set has."""
    collected = collect(*study)

    def with_ratios(model):
        questions = {
            id_: replace(scores, metrics={**scores.metrics, "truth_ratio": 0.1 * number})
            for number, (id_, scores) in enumerate(model.scores[RETAIN].items())
        }
        return replace(model, scores={**model.scores, RETAIN: questions})

    asked = replace(collected, evaluations=tuple(map(with_ratios, collected.evaluations)))
    before, after = (usefulness(each)[0].components for each in (collected, asked))
    (added,) = after.keys() - before.keys()
    assert added == "Retain, text, generation: truth ratio"
    count = len(collected.evaluations[0].scores[RETAIN])
    assert after[added] == pytest.approx(sum(max(0.0, 1 - 0.1 * number) for number in range(count)) / count)


def test_captions_counted_by_recall_have_their_truth_ratio_too(study):
    """Published rules count captions by ROUGE-L recall; most retained ones are compared with no wrong caption."""
    collected = collect(*study)
    task = "retain_image_caption"

    def with_captions(model):
        recall = replace(model.tasks[RETAIN]["rougeL"], value=0.7)
        metrics = {"rougeL_recall": recall, **{name: model.tasks[RETAIN][name] for name in ("rougeL", "probability")}}
        questions = {
            id_: replace(one, metrics={**one.metrics, "truth_ratio": math.nan if number % 3 else 0.25 * number})
            for number, (id_, one) in enumerate(model.scores[RETAIN].items())
        }
        return replace(model, tasks={**model.tasks, task: metrics}, scores={**model.scores, task: questions})

    asked = replace(collected, evaluations=tuple(map(with_captions, collected.evaluations)))
    before, after = (usefulness(each)[0].components for each in (collected, asked))
    count = len(collected.evaluations[0].scores[RETAIN])
    ratios = [max(0.0, 1 - 0.25 * number) for number in range(0, count, 3)]
    assert {title: value for title, value in after.items() if title not in before} == {
        "Retain, image, caption: ROUGE-L recall": 0.7,
        "Retain, image, caption: probability": asked.evaluations[0].tasks[task]["probability"].value,
        "Retain, image, caption: truth ratio": pytest.approx(sum(ratios) / len(ratios)),
    }


def test_a_model_that_was_asked_less_has_no_utility(study, tmp_path):
    few = fabricate_evaluation(tmp_path / "few", "NPO", only=("retain_image_choice",))
    collected = collect([*study[0], few], {})
    by_label = {one.evaluation.label: one.utility for one in usefulness(collected)}
    assert math.isnan(by_label["NPO"].value)
    assert len(by_label["NPO"].unscored) == 14
    assert by_label["GradDiff"].value > 0.5
    nothing = fabricate_evaluation(tmp_path / "nothing", "NPO", only=(FORGET,))
    assert usefulness(collect([nothing], {})) == ()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (lambda number, _: "", "100\u00a0% of its replies are empty"),
        (lambda number, _: " ".join([str(number)] * 20), "100\u00a0% of its replies go round in circles"),
        (lambda number, _: "I do not know.", "100\u00a0% of its replies are one and the same"),
        (lambda number, old: "" if number % 2 else old, "50\u00a0% of its replies are empty"),
    ],
)
def test_a_collapsed_model_is_called_so(study, text, what):
    say(study[0][1], RETAIN, text)
    collected = collect(*study)
    assert warnings(collected, method(collected)) == (f"{what} (retain, text, generation)",)
    (found,) = verdict.verdicts(collected)
    assert found.warnings == warnings(collected, method(collected))
    (sentence,) = narrative(collected).methods
    assert sentence.startswith(f"GradDiff has collapsed: {what} (retain, text, generation). A model that answers nothing")


def test_the_word_forgotten_carries_the_warning_on_the_page(study, tmp_path):
    def page(name):
        write_report(tmp_path / name, collect(*study), benchmark=None, show_subjects=False, title="t", banner=None, commands=[])
        return (tmp_path / name / "report.html").read_text()

    assert "⚠" not in page("before")
    say(study[0][1], RETAIN, lambda number, _: "")
    text = page("after")
    assert text.count("⚠ model collapsed") == 2  # in each of the method's findings
    assert "⚠ GradDiff has collapsed:" in text
    assert "⚠ collapsed" in text


def test_healthy_models_models_to_compare_with_and_forget_answers_are_not_warned_of(study):
    say(study[0][1], FORGET, lambda number, _: "")  # the method's forget answers are to change
    say(study[0][2], RETAIN, lambda number, _: "")  # gold
    collected = collect(*study)
    assert not any(one.warning for model in collected.evaluations for one in replies(collected, model))
    assert "collapsed" not in narrative(collected).methods[0]
    shares = {one.task: one.found.collapsed for one in replies(collected, method(collected))}
    assert shares[FORGET] == 1
    assert shares[RETAIN] == 0


def test_replies_that_vanilla_gives_too_are_no_collapse(study):
    for folder in study[0]:
        say(folder, RETAIN, lambda number, _: "I do not know.")
    collected = collect(*study)
    assert warnings(collected, method(collected)) == ()


def test_without_vanilla_a_collapse_is_still_seen(study):
    say(study[0][1], RETAIN, lambda number, _: "")
    collected = collect(study[0][1:], {})
    assert len(warnings(collected, method(collected))) == 1


def with_rouge(collected, model, value):
    estimate = replace(model.tasks[RETAIN]["rougeL"], value=value)
    changed = replace(model, tasks={**model.tasks, RETAIN: {**model.tasks[RETAIN], "rougeL": estimate}})
    return replace(collected, evaluations=tuple(changed if m is model else m for m in collected.evaluations)), changed


def test_fluent_nonsense_is_a_collapse_too(study):
    collected = collect(*study)
    (vanilla,) = collected.of_role("vanilla")
    usual = vanilla.tasks[RETAIN]["rougeL"].value
    ruined, model = with_rouge(collected, method(collected), 0.09 * usual)
    assert warnings(ruined, model) == ("9\u00a0% of vanilla’s ROUGE-L is left (retain, text, generation)",)
    hurt, model = with_rouge(collected, method(collected), 0.11 * usual)
    assert warnings(hurt, model) == ()
    ignorant, _ = with_rouge(ruined, vanilla, 0.09)  # what vanilla never could is not lost
    ruined_too, model = with_rouge(ignorant, next(iter(ignorant.of_role("unlearned"))), 0.0)
    assert warnings(ruined_too, model) == ()


def test_of_several_seeds_the_collapsed_one_is_named(study, tmp_path):
    collected = collect(*study)
    other = collect([fabricate_evaluation(tmp_path / "other", "GradDiff", seed=1)], {}).evaluations[0]
    say(study[0][1], RETAIN, lambda number, _: "")
    single = method(collected)
    folded = replace(single, label="GradDiff (2 seeds)", members=(replace(other, label="s1"), replace(single, label="s0")))
    assert warnings(collected, folded) == ("s0: 100\u00a0% of its replies are empty (retain, text, generation)",)
