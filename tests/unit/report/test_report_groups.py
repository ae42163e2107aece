"""Evaluations by several rules: expanded, kept apart, and refused where they ought to be alike."""

import io
import json

import pytest
from made_up_study import fabricate_evaluation
from omegaconf import OmegaConf
from rich.console import Console

from mmunlearn.config import Config
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.report.collect import collect
from mmunlearn.report.groups import collect_groups, expanded, labels_of_people
from mmunlearn.report.job import run_report
from mmunlearn.report.tables import terminal_table
from mmunlearn.run import Run, write_json

TASKS = ("forget_image_choice", "forget_text_choice", "retain_image_choice", "retain_text_choice")


def ways(root, name, which=(("official", "zero_shot"), ("fixed", "few_shot"), ("fixed", "zero_shot"))):
    for protocol, shots in which:
        fabricate_evaluation(Run(root).under(protocol, shots).root, name, protocol=protocol, shots=shots, only=TASKS)
    return root


def change(folder, **benchmark):
    results = json.loads(Run(folder).results.read_text())
    results["benchmark"] |= benchmark
    write_json(Run(folder).results, results)


def test_a_folder_of_several_ways_stands_for_all_of_them(tmp_path):
    both = ways(tmp_path / "both", "vanilla")
    plain = fabricate_evaluation(tmp_path / "plain", "gold", only=TASKS)
    found = expanded([both, plain, tmp_path / "nothing", plain])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "both/fixed-zero_shot", "both/fixed-few_shot", "both/official-zero_shot", "plain", "nothing",
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"nothing.*mmunlearn score"):
        collect_groups([both, tmp_path / "nothing"], {})


def test_our_rules_come_first_and_every_group_holds_its_own(tmp_path):
    official = fabricate_evaluation(tmp_path / "o", "NPO", protocol="official", only=TASKS)
    groups = collect_groups([official, ways(tmp_path / "v", "vanilla"), ways(tmp_path / "g", "gold")], {})
    assert [group.protocol for group in groups] == ["fixed", "official", "fixed, few_shot"]
    assert [[model.label for model in group.evaluations] for group in groups] == [
        ["vanilla", "gold"], ["vanilla", "gold", "NPO"], ["vanilla", "gold"],
    ]  # fmt: skip


def test_without_our_rules_the_first_group_is_the_main_one(tmp_path):
    few = fabricate_evaluation(tmp_path / "few", "vanilla", protocol="official", shots="few_shot", only=TASKS)
    zero = fabricate_evaluation(tmp_path / "zero", "vanilla", protocol="official", shots="zero_shot", only=TASKS)
    assert [group.protocol for group in collect_groups([few, zero], {})] == ["official, few_shot", "official"]


def test_another_benchmark_is_a_group_of_its_own_and_never_displaces_the_first(tmp_path):
    first = fabricate_evaluation(tmp_path / "a", "vanilla", benchmark="clear", protocol="official", only=TASKS)
    second = fabricate_evaluation(tmp_path / "b", "vanilla", only=TASKS)
    assert [group.benchmark for group in collect_groups([first, second], {})] == ["clear", "people"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("version", "differ in benchmark version"),
        ("choice", "differ in benchmark choice"),
        ("questions", "different questions"),
    ],
)
def test_under_the_same_rules_these_must_be_the_same(tmp_path, field, message):
    folders = [ways(tmp_path / name, name) for name in ("vanilla", "gold")]
    protocol = "fixed" if field == "choice" else "official"
    change(Run(folders[1]).under(protocol, "zero_shot").root, **{field: "another"})
    with pytest.raises(RunError, match=message):
        collect_groups(folders, {})
    change(Run(folders[0]).under(protocol, "zero_shot").root, **{field: "another"})
    if field != "version":  # other rules may have other questions and another choice score
        assert len(collect_groups(folders, {})) == 3


def test_the_choice_score_does_not_matter_under_the_published_rules(tmp_path):
    folders = [ways(tmp_path / name, name) for name in ("vanilla", "gold")]
    change(Run(folders[1]).under("official", "zero_shot").root, choice="another")
    assert len(collect_groups(folders, {})) == 3


def test_people_of_all_groups_are_numbered_together(tmp_path):
    one = collect([fabricate_evaluation(tmp_path / "a", "vanilla", only=("forget_image_choice",))], {})
    other = collect([fabricate_evaluation(tmp_path / "b", "vanilla", protocol="official", only=("retain_image_choice",))], {})
    labels = labels_of_people([one, other])
    assert set(labels) == one.subjects() | other.subjects()
    assert len(set(labels.values())) == len(labels)


def report(folders, output, **settings):
    config = OmegaConf.structured(Config())
    config.run.dir = str(output)
    config.report.evaluations = [str(folder) for folder in folders]
    config.report.update(settings)
    return Run(run_report(config))


def test_the_page_keeps_rules_apart(tmp_path, capsys):
    folders = [ways(tmp_path / name, name, (("fixed", "zero_shot"), ("official", "zero_shot"))) for name in ("vanilla", "gold")]
    seeds = [fabricate_evaluation(tmp_path / f"gd{s}", "GradDiff", seed=s, only=TASKS) for s in (0, 1)]
    run = report([*folders, *seeds], tmp_path / "report")
    page = run.report.read_text(encoding="utf-8")
    assert "By other rules" in page
    assert "people 1, protocol official, zero_shot" in page
    assert "GradDiff (2 seeds)" in page
    assert "None is shown for people 1, protocol fixed, zero_shot: the benchmark is people" in page
    rows = json.loads(run.results.read_text())
    assert {row["protocol"] for row in rows} == {"fixed", "official"}
    assert {row["seed"] for row in rows if row["role"] == "unlearned"} == {0, 1}
    assert "protocol official" in capsys.readouterr().err
    apart = report([*folders, *seeds], tmp_path / "apart", fold_seeds=False)
    assert "2 seeds" not in apart.report.read_text(encoding="utf-8")
    assert "GradDiff (seed 1)" in apart.tables("md").read_text(encoding="utf-8")


def test_the_gate_margin_is_a_setting(tmp_path):
    folders = [fabricate_evaluation(tmp_path / name, name, only=TASKS) for name in ("vanilla", "gold", "NPO")]
    said = {}
    for margin in (0.05, 0.99):
        said[margin] = report(folders, tmp_path / str(margin), gate_margin=margin).report.read_text(encoding="utf-8")
    assert "exceeds 0.05" in said[0.05]
    assert "does not exceed 0.99" in said[0.99]
    assert "nothing below can be called forgotten" in said[0.99]
    for margin in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=r"report\.gate_margin"):
            report(folders, tmp_path / "bad", gate_margin=margin)


def test_a_terminal_of_80_columns_shows_eight_models_and_five_tasks(tmp_path):
    names = ["base", "vanilla", "gold", "gold_text", "GradAscent", "GradDiff", "MMUnlearner", "NPO"]
    tasks = (*TASKS, "forget_text_generation")
    folders = [fabricate_evaluation(tmp_path / name, name, only=tasks, goal="visual_only") for name in names]
    study = collect(folders, {})
    text = io.StringIO()
    Console(file=text, width=80).print(terminal_table(study))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(name in text.getvalue() for name in names)  # no label is broken
    assert text.getvalue().count("–") == len(names) * 5  # nor is an interval
    assert "…" not in text.getvalue()
