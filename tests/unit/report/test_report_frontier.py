"""The choice among the settings of a sweep: halves of people, rule, budget, and numbers of the other half alone."""

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from mmunlearn.errors import RunError
from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.report.collect import Collected, Evaluation, QuestionScores, Record
from mmunlearn.report.frontier import frontier, frontier_csv, selection_record
from mmunlearn.report.frontier_plot import frontier_section
from mmunlearn.report.halves import first_half, halves, without_people
from mmunlearn.report.html import write_report

FORGET = [f"forget {number}" for number in range(7)]
RETAIN = [f"retain {number}" for number in range(12)]
TASKS = {
    "forget_image_choice": FORGET,
    "forget_text_choice": FORGET,
    "retain_image_choice": RETAIN,
    "retain_text_choice": RETAIN,
}
QUESTIONS = 3


def evaluation(name, role, values, *, seed=0, goal="erase", method="NPO"):
    """A model; `values(task, person, number)` is the score of one question."""
    scores = {
        task: {
            f"{task}-{person}-{number}": QuestionScores(subject=person, metrics={"accuracy": values(task, person, number)})
            for person in people
            for number in range(QUESTIONS)
        }
        for task, people in TASKS.items()
    }
    tasks = {
        task: {"accuracy": clustered_interval([q.metrics["accuracy"] for q in own.values()], [q.subject for q in own.values()])}
        for task, own in scores.items()
    }
    return Evaluation(
        path=Path("eval") / name,
        label=name,
        role=role,
        method=method if role == "unlearned" else "",
        seed=seed,
        fingerprint=name,
        tasks=tasks,
        scores=scores,
        record=Record(config="", environment={}, goal=goal),
    )


def knows(forget, retain, noise=0.0, *, text=None):
    """Scores that are a person's level; `noise` makes persons differ."""

    def value(task, person, number):
        own = random.Random(f"{task}{person}{number}").uniform(-noise, noise)
        level = retain if task.startswith("retain") else forget if text is None or "image" in task else text
        return min(1.0, max(0.0, level + own))

    return value


def study(*tried, gold=True):
    models = [evaluation("vanilla", "vanilla", knows(0.9, 0.9, 0.1))]
    models += [evaluation("gold", "gold", knows(0.3, 0.9, 0.1))] if gold else []
    return Collected(
        benchmark="b", version="1", protocol="fixed", evaluations=(*models, *tried), trainings=(), chance={}, notes=()
    )


def names(*tried):
    """Each model a setting of its own."""
    return {str(model.path): model.label for model in tried}


# --- halves ----------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_balanced_and_complete():
    parts = halves(study(), 0)
    assert parts.validation | parts.reported == {*FORGET, *RETAIN}
    assert not parts.validation & parts.reported
    assert len(parts.validation & set(FORGET)) == 3
    assert len(parts.validation & set(RETAIN)) == 6


def test_halves_depend_on_seed_and_people_alone():
    people = [f"p{number}" for number in range(20)]
    assert first_half(people, 0) == first_half(people[::-1] * 2, 0)
    assert first_half(people, 0) != first_half(people, 1)
    first = halves(study(), 3)
    assert halves(study(evaluation("other", "unlearned", knows(0.1, 0.2))), 3) == first


def test_every_person_is_chosen_equally_often():
    """Over many seeds; 4 standard errors of a share of one half."""
    people = [f"p{number}" for number in range(8)]
    found = [person for seed in range(2000) for person in first_half(people, seed)]
    assert all(abs(found.count(person) / 2000 - 0.5) < 4 * (0.25 / 2000) ** 0.5 for person in people)


def test_too_few_people_cannot_be_halved():
    only = study()
    few = without_people(only, set(FORGET[1:]))
    with pytest.raises(RunError, match=r"forget people.*about 1 of them"):
        halves(few, 0)


def test_estimates_without_some_people_are_those_of_a_study_that_never_asked_them():
    collected = study()
    kept = without_people(collected, set(FORGET[:3])).evaluations[0]
    expected = [
        (question.metrics["accuracy"], question.subject)
        for question in collected.evaluations[0].scores["forget_text_choice"].values()
        if question.subject in FORGET[3:]
    ]
    assert kept.tasks["forget_text_choice"]["accuracy"] == clustered_interval(*map(list, zip(*expected, strict=True)))
    assert kept.tasks["retain_text_choice"] == collected.evaluations[0].tasks["retain_text_choice"]
    assert {question.subject for question in kept.scores["forget_text_choice"].values()} == set(FORGET[3:])


def test_scores_of_single_questions_are_needed():
    collected = study()
    bare = replace(collected, evaluations=tuple(replace(model, scores={}) for model in collected.evaluations))
    with pytest.raises(RunError, match="mmunlearn score"):
        without_people(bare, {"forget 0"})


# --- the rule --------------------------------------------------------------------------------------------------------


def level(model, tasks, people):
    """Brute force: a mean of means of means."""
    return fmean(
        fmean(fmean(q.metrics["accuracy"] for q in model.scores[task].values() if q.subject == person) for task in tasks)
        for person in people
    )


def expected_choice(collected, tried, seed, keep):
    """The rule, written down a second time from the raw scores."""
    forget, retain = first_half(FORGET, seed), first_half(RETAIN, seed)
    image_and_text = (
        [task for task in TASKS if task.startswith("forget")],
        [task for task in TASKS if task.startswith("retain")],
    )
    vanilla, gold = collected.evaluations[:2]
    enough = [m for m in tried if level(m, image_and_text[1], retain) >= keep * level(vanilla, image_and_text[1], retain)]
    ideal = level(gold, image_and_text[0], forget)
    return min(enough, key=lambda m: abs(level(m, image_and_text[0], forget) - ideal)).label if enough else None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_the_rule_against_brute_force(seed, keep):
    draw = random.Random(seed)
    tried = [
        evaluation(f"setting {number}", "unlearned", knows(draw.random(), draw.uniform(0.4, 1), 0.2)) for number in range(8)
    ]
    collected = study(*tried)
    found, _ = frontier(collected, names(*tried), seed=seed, keep=keep)
    chosen = found.chosen("NPO")
    assert (chosen.setting.name if chosen else None) == expected_choice(collected, tried, seed, keep)
    if chosen:
        people = sorted(set(FORGET) - set(first_half(FORGET, seed)))
        model = next(model for model in tried if model.label == chosen.setting.name)
        assert chosen.reported.forget.value == pytest.approx(level(model, [t for t in TASKS if t.startswith("forget")], people))


def test_the_reported_half_decides_nothing():
    """Scores of the reported people are turned upside down: the choice stays, the reported numbers do not."""
    tried = [evaluation(f"s{level}", "unlearned", knows(level / 10, 0.9, 0.1)) for level in range(1, 8)]
    parts = halves(study(*tried), 0)

    def turned(model):
        def value(task, person, number):
            own = model.scores[task][f"{task}-{person}-{number}"].metrics["accuracy"]
            return own if person in parts.validation else 1 - own

        return evaluation(model.label, model.role, value)

    plain, _ = frontier(study(*tried), names(*tried), seed=0, keep=0.9)
    other, _ = frontier(study(*map(turned, tried)), names(*tried), seed=0, keep=0.9)
    assert [row.chosen for row in plain.rows] == [row.chosen for row in other.rows]
    assert [row.best for row in plain.rows] == [row.best for row in other.rows]
    for one, two in zip(plain.rows, other.rows, strict=True):
        assert one.validation.forget == two.validation.forget
        assert one.reported.forget.value == pytest.approx(1 - two.reported.forget.value)


def test_below_gold_is_as_far_as_above():
    tried = [evaluation(f"s{level}", "unlearned", knows(level, 0.9)) for level in (0.0, 0.25, 0.5)]
    found, _ = frontier(study(*tried), names(*tried), seed=0, keep=0.9)
    assert found.chosen("NPO").setting.name == "s0.25"
    assert "closest to gold" in found.rule


def test_without_gold_the_lowest_is_chosen():
    tried = [evaluation(f"s{level}", "unlearned", knows(level, 0.9)) for level in (0.0, 0.25, 0.5)]
    found, _ = frontier(study(*tried, gold=False), names(*tried), seed=0, keep=0.9)
    assert found.chosen("NPO").setting.name == "s0.0"
    assert "there is no gold model" in found.rule


def test_of_equally_near_ones_the_one_that_keeps_more():
    tried = [evaluation(f"s{keeps}", "unlearned", knows(0.3, keeps)) for keeps in (0.86, 0.95, 0.9)]
    found, _ = frontier(study(*tried), names(*tried), seed=0, keep=0.9)
    assert found.chosen("NPO").setting.name == "s0.95"


def test_a_method_none_of_whose_settings_keeps_enough_has_no_choice():
    tried = [evaluation("bad", "unlearned", knows(0.3, 0.5)), evaluation("good", "unlearned", knows(0.4, 0.9), method="PO")]
    found, shown = frontier(study(*tried), names(*tried), seed=0, keep=0.95)
    assert found.chosen("NPO") is None
    assert [model.label for model in shown.evaluations] == ["vanilla", "gold", "PO: good"]
    assert selection_record(found)["chosen"]["NPO"] is None


def test_visual_only_keeps_the_facts_too():
    """The text questions about the forget people are to be kept then, and gold_text is the ideal."""
    tried = [
        evaluation("damages facts", "unlearned", knows(0.3, 0.9, text=0.2), goal="visual_only"),
        evaluation("keeps facts", "unlearned", knows(0.4, 0.9, text=0.9), goal="visual_only"),
    ]
    base = study(*tried, evaluation("gold_text", "gold_text", knows(0.3, 0.9, text=0.9)))
    found, _ = frontier(base, names(*tried), seed=0, keep=0.9)
    assert found.chosen("NPO").setting.name == "keeps facts"
    assert found.aim.forget == ("forget_image_choice",)


def test_the_edge_against_brute_force():
    draw = random.Random(1)
    tried = [evaluation(f"s{n}", "unlearned", knows(draw.random(), draw.random(), 0.2)) for n in range(12)]
    found, _ = frontier(study(*tried), names(*tried), seed=0, keep=0.9)
    pairs = [(row.validation.distance, row.validation.retain.value) for row in found.rows]
    for row, (near, keeps) in zip(found.rows, pairs, strict=True):
        beaten = any(a <= near and b >= keeps and (a, b) != (near, keeps) for a, b in pairs)
        assert row.best is not beaten


# --- seeds and budget ------------------------------------------------------------------------------------------------


def test_seeds_of_a_setting_count_with_their_mean_and_as_runs():
    members = [evaluation(f"a{seed}", "unlearned", knows(0.2 + 0.2 * seed, 0.9), seed=seed) for seed in range(3)]
    single = evaluation("b", "unlearned", knows(0.6, 0.9))
    tried = {str(member.path): "a" for member in members} | {str(single.path): "b"}
    found, shown = frontier(study(*members, single), tried, seed=0, keep=0.9, failed=2)
    assert [(row.setting.name, len(row.setting.members)) for row in found.rows] == [("a", 3), ("b", 1)]
    assert found.rows[0].validation.forget.value == pytest.approx(0.4)
    assert found.chosen("NPO").setting.name == "a"  # 0.1 from gold on average, though b is nearer than one of the seeds
    assert shown.evaluations[-1].label == "NPO: a (3 seeds)"
    budget = selection_record(found)["budget"]
    assert budget == {"runs": 6, "failed": 2, "methods": {"NPO": {"settings": 2, "runs": 4}}}


def test_vanilla_is_needed_and_something_to_choose_from():
    tried = evaluation("a", "unlearned", knows(0.2, 0.9))
    collected = study(tried)
    with pytest.raises(RunError, match="vanilla"):
        frontier(replace(collected, evaluations=(tried,)), names(tried), seed=0, keep=0.9)
    with pytest.raises(RunError, match="nothing to choose from"):
        frontier(collected, {}, seed=0, keep=0.9)


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    tried = [evaluation(f"lr={level}", "unlearned", knows(level / 10, 0.95 - level / 100, 0.1)) for level in range(1, 7)]
    tried += [evaluation(f"po {level}", "unlearned", knows(level / 10, 0.9, 0.1), method="PO") for level in range(3, 6)]
    return frontier(study(*tried), names(*tried), seed=0, keep=0.9)


def test_csv_has_every_setting(found):
    rows = list(csv.DictReader(io.StringIO(frontier_csv(found[0]))))
    assert [row["setting"] for row in rows] == [row.setting.name for row in found[0].rows]
    assert sum(row["chosen"] == "true" for row in rows) == 2
    chosen = found[0].chosen("PO")
    line = next(row for row in rows if row["chosen"] == "true" and row["method"] == "PO")
    assert float(line["retain"]) == pytest.approx(chosen.reported.retain.value, abs=1e-5)
    assert float(line["validation_forget"]) == pytest.approx(chosen.validation.forget.value, abs=1e-5)


def test_the_record_is_json_and_names_nobody(found):
    text = json.dumps(selection_record(found[0]), allow_nan=False)
    assert not any(person in text for person in (*FORGET, *RETAIN))
    assert json.loads(text)["people"] == {
        "forget": {"validation": 3, "reported": 4},
        "retain": {"validation": 6, "reported": 6},
    }


def test_the_page_shows_choice_budget_and_plot(found, tmp_path):
    settings = {"benchmark": None, "show_subjects": False, "title": "A sweep", "banner": None, "commands": []}
    write_report(tmp_path, found[1], extras=[frontier_section(found[0])], **settings)
    page = (tmp_path / "report.html").read_text()
    assert '<h2 id="frontier">' in page
    assert found[0].rule.split(",")[0] in page
    assert page.count("★ chosen") == 2
    assert not any(person in page for person in (*FORGET, *RETAIN))
    assert "chosen on one half" in page
    write_report(tmp_path / "again", found[1], extras=[frontier_section(found[0])], **settings)
    assert (tmp_path / "again" / "report.html").read_text() == page
