"""Published numbers: exact, and shown only where they compare."""

from dataclasses import replace

import pytest
import yaml
from made_up_study import FORGET, fabricate_evaluation

from mmunlearn.report.collect import collect
from mmunlearn.report.published import LLAVA_7B, QUESTIONS, QWEN25_3B, Asked, asked_of, base_model, comparable
from mmunlearn.report.published_tables import TABLES
from mmunlearn.report.words import FAMILIES, METRIC_CARDS, PRIMARY, parse_task
from mmunlearn.run import Run, write_text

LLAVA = Asked(benchmark="mllmu", protocol="official", shots="zero_shot", base_model=LLAVA_7B, forget_ratio=5)


def numbers(**wanted):
    return [one for table in TABLES for one in table.numbers() if all(getattr(one, k) == v for k, v in wanted.items())]


@pytest.mark.parametrize(
    ("wanted", "printed"),
    [
        (
            {"source": "MIP-Editor, Table 1", "base_model": LLAVA_7B, "benchmark": "mllmu", "method": "NPO"},
            "48.00 47.26 .5388 .4907 46.40 51.52",
        ),
        (
            {"source": "MIP-Editor, Table 1", "base_model": QWEN25_3B, "benchmark": "clear", "method": "MIP"},
            "3.19 24.05 .0707 .2684 .0926 .3631",
        ),
        ({"source": "MLLMU-Bench, Table 2 (some rows)", "method": "MANU"}, "41.25 .491 43.38 .542 49.57"),
        ({"source": "CLEAR (ACL), Table 1", "method": "SCRUB"}, ".49 .52 .36 .85"),
        ({"source": "CLEAR (first version), Table 4", "method": "IDK"}, ".48 .51 .30 -74.40"),
        ({"source": "Open-MMunlearning, Table 2", "method": "MMUnlearner"}, ".632 .739 .411 .745 .889 .756 .590"),
        ({"source": "Open-MMunlearning, Table 5 (some rows)", "method": "Retain-only"}, "36.73 12.50 .207"),
        ({"source": "VL-Eraser", "method": "MMUnlearner"}, "32.6 41.9 .462 .458 22.4 24.6"),
        ({"source": "SineProject, average score", "method": "MMUnlearner", "forget_ratio": 10}, "52.4"),
    ],
)
def test_copied_digit_by_digit(wanted, printed):
    assert [one.printed for one in numbers(**wanted)] == printed.split()


@pytest.mark.parametrize(
    ("share", "people"),
    [("39.20", 125), ("4.80", 125), ("56.80", 125), ("50.40", 125)],
)
def test_published_shares_are_of_so_many_questions(share, people):
    """Where the number of questions is known a printed share must be a whole number of them: a slip of a digit would show."""
    found = numbers(source="MIP-Editor, Table 1", benchmark="mllmu", printed=share)
    assert found
    right = float(found[0].value) * people
    assert right == pytest.approx(round(right), abs=1e-9)


def test_every_forget_accuracy_of_mllmu_is_a_share_of_125_and_of_clear_one_of_188():
    for one in numbers(source="MIP-Editor, Table 1"):
        if one.printed == "30.80":
            assert "30.80" in one.caution  # the source's own
        elif one.column.metric == "accuracy" and one.column.task.startswith("forget"):
            total = {"mllmu": 125, "clear": 188}[one.benchmark]
            assert min(abs(100 * right / total - float(one.printed)) for right in range(total + 1)) < 0.0051, one


def test_values_are_on_our_scale_and_keep_their_digits():
    (one,) = numbers(source="MIP-Editor, Table 1", benchmark="mllmu", base_model=LLAVA_7B, printed="48.00")
    assert (float(one.value), one.shown()) == (0.48, "0.4800")
    (log,) = numbers(method="IDK", printed="-74.40")
    assert (float(log.value), log.shown()) == (-74.4, "−74.40")
    for one in (one for table in TABLES for one in table.numbers()):
        if one.column.metric:
            assert 0 <= one.value <= 1, one


def test_every_row_has_a_number_for_every_column_and_every_column_a_task_that_exists():
    assert len(TABLES) == 21
    for table in TABLES:
        assert {len(row) for row in table.rows().values()} == {len(table.columns)}, table.source
        assert table.benchmark in ("mllmu", "clear")
        for column in table.columns:
            assert bool(column.task) == bool(column.metric)
            if column.task:
                name = parse_task(column.task)
                assert name.family in FAMILIES
                assert PRIMARY[name.kind] == column.metric
                assert column.metric in METRIC_CARDS


def test_questions_that_we_do_not_ask_correspond_to_no_task_of_ours():
    columns = {
        column for table in TABLES if table.benchmark == "clear" for column in table.columns if "other questions" in column.name
    }
    assert len(columns) == 4
    assert not any(column.task or column.metric for column in columns)


def test_shown_where_everything_is_the_same():
    found = comparable(LLAVA, TABLES)
    assert found.reason == ""
    assert {table.source for table in found.tables} == {
        "MIP-Editor, Table 1", "MLLMU-Bench, Table 2 (some rows)", "PAVA, Table 1", "VL-Eraser", "SineProject, average score",
    }  # fmt: skip
    assert {(t.benchmark, t.base_model, t.forget_ratio) for t in found.tables} == {("mllmu", LLAVA_7B, 5)}
    tenth = comparable(replace(LLAVA, forget_ratio=10, shots="few_shot"), TABLES)
    assert "Open-MMunlearning, Table 5 (some rows)" in {table.source for table in tenth.tables}
    assert "MIP-Editor, Table 1" not in {table.source for table in tenth.tables}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmark": "people"}, "the benchmark is people"),
        ({"protocol": "fixed"}, "evaluation.protocol=official"),
        ({"forget_ratio": None}, "which share"),
        ({"forget_ratio": 7}, "none is known for LLaVA-1.5-7B with 7 %"),
        ({"base_model": ""}, "base model"),
        ({"base_model": "Qwen2.5-VL-3B", "shots": "few_shot"}, "few-shot"),
    ],
)
def test_otherwise_the_reason_is_told(change, said):
    found = comparable(replace(LLAVA, **change), TABLES)
    assert found.tables == ()
    assert said in found.reason


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "llava-hf/llava-1.5-7b-hf", "path": ""}, LLAVA_7B),
        ({"path": "MLLMMU/LLaVA_Vanilla"}, LLAVA_7B),
        ({"path": "/data/Qwen2.5-VL-3B-Instruct"}, QWEN25_3B),
        ({"name": "llava-hf/llava-1.5-7b-hf", "path": "/data/Qwen2.5-VL-3B-Instruct"}, QWEN25_3B),
        ({"path": "llava-hf/llava-1.5-13b-hf"}, ""),
        ({"path": "llava-hf/llava-v1.6-vicuna-7b-hf"}, ""),
        ({"path": "outputs/demo/vanilla/model", "name": ""}, ""),
        ({}, ""),
    ],
)
def test_base_models_by_their_names(section, expected):
    assert base_model(section) == expected


def test_a_base_model_is_found_through_the_trainings(tmp_path):
    vanilla, unlearned = tmp_path / "vanilla", tmp_path / "unlearned"
    write_text(Run(vanilla).config, "model: {name: llava-hf/llava-1.5-7b-hf, path: ''}")
    write_text(Run(unlearned).config, f"model: {{name: '', path: {vanilla / 'model'}}}")
    assert base_model({"path": str(unlearned / "model")}) == LLAVA_7B
    write_text(tmp_path / "adapter" / "adapter_config.json", '{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}')
    assert base_model({"path": str(tmp_path / "adapter")}) == QWEN25_3B
    write_text(Run(vanilla).config, f"model: {{path: {unlearned / 'model'}}}")  # a circle ends
    assert base_model({"path": str(unlearned / "model")}) == ""


def recorded(root, role, **model):
    folder = fabricate_evaluation(root / role, role, benchmark="mllmu", protocol="official", only=("forget_image_choice",))
    config = {"data": {"forget_ratio": model.pop("ratio", "05")}, "model": model}
    write_text(Run(folder).config, yaml.safe_dump(config))
    return folder


def test_what_was_asked_comes_from_the_recorded_configurations(tmp_path):
    same = [recorded(tmp_path / "a", role, name="llava-hf/llava-1.5-7b-hf") for role in ("vanilla", "NPO")]
    here = asked_of(collect(same, {}))
    assert replace(here, questions={}, forget_people=None) == LLAVA
    assert here.questions == {"forget_image_choice": 5 * len(FORGET)}
    assert here.forget_people == len(FORGET)
    assert "forget_image_choice has 60 questions, the published one 125" in comparable(here, TABLES).reason
    assert "12 people are to be forgotten, in the published data 25" in comparable(here, TABLES).reason
    other = recorded(tmp_path / "b", "GradDiff", path="Qwen/Qwen2.5-VL-3B-Instruct", ratio=10)
    mixed = asked_of(collect([*same, other], {}))
    assert (mixed.base_model, mixed.forget_ratio) == ("", None)


def test_a_part_of_the_questions_does_not_compare():
    found = comparable(replace(LLAVA, everything=False), TABLES)
    assert found.tables == ()
    assert "evaluation.limit" in found.reason
    assert comparable(LLAVA, TABLES).tables


FIVE = {"forget_image_choice": 125, "forget_text_choice": 125, "retain_image_choice": 2370, "retain_text_choice": 2375}
FEW = {"forget_image_choice": 120, "forget_text_choice": 120, "retain_image_choice": 1}
CLEAR = {"forget_image_recognition": 188, "retain_image_recognition": 395, "real_image_recognition": 151}


@pytest.mark.parametrize(
    ("change", "people", "counts"),
    [({}, 25, FIVE), ({"shots": "few_shot"}, 25, FEW), ({"benchmark": "clear"}, 10, CLEAR)],
)
def test_only_as_many_questions_and_people_as_published_compare(change, people, counts):
    here = replace(LLAVA, **change, questions=counts | {"test_image_choice": 17}, forget_people=people)
    assert comparable(here, TABLES).tables
    part = replace(here, questions={task: n for task, n in counts.items() if task.startswith("forget")})
    assert comparable(part, TABLES).tables, "a task that was not asked contradicts nothing"
    for task, count in counts.items():
        found = comparable(replace(here, questions=counts | {task: count - 1 if count > 1 else 1}), TABLES)
        assert bool(found.tables) == (count == 1)
        assert found.tables or f"{task} has {count - 1:,} questions, the published one {count:,}" in found.reason
    more = replace(here, questions=counts | {"forget_image_choice": 126, "forget_image_recognition": 189})
    assert "questions, the published one" in comparable(more, TABLES).reason
    assert "people are to be forgotten" in comparable(replace(here, forget_people=people + 1), TABLES).reason


def test_published_counts_are_those_that_percentages_are_shares_of():
    """Independent of the table: which counts give the printed percentages with two digits."""
    printed = {("mllmu", "forget_image_choice"): [39.20, 4.80], ("mllmu", "retain_image_choice"): [51.56, 36.20]}
    printed |= {("mllmu", "retain_text_choice"): [47.20], ("clear", "forget_image_recognition"): [72.34]}
    printed |= {("clear", "retain_image_recognition"): [73.42, 23.04]}
    for (benchmark, task), percents in printed.items():
        count = QUESTIONS[benchmark, 5, "zero_shot"][task]
        for percent in percents:
            assert any(round(100 * right / count, 2) == percent for right in range(count + 1)), (task, percent)
