"""Several seeds as one row: the interval holds for other persons and other seeds, and only true twins are folded."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_study import fabricate_evaluation
from scipy import stats

from mmunlearn.metrics.statistics import clustered_interval
from mmunlearn.report import verdict
from mmunlearn.report.collect import collect
from mmunlearn.report.seeds import fold, fold_seeds, folded_estimate
from mmunlearn.run import Run, write_text

TASK = "forget_image_choice"


def tables_of(values):
    """[seeds, persons, questions] to one table a seed, and whom each question is about."""
    seeds, persons, questions = values.shape
    ids = [(f"{p}-{q}", f"p{p}") for p in range(persons) for q in range(questions)]
    tables = [{id_: float(x) for (id_, _), x in zip(ids, values[s].ravel(), strict=True)} for s in range(seeds)]
    return tables, dict(ids)


def study(generator, seeds, persons, *, person=0.2, seed=0.1, both=0.1, noise=0.4, questions=5):
    """Data of a crossed design with the true mean 3, where no bound of 0 or 1 cuts."""
    return (
        3.0
        + generator.normal(0, person, (1, persons, 1))
        + generator.normal(0, seed, (seeds, 1, 1))
        + generator.normal(0, both, (seeds, persons, 1))
        + generator.normal(0, noise, (seeds, persons, questions))
    )


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("seeds", "persons", "seed_effect", "studies"),
    [(3, 12, 0.0, 800), (3, 12, 0.1, 800), (5, 15, 0.1, 800), (3, 15, 0.3, 800), (3, 30, 0.05, 300)],
)
def test_the_interval_holds_the_true_mean_in_about_95_percent_of_studies(seeds, persons, seed_effect, studies):
    generator = np.random.default_rng(seeds * persons)
    held = held_by_persons_alone = 0
    for _ in range(studies):
        tables, subjects = tables_of(study(generator, seeds, persons, seed=seed_effect))
        found = folded_estimate(tables, subjects)
        held += found.low <= 3.0 <= found.high
        means = {id_: np.mean([table[id_] for table in tables]) for id_ in subjects}
        alone = clustered_interval(list(means.values()), list(subjects.values()))
        held_by_persons_alone += alone.low <= 3.0 <= alone.high
    assert 0.925 <= held / studies <= 0.985
    if seed_effect == 0.3:
        assert held_by_persons_alone / studies < 0.7


def test_the_parts_of_the_interval_are_those_of_a_two_way_analysis_of_variance():
    values = study(np.random.default_rng(1), 4, 10, seed=0.5)
    cells = values.mean(axis=2)
    seeds, persons = cells.shape
    mean = cells.mean()
    ms_seed = sum(persons * (row.mean() - mean) ** 2 for row in cells) / (seeds - 1)
    ms_cell = sum(
        (cells[s, p] - cells[s].mean() - cells[:, p].mean() + mean) ** 2 for s in range(seeds) for p in range(persons)
    ) / ((seeds - 1) * (persons - 1))
    added = (ms_seed - ms_cell) / (seeds * persons)
    between_persons = cells.mean(axis=0).var(ddof=1) / persons
    expected = math.sqrt(stats.t.ppf(0.975, persons - 1) ** 2 * between_persons + stats.t.ppf(0.975, seeds - 1) ** 2 * added)
    found = folded_estimate(*tables_of(values))
    assert found.value == pytest.approx(mean)
    assert found.high - found.value == pytest.approx(expected)
    assert found.value - found.low == pytest.approx(expected)


def test_identical_seeds_change_nothing():
    values = np.random.default_rng(2).integers(0, 2, (1, 12, 5)).astype(float)
    (table, *_), subjects = tables_of(values)
    alone = clustered_interval(list(table.values()), list(subjects.values()))
    assert folded_estimate([table, table, table], subjects) == alone


def test_the_order_of_seeds_and_of_questions_does_not_matter():
    tables, subjects = tables_of(study(np.random.default_rng(3), 3, 12))
    turned = [dict(reversed(table.items())) for table in reversed(tables)]
    one, other = folded_estimate(tables, subjects), folded_estimate(turned, subjects)
    assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high))


def test_shares_stay_between_0_and_1():
    tables, subjects = tables_of(np.array([np.ones((12, 5)), np.ones((12, 5)), np.zeros((12, 5))]))
    found = folded_estimate(tables, subjects)
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.value == pytest.approx(2 / 3)


def test_unscored_questions_are_counted_and_every_seed_weighs_the_same():
    values = np.full((2, 3, 2), math.nan)
    values[0] = [[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    values[1, 0, 0] = 0.0
    tables, subjects = tables_of(values)
    found = folded_estimate(tables, subjects)
    assert found.value == pytest.approx((5 / 6 + 0) / 2)
    assert (found.count, found.unscored) == (1, 5)
    nothing = folded_estimate([tables[0], dict.fromkeys(tables[0], math.nan)], subjects)
    assert math.isnan(nothing.value)
    assert (nothing.count, nothing.unscored) == (0, 6)


def test_one_person_has_no_interval():
    found = folded_estimate(*tables_of(np.random.default_rng(4).random((3, 1, 5))))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not math.isnan(found.value)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Vanilla, two golds and three seeds of GradDiff, none folded."""
    root = tmp_path_factory.mktemp("seeds")
    folders = [fabricate_evaluation(root / "vanilla", "vanilla")]
    folders += [fabricate_evaluation(root / f"gold{s}", "gold", seed=s) for s in (0, 1)]
    folders += [fabricate_evaluation(root / f"gd{s}", "GradDiff", seed=s) for s in (0, 1, 2)]
    return collect([*folders, fabricate_evaluation(root / "npo", "NPO")], {})


def test_seeds_of_one_model_become_one_row_at_its_place(several):
    folded = fold_seeds(several)
    assert [model.label for model in folded.evaluations] == ["vanilla", "gold (2 seeds)", "GradDiff (3 seeds)", "NPO"]
    row = folded.evaluations[2]
    assert [member.seed for member in row.members] == [0, 1, 2]
    for task, metrics in row.tasks.items():
        for metric, estimate in metrics.items():
            values = [member.tasks[task][metric].value for member in row.members]
            assert estimate.value == pytest.approx(np.mean(values), nan_ok=True)
            if not any(map(math.isnan, values)):
                assert row.spread(task, metric) == (min(values), max(values))
    question = next(iter(row.scores[TASK]))
    single = [member.scores[TASK][question].metrics["accuracy"] for member in row.members]
    assert row.scores[TASK][question].metrics["accuracy"] == pytest.approx(np.mean(single))
    assert folded.evaluations[3].spread(TASK, "accuracy") is None


def test_results_hold_the_single_seeds(several):
    folded = fold_seeds(several)
    assert folded.rows() == several.rows()
    assert [model.label for model in folded.unfolded().evaluations] == [model.label for model in several.evaluations]


def test_verdicts_speak_of_folded_models_and_keep_the_noise_floor(several):
    folded = fold_seeds(several)
    assert verdict.noise_floor(folded) == verdict.noise_floor(several) > 0
    assert verdict.gates(folded) == verdict.gates(several)
    assert verdict.ideal(folded, "erase", TASK, "accuracy") == verdict.ideal(several, "erase", TASK, "accuracy")
    row = verdict.verdicts(folded)[0]
    assert row.evaluation.label == "GradDiff (3 seeds)"
    singles = [one.findings[0] for one in verdict.verdicts(several)[:3]]
    assert row.findings[0].excess.value == pytest.approx(np.mean([finding.excess.value for finding in singles]))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 0},
        {"seed": None},
        {"method": "NPO"},
        {"role": "gold"},
        {"name": "GradDiff, gentle"},
        {"record": "visual_only"},
    ],
)
def test_what_differs_in_more_than_the_seed_is_not_folded(several, change):
    first, second = (model for model in several.evaluations if model.label.startswith("GradDiff") and model.seed != 2)
    if "record" in change:
        change = {"record": replace(second.record, goal=change["record"])}
    pair = replace(several, evaluations=(first, replace(second, **change)))
    assert not any(model.members for model in fold_seeds(pair).evaluations)
    assert fold_seeds(replace(several, evaluations=(first, second))).evaluations[0].members


@pytest.mark.parametrize(("first", "second"), [("M seed 0", "M seed 1"), ("M-s0", "M-s1"), ("M (seed 0)", "M"), ("M", "M")])
def test_a_label_may_name_the_seed(several, first, second):
    one, other = (model for model in several.evaluations if model.label.startswith("GradDiff") and model.seed != 2)
    pair = replace(several, evaluations=(replace(one, name=first), replace(other, name=second)))
    assert [model.label for model in fold_seeds(pair).evaluations] == ["M (2 seeds)"]


def trained(root, model, *, base="base", **changes):
    """The same evaluated model, with the configuration of its training beside its weights."""
    folder = root / f"run-{len(list(root.glob('run-*')))}"
    args = {"learning_rate": 1e-5, "report_to": [f"tracker-{model.seed}"]} | changes
    config = {"run": {"seed": model.seed, "dir": str(folder)}, "model": {"path": str(base)}, "data": {"split": "full"}}
    write_text(Run(folder).config, json.dumps(config | {"trainer": {"args": args}}))
    return replace(model, record=replace(model.record, config=f"model: {{path: {folder / 'model'}}}\n"))


def seeds_of_one(several):
    return [model for model in several.evaluations if model.label.startswith("GradDiff")]


def folded_labels(several, models):
    found = fold_seeds(replace(several, evaluations=tuple(models)))
    return [model.label for model in found.evaluations], found.notes


def test_the_same_recipe_is_one_model(several, tmp_path):
    same = [trained(tmp_path, model) for model in seeds_of_one(several)]
    assert folded_labels(several, same) == (["GradDiff (3 seeds)"], ())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-5}, "trainer.args.learning_rate"),
        ({"base": "another/base"}, "model.path"),
        ({"mask": "masks/random"}, "trainer.args.mask"),
        (
            {"learning_rate": 2e-5, "a": 1, "b": 1, "c": 1, "d": 1},
            "trainer.args.a, trainer.args.b, trainer.args.c, trainer.args.d, …",
        ),
    ],
)
def test_another_recipe_is_another_model(several, tmp_path, changes, named):
    models = seeds_of_one(several)
    mixed = [*(trained(tmp_path, model) for model in models[:2]), trained(tmp_path, models[2], **changes)]
    labels, notes = folded_labels(several, mixed)
    assert labels == ["GradDiff (2 seeds)", "GradDiff (seed 2)"]
    assert notes == (
        "GradDiff (seed 0), GradDiff (seed 1), GradDiff (seed 2): not all are shown as seeds of one model, because "
        f"GradDiff (seed 1) and GradDiff (seed 2) were not trained alike ({named}).",
    )


def test_a_training_that_is_not_on_record_is_no_recipe(several, tmp_path):
    models = seeds_of_one(several)
    known, lost = [trained(tmp_path, model) for model in models[:2]], trained(tmp_path, models[2])
    Path(lost.record.config.split()[2].rstrip("}")).parent.joinpath("config.yaml").unlink()
    labels, notes = folded_labels(several, [*known, lost])
    assert labels == ["GradDiff (2 seeds)", "GradDiff (seed 2)"]
    assert "because the settings of the training of GradDiff (seed 2) are not at hand." in notes[0]
    unknown = [replace(model, record=replace(model.record, config="")) for model in models]
    labels, notes = folded_labels(several, unknown)
    assert labels == [model.label for model in models]
    assert len(notes) == 1


def test_equal_weights_are_no_other_seed(several, tmp_path):
    one, other, _ = (trained(tmp_path, model) for model in seeds_of_one(several))
    labels, notes = folded_labels(several, [one, replace(other, fingerprint=one.fingerprint)])
    assert labels == ["GradDiff (seed 0)", "GradDiff (seed 1)"]
    assert "have the same weights" in notes[0]


def test_a_model_that_was_trained_before_counts_by_its_own_recipe_and_seed(several, tmp_path):
    """A vanilla model of the same settings and seed in another folder is the same; one of another seed is another."""
    models = seeds_of_one(several)

    def vanilla(name, **changes):
        config = {"run": {"seed": 0}, "model": {"path": "hub/model"}, "trainer": {"args": {"learning_rate": 1.0}}} | changes
        write_text(Run(tmp_path / name).config, json.dumps(config))
        return tmp_path / name / "model"

    first = trained(tmp_path, models[0], base=vanilla("a"))
    for place, (changes, folded) in enumerate(
        (({}, True), ({"run": {"seed": 1}}, False), ({"model": {"path": "hub/other"}}, False), ({"trainer": {}}, False))
    ):
        second = trained(tmp_path, models[1], base=vanilla(f"b{place}", **changes))
        labels, notes = folded_labels(several, [first, second])
        assert (len(labels) == 1) is folded, changes
        assert folded or "(model.path)" in notes[0]


def test_other_settings_of_other_methods_need_no_note(several, tmp_path):
    """Two learning rates with one seed are two rows, and nobody would take them for seeds."""
    one, _, _ = seeds_of_one(several)
    other = replace(one, label="GradDiff #2", fingerprint="x")
    labels, notes = folded_labels(several, [trained(tmp_path, one), trained(tmp_path, other, learning_rate=1.0)])
    assert (len(labels), notes) == (2, ())


def test_ratios_keep_their_range(several):
    """A mean of ratios may exceed 1, though these do not; three seeds that agree on 0 say nothing about the rest."""
    ids = [(f"{p}-{q}", f"p{p}") for p in range(4) for q in range(3)]
    tables = [{id_: (0.0, 0.5, 1.0, 1.0)[int(id_[0])] for id_, _ in ids} for _ in range(3)]
    free, share = (folded_estimate(tables, dict(ids), bounds=bounds) for bounds in ((0.0, math.inf), None))
    assert free.high > 1 == share.high
    assert free.low == share.low
    alike = [
        replace(model, scores={TASK: {i: replace(q, metrics={"truth_ratio": 0.0}) for i, q in model.scores[TASK].items()}})
        for model in seeds_of_one(several)
    ]
    assert math.isnan(fold(alike).tasks[TASK]["truth_ratio"].high)
    nothing = folded_estimate([dict.fromkeys(dict(ids), 0.0)] * 3, dict(ids), bounds=(0.0, math.inf))
    assert math.isnan(nothing.high)


def test_without_scores_of_questions_the_interval_covers_those_of_all_seeds(several):
    bare = [replace(model, scores={}) for model in several.evaluations if model.label.startswith("GradDiff")]
    (row,) = fold_seeds(replace(several, evaluations=tuple(bare))).evaluations
    estimates = [model.tasks[TASK]["accuracy"] for model in bare]
    found = row.tasks[TASK]["accuracy"]
    assert (found.low, found.high) == (min(e.low for e in estimates), max(e.high for e in estimates))
    assert row.path == Path(bare[0].path)
