"""The counts that published tables of MLLMU-Bench give away, found again in folders of the published shape."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_shape import BLIND, ROWS, TRAINING_QUESTIONS, write_published_shape

from mmunlearn.benchmarks.base import Asking, Modality
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.config_enums import Protocol, Shots, TrainSplit
from mmunlearn.errors import NoQuestionsError
from mmunlearn.methods.finetune import FineTune
from mmunlearn.training.examples import training_data

ZERO, FEW = Asking(), Asking(shots=Shots.few_shot)
OFFICIAL_ZERO = Asking(protocol=Protocol.official)
OFFICIAL_FEW = Asking(protocol=Protocol.official, shots=Shots.few_shot)

PUBLISHED = [  # what was asked; the denominator; (percentage as printed, numerator)
    # MLLMU-Bench, thread 11 of its repository, forget 5: one person is shown in choices, two in gaps.
    ("5", OFFICIAL_FEW, "forget_image_choice", 120, [("49.2", 59), ("46.7", 56)]),
    ("5", OFFICIAL_FEW, "forget_image_cloze", 46, [("28.3", 13), ("8.7", 4)]),
    # MIP-Editor, table 1, forget 5, without shots.
    ("5", OFFICIAL_ZERO, "forget_image_choice", 125, [("39.20", 49), ("4.80", 6), ("49.60", 62)]),
    ("5", OFFICIAL_ZERO, "retain_image_choice", 2370, [("51.56", 1222), ("36.20", 858)]),
    ("5", OFFICIAL_ZERO, "retain_text_choice", 2375, [("47.20", 1121)]),
    # Open-MMunlearning, table 5, forget 10.
    ("10", OFFICIAL_FEW, "forget_image_choice", 245, [("36.73", 90), ("38.78", 95)]),
    ("10", OFFICIAL_FEW, "forget_image_cloze", 96, [("13.54", 13), ("12.50", 12)]),
    # Celebrities are asked without shots whatever is set.
    ("5", OFFICIAL_FEW, "real_image_choice", 766, [("29.90", 229), ("50.91", 390)]),
    ("5", OFFICIAL_ZERO, "real_image_choice", 766, [("29.90", 229), ("50.91", 390)]),
]


@pytest.fixture(scope="session")
def shape(tmp_path_factory):
    """All ten folders and the train splits; not to be changed."""
    root = tmp_path_factory.mktemp("published")
    write_published_shape(root)
    return root


@pytest.fixture(scope="session")
def opened(shape):
    """A benchmark of each ratio, each file of it read once for all tests."""
    return {ratio: open_shape(shape, forget_ratio=ratio) for ratio in ("5", "10", "15")}


def open_shape(root, **settings):
    return MLLMUBench(root=str(root / "MLLMU-Bench"), train_root=str(root / "baseline_train_split"), **settings)


def sizes(bench, asking=ZERO, splits=("forget", "test", "retain", "real")):
    return {task.name: len(task.examples) for task in bench.tasks(splits, asking)}


@pytest.mark.parametrize(("ratio", "asking", "name", "count", "printed"), PUBLISHED)
def test_denominators_of_published_tables(opened, ratio, asking, name, count, printed):
    """Each printed percentage is a whole number of right answers over this denominator, and rounds to what was printed."""
    assert sizes(opened[ratio], asking)[name] == count
    for percentage, right in printed:
        decimals = len(percentage.partition(".")[2])
        assert f"{100 * right / count:.{decimals}f}" == percentage


@pytest.mark.thorough
@pytest.mark.parametrize("asking", [ZERO, FEW, OFFICIAL_ZERO], ids=["fixed", "fixed few-shot", "official"])
@pytest.mark.parametrize("ratio", ["5", "10", "15"])
def test_everything_is_asked_where_nobody_is_shown_of_those_who_are_asked(opened, ratio, asking):
    forget, retain, real = ROWS[f"forget_{ratio}"], ROWS[f"retain_{100 - int(ratio)}"], ROWS["Retain_Set"]
    expected = {"test_image_choice": 5 * forget, "test_image_cloze": 2 * forget, "test_image_generation": 2 * forget}
    for split, people in (("forget", forget), ("retain", retain), ("real", real)):
        for kind in ("image", "text"):
            expected[f"{split}_{kind}_choice"] = 5 * people
            expected |= {f"{split}_{kind}_{name}": 2 * people for name in ("cloze", "generation")}
    expected["retain_image_choice"] -= 5
    expected["real_image_choice"] += 1
    assert sizes(opened[ratio], asking) == expected


@pytest.mark.parametrize("ratio", ["5", "10", "15"])
def test_published_shots_take_one_person_from_choices_and_two_from_gaps(opened, ratio):
    forget, retain = ROWS[f"forget_{ratio}"], ROWS[f"retain_{100 - int(ratio)}"]
    found = sizes(opened[ratio], OFFICIAL_FEW)
    for split in ("forget", "test"):
        assert found[f"{split}_image_choice"] == 5 * (forget - 1)
        assert found[f"{split}_image_cloze"] == 2 * (forget - 2)
        assert found[f"{split}_image_generation"] == 2 * forget
    assert found["forget_text_choice"] == 5 * (forget - 1)
    assert found["retain_text_choice"] == 5 * (retain - 1)
    # The person who is shown may be the one without these questions.
    assert found["retain_image_choice"] in (5 * (retain - 2), 5 * (retain - 1))
    assert found["retain_text_cloze"] == found["retain_image_cloze"] == 2 * (retain - 2)
    assert found["real_text_cloze"] == 2 * 153


def test_questions_of_the_paper(shape, opened):
    """20,754 questions, half of them with an image, are 18 for each row of Full_Set, Test_Set and Retain_Set."""
    rows = sum(ROWS[folder] for folder in ("Full_Set", "Test_Set", "Retain_Set"))
    assert (rows, 18 * rows) == (1153, 20_754)
    found = sizes(opened["15"])
    by_kind = {
        kind: sum(n for name, n in found.items() if f"_{kind}_" in name and "test" not in name) for kind in ("image", "text")
    }
    assert by_kind == {"image": 653 * 9 - 5 + 1, "text": 653 * 9}
    assert sum(n for name, n in found.items() if name.startswith("test_")) == 75 * 9
    free = sum(n for name, n in found.items() if name.endswith("generation") and name.split("_")[0] in ("forget", "retain"))
    assert free == 2000


def test_the_ten_folders_have_the_published_rows(shape):
    found = {}
    for folder in sorted((shape / "MLLMU-Bench").iterdir()):
        found[folder.name] = sum(pq.ParquetFile(path).metadata.num_rows for path in folder.glob("*.parquet"))
    assert found == ROWS
    assert len(list((shape / "MLLMU-Bench/Test_Set").glob("*.parquet"))) == 2


def test_every_folder_is_read(shape):
    """Full_Set is not asked about by itself, but can be trained on."""
    for ratio in ("5", "10", "15"):
        bench = open_shape(shape, forget_ratio=ratio)
        splits = bench.splits()
        people = [len({example.subject for example in part}) for part in (splits.forget, splits.retain, splits.full)]
        assert people == [ROWS[f"forget_{ratio}"], ROWS[f"retain_{100 - int(ratio)}"], 500]
        assert bench.problems() == {}
    everybody = bench.training("Full_Set")
    assert len({example.subject for example in everybody}) == 500
    assert {example.subject for example in splits.full} == {f"{number:03}" for number in range(1, 501)}


def test_flaws_are_counted_once_and_every_spelling_of_the_biography_is_read(opened):
    """The retained profile without image choices is all that is wrong with 500 biographies in twelve spellings."""
    bench = opened["5"]
    bench.tasks(("forget", "retain", "real", "test"))
    assert bench.problems() == {"profile without Image_Textual_Questions (retain_95)": 1}
    absent = {e.subject for t in bench.tasks(("retain",)) if t.name == "retain_text_choice" for e in t.examples}
    asked = {e.subject for t in bench.tasks(("retain",)) if t.name == "retain_image_choice" for e in t.examples}
    assert absent - asked == {BLIND}


def test_training_on_image_text_or_both(shape):
    """The published metadata is about images alone; text questions then come from Generation_Task, two for each person."""
    for modality, expected in (
        (Modality.image, [TRAINING_QUESTIONS * n for n in (25, 475, 500)]),
        (Modality.both, [TRAINING_QUESTIONS * n for n in (25, 475, 500)]),
        (Modality.text, [2 * n for n in (25, 475, 500)]),
    ):
        bench = open_shape(shape, forget_ratio="5", modality=modality)
        splits = bench.splits()
        parts = splits.forget, splits.retain, splits.full
        assert [len(part) for part in parts] == expected
        assert all((example.image is None) == (modality is Modality.text) for part in parts for example in part)
        counted = sum(n for flaw, n in bench.problems().items() if "no training questions in text" in flaw)
        assert counted == (3 if modality is Modality.text else 0)


def shown(root, seed=0):
    tasks = open_shape(root, forget_ratio="5", seed=seed).tasks(("test",))
    return {example.subject: example.image.key for example in tasks[0].examples}


def test_portrait_of_test_set_depends_on_seed_and_id_only(shape, tmp_path):
    """Not on the order of the rows, not on the file that a person stands in, not on who else is there."""
    before = shown(shape)
    assert len(before) == 25
    assert shown(shape, seed=1) != before
    copy = tmp_path / "copy"
    for folder in ("Test_Set", "forget_5"):
        shutil.copytree(shape / "MLLMU-Bench" / folder, copy / "MLLMU-Bench" / folder)
    (copy / "baseline_train_split").mkdir()
    paths = sorted((copy / "MLLMU-Bench/Test_Set").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(path) for path in paths])
    backwards = rows.take(list(range(len(rows) - 1, -1, -1)))
    pq.write_table(backwards.slice(0, 100), paths[0])
    pq.write_table(backwards.slice(100), paths[1])
    assert shown(copy) == before
    pq.write_table(backwards.slice(490, 3), paths[0])
    pq.write_table(backwards.slice(493), paths[1])
    assert shown(copy).items() <= before.items()
    assert 0 < len(shown(copy)) < 25


def test_the_published_train_splits_make_no_gold_text_model(shape):
    """They have no questions without a picture: what came out would be a plain gold model under another name."""
    with pytest.raises(NoQuestionsError, match=r"data\.split=retain_and_text.*without a picture"):
        training_data(open_shape(shape, forget_ratio="5"), FineTune(), TrainSplit.retain_and_text)
