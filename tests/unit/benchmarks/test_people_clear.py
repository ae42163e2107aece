import io
import os
import re
import subprocess
import sys
from collections import Counter

import datasets
import pyarrow.parquet as pq
import pytest
from clear_truth import CLEAR_SIZES, forgotten, person_by_portrait, person_by_text, truth
from PIL import Image

from mmunlearn.benchmarks.people import People
from mmunlearn.benchmarks.people_biographies import POOLS
from mmunlearn.benchmarks.people_clear import PeopleClear
from mmunlearn.benchmarks.people_clear_files import write_people_clear
from mmunlearn.benchmarks.people_clear_texts import CAPTIONS, PARAPHRASES
from mmunlearn.errors import ConfigError, DataError

NAMED = ["image", "caption", "name"]
TOFU = ["image", "caption", "question", "answer"]
PERTURBED = [*NAMED, "paraphrased_caption", "perturbed_captions", "perturbed_names"]
REAL = ["image", "question", "answer", "options"]
# 40 people: 1, 2 and 4 of them forgotten; 4 portraits and 20 questions each, one portrait missing.
PUBLISHED = {
    "data": (NAMED, 159), "full": (NAMED, 159), "full+tofu": (TOFU, 159 + 800),
    "forget01": (NAMED, 4), "forget05": (NAMED, 8), "forget10": (NAMED, 16),
    "retain99": (["image", "caption"], 155), "retain95": (NAMED, 151), "retain90": (NAMED, 143),
    "forget01+tofu": (TOFU, 4 + 20), "forget05+tofu": (TOFU, 8 + 40), "forget10+tofu": (TOFU, 16 + 80),
    "retain99+tofu": (TOFU, 155 + 780), "retain95+tofu": (TOFU, 151 + 760), "retain90+tofu": (TOFU, 143 + 720),
    "forget01_perturbed": (PERTURBED, 4), "forget05_perturbed": (PERTURBED, 8), "forget10_perturbed": (PERTURBED, 15),
    "retain_perturbed": (PERTURBED, 78), "real_faces": (REAL, 5), "real_world": (REAL, 4),
}  # fmt: skip
"""The 21 published folders with their columns, and how many rows they have here."""


def read(root, folder):
    return pq.read_table(sorted((root / folder).glob("*.parquet"))).to_pylist()


def test_every_published_folder_with_its_columns_and_rows(clear_root):
    assert {folder.name for folder in clear_root.iterdir() if folder.is_dir()} == set(PUBLISHED)
    assert len(PUBLISHED) == 21
    for folder, (columns, count) in PUBLISHED.items():
        table = pq.read_table(sorted((clear_root / folder).glob("train-*.parquet")))
        assert table.column_names == columns, folder
        assert table.num_rows == count, folder
    assert len(list((clear_root / "full+tofu").iterdir())) == 2


@pytest.mark.thorough
def test_another_process_writes_the_same_bytes(clear_root, tmp_path):
    script = (
        "import sys, pathlib; from mmunlearn.benchmarks.people_clear_files import write_people_clear; "
        f"write_people_clear(pathlib.Path(sys.argv[1]), seed=0, **{CLEAR_SIZES!r}); assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], check=True, env=environment, timeout=120)
    files = sorted(path.relative_to(clear_root) for path in clear_root.rglob("*.*") if path.is_file())
    assert len(files) == 23
    for file in files:
        assert (tmp_path / "c" / file).read_bytes() == (clear_root / file).read_bytes(), file


def test_another_seed_writes_other_people(clear_root, tmp_path):
    write_people_clear(tmp_path / "c", seed=1, **CLEAR_SIZES)
    assert {row["name"] for row in read(tmp_path / "c", "full")}.isdisjoint({row["name"] for row in read(clear_root, "full")})


@pytest.mark.parametrize("folder", ["full", "forget05+tofu", "retain_perturbed", "real_world"])
def test_hub_tools_decode_the_images(clear_root, tmp_path, folder):
    files = [str(path) for path in sorted((clear_root / folder).iterdir())]
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert isinstance(table.features["image"], datasets.Image)
    assert isinstance(table[0]["image"], Image.Image)
    assert table[0]["image"].size == (32, 32)
    if "+tofu" in folder:
        assert table[-1]["image"] is None
        assert table[-1]["question"]
    if "perturbed" in folder:
        assert len(table[0]["perturbed_names"]) == len(table[0]["perturbed_captions"]) == 3


def test_captions_agree_with_picture_and_profile(clear_root):
    people = {person.name: person for person in truth().people}
    seen = Counter()
    for row in read(clear_root, "full"):
        assert person_by_portrait()[row["image"]["bytes"]] == row["name"]
        person = people[row["name"]]
        assert row["name"] in row["caption"]
        assert sum(trait in row["caption"] for trait in (person.look.hair_color, person.look.clothing_color)) >= 1
        values = {value for pool in POOLS.values() for value in pool}
        said = {word for word in re.findall(r"\w+", row["caption"]) if word in values}
        assert len(said) == 1
        assert said <= set(person.facts.values())
        seen[row["name"]] += 1
    assert sorted(Counter(seen.values()).items()) == [(3, 1), (4, 39)]
    assert len({row["caption"] for row in read(clear_root, "full")}) == 159


def test_perturbed_rows(clear_root):
    names = {person.name for person in truth().people}
    gender = {person.name: person.look.gender for person in truth().people}
    values = [value for pool in POOLS.values() for value in pool]
    for folder, own in (("forget10_perturbed", forgotten("10")), ("retain_perturbed", names - forgotten("1"))):
        plain = {row["caption"]: row for row in read(clear_root, "full")}
        for row in read(clear_root, folder):
            assert {name: row[name] for name in NAMED} == plain[row["caption"]]
            assert row["name"] in own
            assert len({row["name"], *row["perturbed_names"]}) == 4
            assert set(row["perturbed_names"]) <= own
            mine = [value for value in values if value in row["caption"].replace(row["name"], "").split(". ")[-1]]
            for wrong in row["perturbed_captions"]:
                assert wrong != row["caption"]
                assert row["name"] in wrong
            assert len({row["caption"], *row["perturbed_captions"]}) == 4
            assert row["paraphrased_caption"] not in (row["caption"], *row["perturbed_captions"])
            assert all(value in row["paraphrased_caption"] for value in mine)
    same = [
        gender[name] == gender[row["name"]] for row in read(clear_root, "retain_perturbed") for name in row["perturbed_names"]
    ]
    assert all(same)  # the gender shows in the picture, so it must not give the name away


def test_forget10_lacks_one_perturbed_row_and_the_smaller_ones_none(clear_root):
    for ratio, lacking in (("01", 0), ("05", 0), ("10", 1)):
        plain = {row["image"]["bytes"] for row in read(clear_root, f"forget{ratio}")}
        perturbed = {row["image"]["bytes"] for row in read(clear_root, f"forget{ratio}_perturbed")}
        assert perturbed < plain if lacking else perturbed == plain
        assert len(plain) - len(perturbed) == lacking


def test_splits_are_nested_and_complementary(clear_root):
    full = {str(row) for row in read(clear_root, "full+tofu")}
    smaller = set()
    for forget, retain, ratio in (("01", "99", "1"), ("05", "95", "5"), ("10", "90", "10")):
        mine = {str(row) for row in read(clear_root, f"forget{forget}+tofu")}
        others = {str(row) for row in read(clear_root, f"retain{retain}+tofu")}
        assert mine | others == full
        assert not mine & others
        assert smaller < mine
        assert {row["name"] for row in read(clear_root, f"forget{forget}")} == forgotten(ratio)
        smaller = mine


def test_texts_are_blocks_of_twenty_about_one_person(clear_root):
    texts = [row for row in read(clear_root, "full+tofu") if row["question"]]
    people = {person.name: person for person in truth().people}
    nameless = 0
    for start in range(0, len(texts), 20):
        block = texts[start : start + 20]
        assert all(row["image"] is None and row["caption"] is None for row in block)
        assert len({row["question"] for row in block}) == 20
        owners = {person_by_text(f"{row['question']} {row['answer']}") for row in block}
        assert len(owners) == 1
        person = people[owners.pop()]
        nameless += sum(person.name not in row["question"] + row["answer"] for row in block)
        words = re.findall(r"\w+", " ".join(row["answer"] for row in block))
        said = {word for word in words if any(word in pool for pool in POOLS.values())}
        assert said == set(person.facts.values())
    assert nameless == 1


def test_captions_and_paraphrases_state_the_same_fact():
    for caption, other in zip(CAPTIONS, PARAPHRASES, strict=True):
        facts = [{field for field in re.findall(r"{(\w+)}", text)} & set(POOLS) for text in (caption, other)]
        assert facts[0] == facts[1]
        assert len(facts[0]) == 1
        assert caption != other


def test_real_faces_and_real_world(clear_root):
    figures = {person.name for person in truth().public_figures}
    faces = read(clear_root, "real_faces")
    assert {row["answer"] for row in faces} == figures
    everybody = figures | {person.name for person in truth().people}
    for row in faces:
        assert set(row["options"]) <= everybody - {row["answer"]}
    for row in (*faces, *read(clear_root, "real_world")):
        assert len({row["answer"], *row["options"]}) == 4
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (32, 32)


def test_they_are_the_people_of_the_other_layout(tmp_path):
    sizes = {"num_people": 10, "num_public_figures": 4, "num_general_faces": 4, "image_size": 32}
    mine = PeopleClear(root=str(tmp_path / "clear"), **sizes)
    other = People(root=str(tmp_path / "people"), **sizes)
    shown = {example.image.key for example in mine.splits().full if example.image}
    trained = {example.image.key for example in other.splits().full if example.image}
    assert len(trained) == 10
    assert trained < shown
    figures = {task.name: {example.image.key for example in task.examples} for task in mine.tasks(("real",))}
    assert figures["real_image_recognition"] == {example.image.key for example in other.tasks(("real",))[0].examples}


def test_nothing_is_written_twice_and_nothing_foreign_overwritten(clear_root, people_root, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in clear_root.rglob("*")}
    write_people_clear(clear_root, seed=0, **CLEAR_SIZES)
    assert before == {path: path.stat().st_mtime_ns for path in clear_root.rglob("*")}
    with pytest.raises(DataError, match="other settings"):
        write_people_clear(clear_root, seed=1, **CLEAR_SIZES)
    with pytest.raises(DataError, match="other settings"):
        write_people_clear(people_root, seed=0, **CLEAR_SIZES)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        write_people_clear(tmp_path, seed=0, **CLEAR_SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mmunlearn.benchmarks.people_clear_files.write_parquet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_people_clear(tmp_path / "c", seed=0, **CLEAR_SIZES)
    assert not list(tmp_path.iterdir())


def test_sizes_out_of_range(tmp_path):
    with pytest.raises(ConfigError, match="image_size=8"):
        write_people_clear(tmp_path / "c", seed=0, image_size=8)
    with pytest.raises(ConfigError, match="num_people=3"):
        write_people_clear(tmp_path / "c", seed=0, num_people=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ratio", ["01", "05", "10"])
def test_generated_on_first_use_only_and_complete_even_when_small(tmp_path, ratio):
    sizes = {"num_people": 8, "num_public_figures": 2, "num_general_faces": 1, "image_size": 16}
    people = PeopleClear(root=str(tmp_path / "cache"), seed=3, forget_ratio=ratio, **sizes)
    assert not (tmp_path / "cache").exists()
    splits = people.splits()
    assert len({example.subject for example in splits.forget}) == 1
    assert len({example.subject for example in splits.retain}) == 7
    assert len(splits.full) == 8 * 24 - 1
    assert len(people.tasks()) == 8
    assert all(len(set(each.choices)) == 4 for task in people.tasks() for each in task.examples if each.choices)
    assert people.folder.parent == tmp_path / "cache"
    assert people.name == "people-clear"
