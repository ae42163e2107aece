import io
import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from mmunlearn.benchmarks.base import Ask, Modality
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people import People
from mmunlearn.errors import ConfigError, DataError

FILE = "train-00000-of-00001.parquet"


@pytest.fixture
def copy(people_root, tmp_path):
    """A copy of the generated files that a test may damage."""
    return shutil.copytree(people_root, tmp_path / "copy")


def open_copy(root, **settings):
    defaults = {"root": str(root / "MLLMU-Bench"), "train_root": str(root / "baseline_train_split"), "forget_ratio": "15"}
    return MLLMUBench(**{**defaults, **settings})


def change(root, folder, edit, file=FILE, repository="MLLMU-Bench"):
    """Rewrite the rows of one file; `edit` changes the list in place."""
    path = root / repository / folder / file
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def drop(root, folder, column, repository="MLLMU-Bench"):
    path = root / repository / folder / FILE
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


# What it reads ------------------------------------------------------------------------------------------------------


def test_splits_by_modality(people_root):
    both = open_copy(people_root).splits()
    assert (len(both.forget), len(both.retain), len(both.full)) == (3 * 20, 17 * 20, 20 * 20)
    assert not {each.subject for each in both.forget} & {each.subject for each in both.retain}
    image = open_copy(people_root, modality=Modality.image).splits()
    text = open_copy(people_root, modality=Modality.text).splits()
    assert all(example.image is not None for example in image.forget)
    assert all(example.image is None for example in text.forget)
    assert len(image.full) == len(text.full) == 20 * 10


def test_ids_are_unique_and_subjects_never_collide(people_root):
    bench = open_copy(people_root)
    splits = bench.splits()
    examples = [*splits.forget, *splits.retain, *splits.full, *bench.training("public_figures")]
    examples += [example for task in bench.tasks() for example in task.examples]
    ids = [example.id for example in examples]
    assert len(set(ids)) == len(ids)
    subjects = {task.name: {example.subject for example in task.examples} for task in bench.tasks()}
    assert subjects["real_text_choice"] == {"real-001", "real-002", "real-003"}
    assert subjects["holdout_text_choice"] == {"holdout-001", "holdout-002"}
    assert subjects["forget_text_choice"] == subjects["reworded_text_choice"] == subjects["test_image_choice"]
    assert subjects["forget_text_choice"] == {example.subject for example in splits.forget}


def test_tasks_in_order_with_instructions(people_root):
    tasks = {task.name: task for task in open_copy(people_root).tasks()}
    assert list(tasks)[:3] == ["forget_image_choice", "forget_image_cloze", "forget_image_generation"]
    assert len(tasks) == 6 * 5 + 3 + 1
    assert [name for name in tasks if name.startswith("test_text") or name.startswith("general_")] == ["general_image_choice"]
    assert tasks["forget_text_choice"].instruction == "Just give ONE letter representing the answer directly."
    assert tasks["forget_text_cloze"].instruction.endswith("should replace the [Blank].")
    assert tasks["real_image_generation"].instruction.endswith("in one sentence accurately in ENGLISH.")
    assert tasks["real_text_generation"].instruction.endswith("knowledge in one sentence in ENGLISH.")
    assert tasks["forget_image_choice"].ask is Ask.choose
    assert tasks["forget_image_cloze"].ask is tasks["forget_image_generation"].ask is Ask.generate
    direction = {name.split("_")[0]: task.higher_is_better for name, task in tasks.items()}
    assert direction == {
        "forget": False, "test": False, "reworded": False, "retain": True, "real": True, "holdout": None, "general": True,
    }  # fmt: skip
    assert "option_text_accuracy" in tasks["forget_text_choice"].metrics
    assert "cloze_accuracy" in tasks["forget_text_cloze"].metrics
    assert "rougeL" in tasks["forget_text_generation"].metrics


def test_choices_keep_the_order_of_the_file(people_root):
    row = pq.read_table(people_root / "MLLMU-Bench/forget_15" / FILE).to_pylist()[0]
    item = row["Classification_Task"]["Pure_Text_Questions"][2]
    bench = open_copy(people_root)
    asked = [each for task in bench.tasks(("forget",)) for each in task.examples]
    example = next(each for each in asked if each.id.endswith(f"{row['ID']}/text/choice/2"))
    assert example.choices == tuple(item["Options"][letter] for letter in "ABCD")
    assert example.answer == item["Options"][item["Correct_Answer"]]
    assert example.question == item["Question"]


def test_other_portrait_depends_on_seed_and_person_only(people_root):
    def shown(seed, ratio="15"):
        bench = open_copy(people_root, seed=seed, forget_ratio=ratio)
        return {example.subject: example.image.key for example in bench.tasks(("test",))[0].examples}

    assert shown(0) == shown(0)
    assert len({tuple(sorted(shown(seed).items())) for seed in range(6)}) > 1
    assert shown(0, "5").items() <= shown(0).items()


def test_images_are_shared_lazy_and_can_be_sent_to_workers(people_root):
    bench = open_copy(people_root)
    forget = [example for example in bench.splits().forget if example.image]
    evaluated = {task.name: task for task in bench.tasks()}["forget_image_choice"].examples
    assert {example.image.key for example in forget} == {example.image.key for example in evaluated}
    assert forget[0].image is evaluated[0].image
    image = pickle.loads(pickle.dumps(forget[0].image)).open()
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert len({example.image.key for example in forget}) == 3


def test_ratio_spellings():
    assert {MLLMUBench(forget_ratio=ratio).forget_ratio for ratio in ("5", "05", 5, "5%")} == {"5"}
    for ratio in ("five", "0", "100", "-5"):
        with pytest.raises(ConfigError, match="forget_ratio"):
            MLLMUBench(forget_ratio=ratio)


@pytest.mark.parametrize("cls", [MLLMUBench, People])
def test_fields_are_a_schema(cls):
    values = OmegaConf.merge(OmegaConf.structured(cls), {"forget_ratio": 5, "modality": "text"})
    built = instantiate({"_target_": f"{cls.__module__}.{cls.__name__}", **OmegaConf.to_container(values)})
    assert (built.forget_ratio, built.modality) == ("5", Modality.text)
    assert built == cls(forget_ratio="5", modality=Modality.text)


def test_unknown_split():
    with pytest.raises(ConfigError, match="Did you mean 'retain'"):
        MLLMUBench().tasks(("retein",))


def test_our_own_splits_may_be_absent(copy):
    for folder in ("Reworded_Set", "Holdout_Set", "General_Set"):
        shutil.rmtree(copy / "MLLMU-Bench" / folder)
    assert {task.name.split("_")[0] for task in open_copy(copy).tasks()} == {"forget", "test", "retain", "real"}


# Training files -----------------------------------------------------------------------------------------------------


def test_without_train_splits_it_trains_on_the_published_fallback(copy):
    bench = open_copy(copy, train_root="")
    forget = bench.splits().forget
    assert bench.splits().retain
    row = pq.read_table(copy / "MLLMU-Bench/forget_15" / FILE).to_pylist()[0]
    mine = [(each.question, each.answer) for each in forget if each.subject == row["ID"] and each.image]
    free = [(each["Question"], each["Ground_Truth"]) for each in row["Generation_Task"] if each["Type"] == "Image_Textual"]
    assert mine == [(row["question"], row["answer"]), *free]
    assert all(example.image is not None for example in forget), "those in text are asked in evaluation word for word"
    assert sum(count for flaw, count in bench.problems().items() if "without metadata" in flaw) == 2


def test_published_metadata_has_image_questions_only(copy):
    def without_types(rows):
        for row in rows:
            entries = [entry for entry in json.loads(row["metadata"]) if entry["Type"] == "Image_Textual"]
            row["metadata"] = json.dumps([{name: entry[name] for name in ("Question", "Answer", "ID")} for entry in entries])

    for folder in ("forget_15", "retain_85"):
        change(copy, folder, without_types, repository="baseline_train_split")
    change(copy, "ft_Data", without_types)
    both = open_copy(copy).splits()
    assert all(example.image is not None for example in both.full)
    assert len(both.full) == 20 * 10
    text = open_copy(copy, modality=Modality.text)
    assert [len(part) for part in (text.splits().forget, text.splits().retain, text.splits().full)] == [6, 34, 40]
    assert any("no training questions in text" in flaw for flaw in text.problems())


def test_metadata_rows_without_questions_are_counted(copy):
    change(copy, "forget_15", lambda rows: rows[0].update(metadata="[]"), repository="baseline_train_split")
    bench = open_copy(copy)
    assert len(bench.splits().forget) == 2 * 20
    assert bench.problems() == {"row without training questions (forget_15)": 1}


# Tolerated flaws ----------------------------------------------------------------------------------------------------


def test_missing_lists_and_blanks_are_counted(copy):
    def edit(rows):
        rows[0]["Mask_Task"] = None
        rows[1]["Mask_Task"][0]["Question"] = "She is a ____ person."
        rows[1]["Mask_Task"][1]["Question"] = "No gap here."
        rows[2]["Generation_Task"][0]["Type"] = "Video"
        rows[2]["biography"] = None

    change(copy, "forget_15", edit)
    bench = open_copy(copy)
    tasks = {task.name: task for task in bench.tasks(("forget",))}
    assert len(tasks["forget_image_cloze"].examples) == 4
    assert tasks["forget_image_cloze"].examples[0].question == "She is a [Blank] person."
    assert bench.problems() == {
        "Generation_Task item of unknown type (forget_15)": 1,
        "biography missing": 1,
        "cloze question without a blank (forget_15)": 1,
        "profile without image items in Mask_Task (forget_15)": 1,
        "profile without text items in Mask_Task (forget_15)": 1,
    }


def test_a_forget_person_without_other_portraits_is_counted(copy):
    gone = pq.read_table(copy / "MLLMU-Bench/forget_15" / FILE)["ID"].to_pylist()[0]
    for number in range(2):
        change(copy, "Test_Set", lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["ID"] != gone]),
               file=f"train-0000{number}-of-00002.parquet")  # fmt: skip
    bench = open_copy(copy)
    assert len({example.subject for example in bench.tasks(("test",))[0].examples}) == 2
    assert bench.problems() == {"forget person without a row (Test_Set)": 1}


# Errors -------------------------------------------------------------------------------------------------------------


def fails(bench, *needles):
    with pytest.raises(DataError) as error:
        bench.tasks()
    for needle in needles:
        assert needle in str(error.value)


def training_fails(bench, *needles):
    splits = bench.splits()
    with pytest.raises(DataError) as error:
        _ = splits.forget, splits.retain, splits.full
    for needle in needles:
        assert needle in str(error.value)


def test_missing_root(tmp_path):
    fails(MLLMUBench(root=str(tmp_path / "no"), train_root=str(tmp_path)), str(tmp_path / "no"), "data.root")


def test_missing_folder_names_its_neighbours(copy):
    fails(open_copy(copy, forget_ratio="16"), "forget_16", "forget_15", "data.forget_ratio")
    shutil.rmtree(copy / "MLLMU-Bench/Retain_Set")
    fails(open_copy(copy), "Retain_Set", "data.root")


def test_missing_column(copy):
    drop(copy, "forget_15", "Mask_Task")
    fails(open_copy(copy), "forget_15", FILE, "'Mask_Task' is missing")
    drop(copy, "forget_15", "ID", repository="baseline_train_split")
    training_fails(open_copy(copy), "baseline_train_split", "'ID' is missing")


@pytest.mark.parametrize("keep", [0, 3, 2000])
def test_truncated_file(copy, keep):
    path = copy / "MLLMU-Bench/forget_15" / FILE
    path.write_bytes(path.read_bytes()[:keep])
    fails(open_copy(copy), str(path), "not a complete Parquet file", "download it again")


def test_damaged_pages(copy):
    path = copy / "MLLMU-Bench/forget_15" / FILE
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(bytes(content))
    fails(open_copy(copy), str(path))


def test_missing_part_of_a_folder(copy):
    (copy / "MLLMU-Bench/Test_Set/train-00001-of-00002.parquet").unlink()
    fails(open_copy(copy), "Test_Set", "1 of 2", "again")


def test_empty_file(copy):
    change(copy, "forget_15", lambda rows: rows.clear())
    fails(open_copy(copy), "forget_15", "no rows")


def test_missing_image(copy):
    change(copy, "retain_85", lambda rows: rows[3].update(image=None))
    fails(open_copy(copy), "retain_85", "row 3", "the image is missing")


def test_undecodable_image(copy):
    change(copy, "forget_15", lambda rows: rows[1]["image"].update(bytes=b"no picture"), repository="baseline_train_split")
    training_fails(open_copy(copy), "row 1", "cannot be decoded")


def test_truncated_image_is_found_when_it_is_opened(copy):
    def cut(rows):
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, format="PNG")
        rows[1]["image"]["bytes"] = buffer.getvalue()[:2000]

    change(copy, "forget_15", cut, repository="baseline_train_split")
    images = {example.image.where: example.image for example in open_copy(copy).splits().forget if example.image}
    with pytest.raises(DataError, match=r"row 1 \(ID \d{3}\): the image cannot be decoded"):
        [image.open() for image in images.values()]


def test_no_other_portrait(copy):
    for number in range(2):
        change(
            copy, "Test_Set", lambda rows: [row.update(images=[]) for row in rows], file=f"train-0000{number}-of-00002.parquet"
        )
    fails(open_copy(copy), "Test_Set", "'images' is an empty list")


@pytest.mark.parametrize("text", ["{broken", "[1, 2]", "3"])
def test_biography_is_not_json(copy, text):
    change(copy, "forget_15", lambda rows: rows[0].update(biography=text))
    fails(open_copy(copy), "row 0", "'biography' is")


@pytest.mark.parametrize("text", ["{broken", "{}", "[3]", None])
def test_metadata_is_not_a_list(copy, text):
    change(copy, "forget_15", lambda rows: rows[0].update(metadata=text), repository="baseline_train_split")
    training_fails(open_copy(copy), "row 0", "'metadata' is")


@pytest.mark.parametrize("entry", [{"Question": "Q"}, {"Question": " ", "Answer": "A"}, {"Answer": "A", "Question": None}])
def test_metadata_entry_without_question_or_answer(copy, entry):
    change(copy, "forget_15", lambda rows: rows[0].update(metadata=json.dumps([entry])), repository="baseline_train_split")
    training_fails(open_copy(copy), "row 0", "entry 0", "missing or empty")


def test_metadata_entry_of_unknown_type(copy):
    text = json.dumps([{"Question": "Q", "Answer": "A", "Type": "Video"}])
    change(copy, "forget_15", lambda rows: rows[0].update(metadata=text), repository="baseline_train_split")
    training_fails(open_copy(copy), "row 0", "'Video'", "Pure_Text")


def test_correct_letter_out_of_range(copy):
    change(copy, "Retain_Set", lambda rows: _first_choice(rows).update(Correct_Answer="E"))
    fails(open_copy(copy), "Retain_Set", "row 0", "'E'", "A, B, C, D")


def test_option_missing(copy):
    change(copy, "Retain_Set", lambda rows: _first_choice(rows)["Options"].update(C=None))
    fails(open_copy(copy), "Retain_Set", "row 0", "option C is missing")


def test_letters_with_punctuation_are_understood(copy):
    change(copy, "forget_15", lambda rows: _first_choice(rows).update(Correct_Answer=" b. "))
    example = open_copy(copy).tasks(("forget",))[0].examples[0]
    assert example.answer == example.choices[1]


def test_repeated_options_are_counted(copy):
    change(copy, "forget_15", lambda rows: _first_choice(rows)["Options"].update(A="x", B="x", C="x", D="x"))
    bench = open_copy(copy)
    bench.tasks(("forget",))
    assert bench.problems() == {"options that repeat each other (forget_15)": 1}


def test_duplicate_ids(copy):
    change(copy, "retain_85", lambda rows: rows.append(rows[0]))
    fails(open_copy(copy), "retain_85", "row 17", "row 0", "is already in")


def test_test_set_of_other_people(copy):
    for number in range(2):
        change(copy, "Test_Set", lambda rows: [row.update(ID=f"x{row['ID']}") for row in rows],
               file=f"train-0000{number}-of-00002.parquet")  # fmt: skip
    fails(open_copy(copy), "Test_Set", "none of the people of forget_15")


def _first_choice(rows):
    return rows[0]["Classification_Task"]["Image_Textual_Questions"][0]


# The hub ------------------------------------------------------------------------------------------------------------


def test_offline_without_cache_says_how_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fails(MLLMUBench(), "data.root=/path/to/MLLMU-Bench data.train_root=/path/to/baseline_train_split", "MLLMMU/MLLMU-Bench")
    training_fails(MLLMUBench(), "MLLMMU/baseline_train_split")


def test_cache_is_asked_before_the_network(people_root, monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, *, repo_type, allow_patterns, local_files_only):
        asked.append((repository, repo_type, tuple(allow_patterns), local_files_only))
        return str(people_root / ("MLLMU-Bench" if repo_type == "dataset" else "baseline_train_split"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmunlearn.benchmarks.mllmu_files.snapshot_download", snapshot)
    bench = MLLMUBench(forget_ratio="15")
    assert len(bench.splits().full) == 400
    assert bench.splits().forget
    assert {task.name.split("_")[0] for task in bench.tasks()} == {"forget", "test", "retain", "real"}
    assert all(local for *_, local in asked)
    assert ("MLLMMU/baseline_train_split", "model", ("forget_15/*",), True) in asked
    assert ("MLLMMU/MLLMU-Bench", "dataset", ("ft_Data/*",), True) in asked


def test_a_copy_in_the_working_folder_is_found(people_root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/MLLMU-Bench").symlink_to(people_root / "MLLMU-Bench")
    (tmp_path / "data/MLLMMU-Bench").symlink_to(people_root / "baseline_train_split")
    bench = MLLMUBench(forget_ratio="15")
    assert len(bench.splits().forget) == 60
    assert len(bench.tasks()) == 34
