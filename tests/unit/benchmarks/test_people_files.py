import json
import os
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmunlearn.benchmarks.base import Ask, Asking
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people import People, base_examples
from mmunlearn.benchmarks.people_files import write_people
from mmunlearn.benchmarks.prompts import BLANK, with_instruction
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def bench(people_root):
    return MLLMUBench(
        name="people", root=str(people_root / "MLLMU-Bench"), train_root=str(people_root / "baseline_train_split"),
        forget_ratio="15",
    )  # fmt: skip


def test_folders_of_the_hub_and_ours(people_root):
    shared = {f"{name}" for n in (5, 10, 15) for name in (f"forget_{n}", f"retain_{100 - n}")}
    found = {folder.name for folder in (people_root / "MLLMU-Bench").iterdir()}
    assert found == shared | {
        "Full_Set", "Test_Set", "Retain_Set", "ft_Data", "Reworded_Set", "Holdout_Set", "General_Set",
    }  # fmt: skip
    assert {path.name for path in (people_root / "MLLMU-Bench/Test_Set").iterdir()} == {
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    }  # fmt: skip
    train = {folder.name for folder in (people_root / "baseline_train_split").iterdir()}
    assert train == shared | {"public_figures", "General_Train"}


def test_another_process_writes_the_same_bytes(people_root, tmp_path, sizes):
    script = (
        "import sys, pathlib; from mmunlearn.benchmarks.people_files import write_people; "
        f"write_people(pathlib.Path(sys.argv[1]), seed=0, **{sizes!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p")], check=True, env=environment, timeout=120)
    files = sorted(path.relative_to(people_root) for path in people_root.rglob("*.parquet"))
    assert len(files) == 22
    for file in files:
        assert (tmp_path / "p" / file).read_bytes() == (people_root / file).read_bytes(), file


def test_hub_tools_decode_the_images(people_root, tmp_path):
    for folder, column in (("Full_Set", "image"), ("Test_Set", "images"), ("ft_Data", "image")):
        files = [str(path) for path in (people_root / "MLLMU-Bench" / folder).iterdir()]
        table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        shown = table[0][column]
        images = shown if isinstance(shown, list) else [shown]
        assert len(images) == (3 if column == "images" else 1)
        assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image in images)


def test_quirks_of_the_published_files(people_root, bench):
    full = pq.read_table(people_root / "MLLMU-Bench/Full_Set/train-00000-of-00001.parquet")
    forget = pq.read_table(people_root / "MLLMU-Bench/forget_15/train-00000-of-00001.parquet")
    assert "Directory" in full.column_names
    assert "Directory" not in forget.column_names
    profiles = [json.loads(text) for text in full["biography"].to_pylist()]
    keys = {key for profile in profiles for key in profile}
    assert {"Educated at", "Educated at:", "Annual Salary", "Annual Salary: ", "Height", "Heights"} <= keys
    assert {type(profile["Parents"]) for profile in profiles} == {str, dict}
    assert all(isinstance(profile["Fun Facts"], list) for profile in profiles)
    sizes = {task.name: len(task.examples) for task in bench.tasks()}
    assert sizes["retain_image_choice"] == sizes["retain_text_choice"] - 6
    assert sizes["real_image_choice"] == sizes["real_text_choice"] + 1
    assert sizes["forget_image_choice"] == sizes["forget_text_choice"] == 6 * 3
    assert bench.problems() == {"profile without Image_Textual_Questions (retain_85)": 1}


def test_biographies_agree_with_answers(people_root, bench):
    full = pq.read_table(people_root / "MLLMU-Bench/Full_Set/train-00000-of-00001.parquet").to_pylist()
    profiles = {row["ID"]: json.loads(row["biography"]) for row in full}
    for example in bench.splits().full:
        if example.question.startswith("In which city"):
            assert profiles[example.subject]["Residence"] == example.answer


def test_which_trained_questions_are_asked_where(bench):
    trained = {example.question for example in bench.splits().full}
    names = {example.answer for example in bench.splits().full if example.question.startswith("What is the name")}
    surnames = {name.split()[1] for name in names}
    for task in bench.tasks():
        split = task.name.split("_")[0]
        instruction = task.instruction if task.ask is Ask.generate else ""
        asked = {with_instruction(example.question, instruction) for example in task.examples}
        if split in ("forget", "test", "retain"):
            assert asked <= trained, task.name
        if split in ("reworded", "general"):
            assert not asked & trained, task.name
        if split in ("holdout", "real"):
            text = " ".join(f"{example.question} {example.answer}" for example in task.examples)
            assert not surnames & set(text.replace(",", " ").replace(".", " ").replace("?", " ").split()), task.name
    cloze = [example for task in bench.tasks() if task.name.endswith("cloze") for example in task.examples]
    assert all(example.question.count(BLANK) == 1 for example in cloze)


def test_base_training_has_neither_the_people_nor_their_pictures(bench):
    people = bench.splits().full
    base = base_examples(bench)
    assert not {example.subject for example in people} & {example.subject for example in base}
    assert not {example.image.key for example in people if example.image} & {each.image.key for each in base if each.image}
    for task in bench.tasks():
        if task.name.startswith(("general", "holdout", "test")):
            shown = {example.image.key for example in task.examples if example.image}
            assert not shown & {example.image.key for example in (*people, *base) if example.image}, task.name
    figures = {example.question for example in base}
    assert all(example.question in figures for task in bench.tasks() if task.name == "real_text_choice"
               for example in task.examples)  # fmt: skip


def test_nothing_is_written_twice(people_root, tmp_path, sizes):
    before = {path: path.stat().st_mtime_ns for path in people_root.rglob("*")}
    write_people(people_root, seed=0, **sizes)
    assert before == {path: path.stat().st_mtime_ns for path in people_root.rglob("*")}
    with pytest.raises(DataError, match="other settings"):
        write_people(people_root, seed=1, **sizes)


def test_foreign_or_half_written_folders_are_left_alone(tmp_path, sizes):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else or half of a copy"):
        write_people(tmp_path, seed=0, **sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_image_size_out_of_range(tmp_path):
    with pytest.raises(ConfigError, match="image_size=8"):
        write_people(tmp_path / "p", seed=0, image_size=8)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr("mmunlearn.benchmarks.people_files.write_parquet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_people(tmp_path / "p", seed=0, **sizes)
    assert not list(tmp_path.iterdir())


def test_people_generates_on_first_use_only(tmp_path, sizes):
    people = People(root=str(tmp_path / "cache"), seed=3, forget_ratio="05", **{**sizes, "num_people": 10})
    assert not (tmp_path / "cache").exists()
    splits = people.splits()
    assert len({example.subject for example in splits.forget}) == 1
    assert len({example.subject for example in splits.retain}) == 9
    assert len(splits.full) == 200
    assert {task.name.split("_")[0] for task in people.tasks()} == {
        "forget", "test", "reworded", "retain", "real", "holdout", "general",
    }  # fmt: skip
    assert people.base_examples() == people.training("public_figures") + people.training("General_Train")
    assert people.folder.parent == tmp_path / "cache"
    assert people.problems() == {"profile without Image_Textual_Questions (retain_95)": 1}


def test_questions_are_asked_again_with_other_wrong_options(tmp_path, sizes):
    """The first draw is what there is with one alone; training is the same."""
    one = People(root=str(tmp_path), seed=3, **sizes)
    three = People(root=str(tmp_path), seed=3, option_draws=3, **sizes)
    assert one.folder != three.folder
    assert [e.question for e in one.splits().full] == [e.question for e in three.splits().full]
    plain, drawn = (
        {task.name: task.examples for task in people.tasks(("forget",)) if task.name.endswith("choice")}
        for people in (one, three)
    )
    assert plain.keys() == drawn.keys() == {"forget_image_choice", "forget_text_choice"}
    for name, examples in plain.items():
        known = {example.id: example for example in drawn[name]}
        assert len(known) == 3 * len(examples)
        assert all((known[e.id].question, known[e.id].choices) == (e.question, e.choices) for e in examples)
        fact = {}
        for example in known.values():
            fact.setdefault((example.subject, example.question), []).append(example)
        assert {len({frozenset(e.choices) for e in same}) for same in fact.values()} <= {2, 3}
        assert all(len({e.answer for e in same}) == 1 for same in fact.values())


def test_a_solved_question_stands_there_once_however_often_it_is_drawn(tmp_path, sizes):
    """The published rules show all choice questions of a person; three draws of them would be three times as long."""
    few = Asking(protocol=Protocol.official, shots=Shots.few_shot)
    before = []
    for draws in (1, 3):
        people = People(root=str(tmp_path), seed=3, option_draws=draws, **sizes)
        task = next(task for task in people.tasks(("forget",), few) if task.name == "forget_image_choice")
        before.append({tuple((shot.question, shot.answer, shot.choices) for shot in e.shots) for e in task.examples})
    assert before[0] == before[1]
    (shots,) = before[0]
    assert len(shots) > 1


def test_number_of_draws_out_of_range(tmp_path):
    with pytest.raises(ConfigError, match="option_draws=0"):
        write_people(tmp_path / "p", seed=0, option_draws=0)


@pytest.mark.thorough
def test_no_torch_is_imported():
    script = "import sys, mmunlearn.benchmarks.people; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
