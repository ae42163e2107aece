"""Words follow numbers: each case is built by hand so that only one word is right."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_study import record_recipe

from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.report import decisions, verdict
from mmunlearn.report.collect import Collected, Evaluation, QuestionScores, Record
from mmunlearn.report.narrative import VISUAL_ONLY, narrative
from mmunlearn.report.recipes import with_role_notes
from mmunlearn.report.tables import number, short_interval, summaries, terminal_table

PEOPLE = 15
TASKS = {"forget_image_choice": "accuracy", "forget_text_choice": "accuracy", "retain_image_choice": "accuracy"}


def model(role, *, label="", goal="erase", forget=0.25, text=0.25, retain=0.9, keep_scores=True):
    """A model that answers the given share of each person's 20 questions right, give or take one."""
    tasks, scores = {}, {}
    for (task, metric), share in zip(TASKS.items(), (forget, text, retain), strict=True):
        questions = {}
        for person in range(PEOPLE):
            right = round(20 * share) + (person % 3 - 1 if 0 < share < 1 else 0)
            for index in range(20):
                scored = QuestionScores(subject=f"p{person}", metrics={metric: float(index < right)})
                questions[f"{person}-{index}"] = scored
        values, subjects = [q.metrics[metric] for q in questions.values()], [q.subject for q in questions.values()]
        tasks[task] = {metric: clustered_interval(values, subjects)}
        scores[task] = questions if keep_scores else {}
    record = Record(config="", environment={}, goal=goal)
    return Evaluation(
        path=Path("none"),
        label=label or role,
        role=role,
        method=label,
        seed=0,
        fingerprint="f",
        tasks=tasks,
        scores=scores,
        record=record,
    )


def study(*models):
    return Collected(
        benchmark="b",
        version="1",
        protocol="fixed",
        evaluations=models,
        trainings=(),
        chance={"forget_image_choice": 0.25, "retain_image_choice": 0.25},
        notes=(),
    )


def test_rounded_models_are_no_reference():
    """Vanilla and gold asked again in 8 bits are rows, not seeds: nothing is held against them."""
    gold, vanilla, method = model("gold"), model("vanilla", forget=0.9, text=0.9), model("unlearned", label="m")
    others = (
        replace(model("gold", label="gold, int8", forget=0.6), precision="int8", fingerprint="g8"),
        replace(model("vanilla", label="vanilla, int8", forget=0.3), precision="int8", fingerprint="v8"),
    )
    alone, beside = study(vanilla, gold, method), study(vanilla, gold, *others, method)
    assert verdict.ideal_models(beside, "erase") == (gold,)
    assert beside.references("vanilla") == (vanilla,)
    assert verdict.gates(beside) == verdict.gates(alone)
    noted = " ".join(with_role_notes(beside).notes)
    assert "gold, int8 is shown, and nothing is held against it" in noted
    assert "nothing is held against it" not in " ".join(with_role_notes(alone).notes)
    assert study(others[0]).references("gold") == (others[0],), "alone it is all there is"


def words(*models):
    return [[finding.word for finding in method.findings] for method in verdict.verdicts(study(*models))]


VANILLA = model("vanilla", forget=0.9, text=0.9)
GOLD = model("gold", forget=0.3, text=0.3)


def test_memorised_and_forgotten():
    collected = study(VANILLA, GOLD, model("unlearned", label="M", forget=0.3, text=0.9))
    gate = verdict.gates(collected)[0]
    assert gate.state == "memorised"
    assert gate.difference.value == pytest.approx(0.6)
    assert [finding.word for finding in verdict.verdicts(collected)[0].findings] == ["forgotten", "not forgotten"]


def test_worse_than_gold_is_not_called_forgotten():
    assert words(VANILLA, GOLD, model("unlearned", label="M", forget=0.0)) == [["below gold", "below gold"]]


def test_inside_the_interval_but_surely_above_is_traces_left():
    noisy = model("gold", forget=0.3)
    estimate = noisy.tasks["forget_image_choice"]["accuracy"]
    slightly = model("unlearned", label="M", forget=0.35)
    shifted = slightly.tasks["forget_image_choice"]["accuracy"].value
    wide = {"accuracy": type(estimate)(value=estimate.value, low=0.1, high=0.5, count=300, unscored=0)}
    noisy.tasks["forget_image_choice"] = wide
    assert 0.1 < shifted < 0.5
    finding = verdict.verdicts(study(VANILLA, noisy, slightly))[0].findings[0]
    assert (finding.inside, finding.word) == (True, "traces left")
    assert finding.excess.low > 0


def test_without_a_difference_nothing_was_forgotten():
    ignorant = model("vanilla", forget=0.3, text=0.3)
    collected = study(ignorant, GOLD, model("unlearned", label="M", forget=0.3, text=0.3))
    assert [gate.state for gate in verdict.gates(collected)] == ["not shown", "not shown"]
    assert [finding.word for finding in verdict.verdicts(collected)[0].findings] == ["not shown", "not shown"]
    assert "nothing below can be called forgotten" in narrative(collected).known


def test_a_difference_just_below_the_margin_does_not_pass():
    barely = study(model("vanilla", forget=0.35), model("gold", forget=0.3))
    gate = verdict.gates(barely)[0]
    assert gate.difference.value == pytest.approx(0.05)
    assert gate.state == "not shown"
    assert verdict.gates(barely, margin=0.0)[0].state == "memorised"


def test_without_gold_it_is_unknown():
    collected = study(VANILLA, model("unlearned", label="M", forget=0.1))
    assert {gate.state for gate in verdict.gates(collected)} == {"unknown"}
    finding = verdict.verdicts(collected)[0].findings[0]
    assert (finding.word, finding.inside, finding.excess) == ("unknown", None, None)
    assert "unknown: no gold model was evaluated" in narrative(collected).known


def test_without_single_scores_the_gate_is_unknown_but_numbers_stay():
    bare = study(model("vanilla", forget=0.9, keep_scores=False), GOLD, model("unlearned", label="M", keep_scores=False))
    assert verdict.gates(bare)[0].reason == "the two models have no scored question in common"
    assert verdict.verdicts(bare)[0].findings[0].estimate.value == pytest.approx(0.25)
    assert math.isnan(verdict.verdicts(bare)[0].worst_person)


def test_the_visual_goal_keeps_facts_and_is_compared_with_gold_text():
    gold_text = model("gold_text", forget=0.3, text=0.9)
    kept = model("unlearned", label="V", goal="visual_only", forget=0.3, text=0.9)
    lost = model("unlearned", label="W", goal="visual_only", forget=0.3, text=0.3)
    assert words(VANILLA, GOLD, gold_text, kept, lost) == [
        ["forgotten", "facts kept, as intended"],
        ["forgotten", "facts damaged"],
    ]
    assert VISUAL_ONLY in narrative(study(VANILLA, GOLD, gold_text, kept)).remarks
    assert VISUAL_ONLY not in narrative(study(VANILLA, GOLD, model("unlearned", label="M"))).remarks


def test_kept_share_and_warning_at_chance():
    collected = study(VANILLA, GOLD, model("unlearned", label="A", retain=0.45), model("unlearned", label="B", retain=0.25))
    half, ruined = (method.kept[0] for method in verdict.verdicts(collected))
    assert half.share == pytest.approx(0.5)
    assert not half.at_chance
    assert ruined.at_chance
    assert "no better than guessing" in narrative(collected).methods[1]


def test_the_sentence_on_a_method_names_both_modalities():
    (sentence,) = narrative(study(VANILLA, GOLD, model("unlearned", label="M", forget=0.3, text=0.9))).methods
    assert sentence.startswith("M: image 0.30")
    assert "inside gold’s interval: forgotten; text 0.90" in sentence
    assert "outside gold’s interval: not forgotten. Kept of vanilla’s retain score: 100\u00a0% (image)." in sentence


def test_worst_person_is_the_highest_mean():
    assert verdict.verdicts(study(VANILLA, GOLD, model("unlearned", label="M", forget=0.3)))[0].worst_person == 0.35


def trained(folder, one, seed, **changes):
    """The same model with a record of its training, and weights of its own."""
    path = record_recipe(folder / f"{one.label}{seed}", one.role, seed, **changes)
    record = replace(one.record, config=f"model: {{path: {path}}}")
    return replace(one, seed=seed, label=f"{one.role} {seed}", fingerprint=f"{one.role}{seed}", record=record)


def test_noise_floor(tmp_path):
    assert math.isnan(verdict.noise_floor(study(GOLD)))
    golds = trained(tmp_path, GOLD, 0), trained(tmp_path, model("gold", forget=0.4, text=0.3), 1)
    assert verdict.noise_floor(study(*golds)) == pytest.approx(0.1)
    assert verdict.no_noise_floor(golds) == ""


@pytest.mark.parametrize(
    ("change", "why", "counted"),
    [
        ({"fingerprint": "gold0"}, "gold 0 and gold 1 have the same weights", 1),
        (
            {"seed": 0},
            "gold 0 and gold 1 have the same seed but different weights, so something that was not recorded differs",
            2,
        ),
        (
            {"record": Record(config="", environment={}, goal="erase")},
            "the settings of the training of gold 1 are not at hand",
            2,
        ),
        (None, "gold 0 and gold 1 were not trained alike (trainer.args.learning_rate)", 1),
    ],
)
def test_golds_that_are_no_seeds_of_one_recipe_have_no_noise_floor(tmp_path, change, why, counted):
    """And one that is known to be trained otherwise, or is the same model again, is no second witness of the ideal."""
    first, other = trained(tmp_path, GOLD, 0), model("gold", forget=0.5)
    second = (
        trained(tmp_path, other, 1, learning_rate=5e-5) if change is None else replace(trained(tmp_path, other, 1), **change)
    )
    assert verdict.no_noise_floor((first, second)) == why
    assert math.isnan(verdict.noise_floor(study(first, second)))
    assert verdict.ideal_models(study(first, second), "erase") == (first, second)[:counted]
    target = verdict.ideal(study(first, second), "erase", "forget_image_choice", "accuracy")
    assert target.value == pytest.approx({1: 0.3, 2: 0.4}[counted])


def test_of_several_golds_the_seeds_of_the_first_recipe_count(tmp_path):
    golds = [trained(tmp_path, model("gold", forget=share), seed) for seed, share in enumerate((0.3, 0.4))]
    golds.append(trained(tmp_path, model("gold", forget=0.9), 2, num_train_epochs=1))
    assert verdict.no_noise_floor(golds) == ""
    assert verdict.noise_floor(study(*golds)) == pytest.approx(0.1)
    notes = with_role_notes(study(*golds)).notes
    assert notes == ("Held against gold 0 without gold 2: they were not trained alike (trainer.args.num_train_epochs).",)


def test_one_model_under_two_roles_is_told():
    same = replace(GOLD, role="gold_text", label="gold_text")
    assert with_role_notes(study(replace(VANILLA, fingerprint="v"), GOLD, same)).notes == (
        "gold (gold) and gold_text (gold_text) have the same weights: one of the roles is wrong.",
    )


def test_two_golds_give_the_mean_and_cover_both_intervals():
    other = replace(model("gold", forget=0.4), fingerprint="other")
    target = verdict.ideal(study(GOLD, other), "erase", "forget_image_choice", "accuracy")
    both = [m.tasks["forget_image_choice"]["accuracy"] for m in (GOLD, other)]
    assert target.value == pytest.approx(0.35)
    assert (target.low, target.high) == (both[0].low, both[1].high)


def marks(*models):
    table = summaries(study(*models))[0]
    column = [column.task for column in table.columns].index("forget_image_choice")
    return {row.evaluation.label: row.cells[column].mark for row in table.rows if row.evaluation.role == "unlearned"}


def test_best_is_nearest_to_gold_not_lowest():
    near, zero = model("unlearned", label="near", forget=0.35), model("unlearned", label="zero", forget=0.0)
    assert marks(VANILLA, GOLD, near, zero) == {"near": "best", "zero": "worst"}
    assert marks(VANILLA, near, zero) == {"near": "worst", "zero": "best"}  # without gold the lower one


def test_one_method_or_equal_methods_are_not_ranked():
    same = [model("unlearned", label=label) for label in "ab"]
    assert set(marks(VANILLA, GOLD, same[0]).values()) == {""}
    assert set(marks(VANILLA, GOLD, *same).values()) == {""}


def test_retain_is_ranked_upwards_and_models_to_compare_with_are_not_ranked():
    good, bad = model("unlearned", label="good", retain=0.9), model("unlearned", label="bad", retain=0.3)
    table = summaries(study(VANILLA, GOLD, good, bad))[0]
    column = [column.task for column in table.columns].index("retain_image_choice")
    assert {row.evaluation.label: row.cells[column].mark for row in table.rows} == {
        "vanilla": "",
        "gold": "",
        "good": "best",
        "bad": "worst",
    }
    assert [row.starts_methods for row in table.rows] == [False, False, True, False]


def test_numbers_are_written_for_people():
    estimate = clustered_interval([0.0, 1.0, 1.0], ["a", "b", "c"])
    assert number(-0.001) == "0.00"
    assert number(-0.25) == "−0.25"
    assert number(math.nan) == "–"
    assert short_interval(estimate) == "0.00–1.00"
    assert short_interval(clustered_interval([0.0, 1.0], ["a", "a"])) == "no interval"
    assert "none" in short_interval(clustered_interval([math.nan], ["a"]))


def test_terminal_table_has_a_row_for_each_model_and_a_column_for_each_headline_task():
    table = terminal_table(study(VANILLA, GOLD, model("unlearned", label="M")))
    assert [column.header for column in table.columns] == ["model", "forget image", "forget text", "retain image"]
    assert list(table.columns[0].cells) == ["vanilla", "gold", "M"]
    assert next(iter(table.columns[1].cells)).startswith("0.90")


def written(collected, *shares):
    """The same models, asked for free answers too; each gives the share of each person's 20 answers right."""
    task, metric = "forget_text_generation", "rougeL"
    models = []
    for one, share in zip(collected.evaluations, shares, strict=True):
        # Another person each time is better or worse, so that differences have a spread.
        questions = {
            f"{person}-{index}": QuestionScores(
                subject=f"p{person}", metrics={metric: float(index < round(20 * share) - person % 2)}
            )
            for person in range(PEOPLE)
            for index in range(20)
        }
        estimate = clustered_interval([q.metrics[metric] for q in questions.values()], [q.subject for q in questions.values()])
        models.append(replace(one, tasks={**one.tasks, task: {metric: estimate}}, scores={**one.scores, task: questions}))
    return replace(collected, evaluations=tuple(models))


def test_free_answers_tell_damaged_facts_from_kept_ones():
    """Choices alone would say "kept": the right option needs less knowledge than writing the answer."""
    base = study(
        VANILLA, GOLD, model("gold_text", forget=0.3, text=0.9), model("unlearned", label="M", goal="visual_only", text=0.9)
    )
    for share, word in ((0.9, "facts kept, as intended"), (0.6, "facts damaged")):
        (method,) = verdict.verdicts(written(base, 0.9, 0.1, 0.9, share))
        found = {finding.task: finding.word for finding in method.findings}
        assert found["forget_text_choice"] == "facts kept, as intended"
        assert found["forget_text_generation"] == word
    erasing = study(VANILLA, GOLD, model("unlearned", label="M"))
    assert "forget_text_generation" not in verdict.forget_tasks(written(erasing, 0.9, 0.1, 0.9))


def test_facts_surely_below_gold_text_are_damaged_though_inside_its_wide_interval():
    wide = model("gold_text", forget=0.3, text=0.9)
    lowered = {**wide.tasks, "forget_text_choice": {"accuracy": replace(wide.tasks["forget_text_choice"]["accuracy"], low=0.2)}}
    less = model("unlearned", label="M", goal="visual_only", text=0.75)
    (method,) = verdict.verdicts(study(VANILLA, GOLD, replace(wide, tasks=lowered), less))
    finding = next(finding for finding in method.findings if finding.task == "forget_text_choice")
    assert finding.inside
    assert finding.word == "facts damaged"


def of_few(role, task, shares, goal="erase"):
    """A model that answers the given share of 4 questions about each of a few people right."""
    questions = {
        f"{person}-{index}": QuestionScores(subject=f"p{person}", metrics={"accuracy": float(index < 4 * share)})
        for person, share in enumerate(shares)
        for index in range(4)
    }
    estimate = clustered_interval([q.metrics["accuracy"] for q in questions.values()], [q.subject for q in questions.values()])
    whole = model(role, label=role, goal=goal)
    return replace(whole, tasks={task: {"accuracy": estimate}}, scores={task: questions})


def test_inside_a_wide_interval_of_gold_is_not_forgotten():
    """Two thirds of what was learned is left, but with three people gold's interval reaches to 0.87."""
    task = "forget_image_choice"
    vanilla, gold = of_few("vanilla", task, [1, 1, 1]), of_few("gold", task, [0, 0.25, 0.5])
    assert words(vanilla, gold, of_few("unlearned", task, [0.75, 0.75, 0.75])) == [["not decided"]]
    many = 12
    vanilla, gold = of_few("vanilla", task, [1] * many), of_few("gold", task, [0.25, 0.5, 0] * (many // 3))
    assert words(vanilla, gold, of_few("unlearned", task, [0.25, 0.25, 0.25] * (many // 3))) == [["forgotten"]]


@pytest.mark.parametrize(("people", "word"), [(12, "facts kept, as intended"), (2, "not decided")])
def test_facts_are_kept_only_where_it_is_shown(people, word):
    task = "forget_text_choice"
    known = [of_few(role, task, [1] * people) for role in ("vanilla", "gold_text")]
    gold = of_few("gold", task, ([0, 0.25] * people)[:people])
    assert words(*known, gold, of_few("unlearned", task, [1] * people, goal="visual_only")) == [[word]]


def test_facts_that_nobody_had_learned_are_not_kept():
    task = "forget_text_choice"
    models = [of_few(role, task, [0.25, 0.25, 0.5, 0] * 3) for role in ("vanilla", "gold", "gold_text")]
    assert words(*models, of_few("unlearned", task, [0.25, 0.25, 0.5, 0] * 3, goal="visual_only")) == [["not shown"]]


# Every word needs a bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ([0.75] * 6, "not forgotten"),
        ([0.75, 0.75], "not decided"),
        ([0.25, 0.5] * 3, "traces left"),
        ([0, 0, 0, 0, 0, 1], "not decided"),
        ([0] * 12, "forgotten"),
    ],
)
def test_not_forgotten_needs_a_bound_as_forgotten_does(shares, word):
    """Gold knows nothing of anybody, and 0.4375 is half of what vanilla learned. All but the last lie above gold's interval."""
    task, people = "forget_image_choice", len(shares)
    vanilla, gold = of_few("vanilla", task, [1, 0.75] * (people // 2)), of_few("gold", task, [0] * people)
    gold.tasks[task]["accuracy"] = replace(gold.tasks[task]["accuracy"], high=0.1)
    (method,) = verdict.verdicts(study(vanilla, gold, of_few("unlearned", task, shares)))
    (finding,) = method.findings
    assert finding.word == word
    assert finding.inside == (word == "forgotten")
    assert finding.margin == pytest.approx(0.4375)


def test_below_gold_needs_a_bound_too():
    task, gold_shares = "forget_image_choice", [0.5, 0.25] * 6
    vanilla, gold = of_few("vanilla", task, [1] * 12), of_few("gold", task, gold_shares)
    low = gold.tasks[task]["accuracy"].low
    for shares, word in (([0] * 12, "below gold"), ([0.25, 0.25] * 5 + [0.5, 0], "not decided")):
        other = of_few("unlearned", task, shares)
        if word == "not decided":  # below the interval, but not on the same questions
            value = other.tasks[task]["accuracy"]
            other.tasks[task]["accuracy"] = replace(value, value=low - 0.01)
            other = replace(other, scores={task: dict(list(gold.scores[task].items()))})
        assert words(vanilla, gold, other) == [[word]]


def test_without_single_scores_of_the_method_nothing_is_decided():
    bare = model("unlearned", label="M", forget=0.9, keep_scores=False)
    assert words(VANILLA, GOLD, bare)[0][0] == "not decided"


def test_facts_are_not_kept_where_gold_text_does_not_know_them():
    """A gold_text that learned no facts is like gold, and a model that lost them is like both."""
    ignorant = model("gold_text", forget=0.3, text=0.3)
    lost = model("unlearned", label="V", goal="visual_only", forget=0.3, text=0.3)
    (method,) = verdict.verdicts(study(VANILLA, GOLD, ignorant, lost))
    image, text = method.findings
    assert (image.word, image.reason) == ("forgotten", "")
    assert (text.word, text.reason) == ("unknown", "gold_text is not shown to know these facts better than gold")
    (sentence,) = narrative(study(VANILLA, GOLD, ignorant, lost)).methods
    assert "unknown (gold_text is not shown to know these facts better than gold)" in sentence


def test_gold_and_gold_text_are_never_mixed_up():
    """What each goal is held against: gold for erasing, gold_text for taking away the recognition."""
    gold_text = model("gold_text", forget=0.4, text=0.8)
    collected = study(
        VANILLA, GOLD, gold_text, model("unlearned", label="M"), model("unlearned", label="V", goal="visual_only")
    )
    erase, visual = verdict.verdicts(collected)
    now = {task: erase.evaluation.tasks[task]["accuracy"].value for task in TASKS}
    for method, ideals in ((erase, (0.3, 0.3)), (visual, (0.4, 0.8))):
        for finding, ideal in zip(method.findings, ideals, strict=True):
            assert finding.excess.value == pytest.approx(now[finding.task] - ideal)
    assert [finding.margin for finding in visual.findings] == pytest.approx([0.3, 0.25])  # (0.9 - 0.3) / 2, (0.8 - 0.3) / 2
    only_text = study(VANILLA, gold_text, model("unlearned", label="M"))
    assert [gate.state for gate in verdict.gates(only_text)] == ["memorised", "unknown"]
    assert {finding.word for finding in verdict.verdicts(only_text)[0].findings} == {"unknown"}


# Marks ---------------------------------------------------------------------------------------------------------------------


def broken(one):
    """The same model with one and the same free answer to everything: see `condition.warnings`."""
    task = "retain_text_generation"
    estimate = clustered_interval([0.0] * 4, list("abcd"))
    return replace(one, tasks={**one.tasks, task: {"rougeL": estimate}})


def test_a_collapsed_model_is_never_the_best():
    task = "retain_text_generation"
    knows = clustered_interval([0.9, 0.8, 0.7, 0.9], list("abcd"))
    vanilla = replace(VANILLA, tasks={**VANILLA.tasks, task: {"rougeL": knows}})
    near, far = model("unlearned", label="near", forget=0.35), model("unlearned", label="far", forget=0.6)
    farther = model("unlearned", label="farther", forget=0.8)
    assert marks(vanilla, GOLD, near, far, farther) == {"near": "best", "far": "", "farther": "worst"}
    assert marks(vanilla, GOLD, broken(near), far, farther) == {"near": "", "far": "best", "farther": "worst"}
    assert marks(vanilla, GOLD, near, far, broken(farther)) == {"near": "best", "far": "worst", "farther": ""}
    assert set(marks(vanilla, GOLD, broken(near), far).values()) == {""}
    assert set(marks(vanilla, GOLD, broken(near), broken(far)).values()) == {""}
    good, bad = model("unlearned", label="good", retain=0.9), model("unlearned", label="bad", retain=0.3)
    mid = model("unlearned", label="mid", retain=0.6)
    for models, expected in (
        ((good, broken(bad)), ["best", "worst"]),
        ((broken(good), bad), ["", ""]),
        ((broken(good), mid, bad), ["", "best", "worst"]),
    ):
        table = summaries(study(vanilla, GOLD, *models))[0]
        column = [column.task for column in table.columns].index("retain_image_choice")
        assert [row.cells[column].mark for row in table.rows if row.evaluation.role == "unlearned"] == expected


# Rules ---------------------------------------------------------------------------------------------------------------------


def test_every_rule_is_stated_with_its_number(monkeypatch):
    plain = dict(narrative(study(VANILLA, GOLD, model("unlearned", label="M"))).rules)
    assert "above 0.05 (report.gate_margin)" in plain["memorised"]
    assert "0.50 of vanilla − gold" in plain["forgotten"]
    assert "0.50 of vanilla − gold" in plain["not forgotten"]
    assert {"collapsed", "★ best", "noise floor", "intervals", "PrivLeak", "not decided"} <= plain.keys()
    assert "facts kept" not in plain
    visual = study(VANILLA, GOLD, model("unlearned", label="V", goal="visual_only"))
    assert "−0.50 of gold_text − gold" in dict(narrative(visual).rules)["facts kept"]
    assert "above 0.20" in dict(narrative(replace(visual, gate_margin=0.2)).rules)["facts kept"]
    monkeypatch.setattr(decisions, "UNDECIDED_SHARE", 0.25)
    assert "0.25 of vanilla − gold" in dict(decisions.rules(visual))["forgotten"]
