import random
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clear_truth import FILE, PEOPLE_PER_RATIO, forgotten, person_by_portrait, person_by_text, truth
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_cases import encoder_for

from mmunlearn.benchmarks import prompts
from mmunlearn.benchmarks.base import Ask, Modality
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.benchmarks.people_clear import PeopleClear
from mmunlearn.config_enums import Choice
from mmunlearn.data.batch import IGNORE
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.evaluation.predict import Asked, Asker, predict_all
from mmunlearn.evaluation.requests import chosen_tasks
from mmunlearn.evaluation.score import score_task
from mmunlearn.report.words import primary_metric
from mmunlearn.run import Run, write_json

TASKS = [
    "forget_image_recognition", "forget_image_caption", "forget_text_qa",
    "retain_image_recognition", "retain_image_caption", "retain_text_qa",
    "real_image_recognition", "general_image_choice",
]  # fmt: skip


@pytest.fixture
def copy(clear_root, tmp_path):
    """A copy of the generated files that a test may damage."""
    return shutil.copytree(clear_root, tmp_path / "copy")


def tasks_of(root, *splits, **settings):
    bench = CLEAR(root=str(root), **settings)
    return {task.name: task for task in (bench.tasks(splits) if splits else bench.tasks())}


def change(root, folder, edit, file=FILE):
    """Rewrite the rows of one file; `edit` changes the list in place."""
    path = root / folder / file
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def everything(bench):
    splits = bench.splits()
    return [*splits.forget, *splits.retain, *splits.full, *(each for task in bench.tasks() for each in task.examples)]


def owner(example):
    """The true person of an example about one of the fictitious people."""
    if example.image is not None:
        return person_by_portrait()[example.image.read()]
    return person_by_text(f"{example.question} {example.answer}")


# What it reads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "people"), PEOPLE_PER_RATIO.items())
def test_rows_of_each_ratio(clear_root, ratio, people):
    splits = CLEAR(root=str(clear_root), forget_ratio=ratio).splits()
    count = {name: Counter(each.image is not None for each in getattr(splits, name)) for name in ("forget", "retain", "full")}
    assert count["forget"] == {True: 4 * people, False: 20 * people}
    assert count["retain"] == {True: 4 * (40 - people) - 1, False: 20 * (40 - people)}
    assert count["full"] == {True: 4 * 40 - 1, False: 20 * 40}
    assert {each.subject for each in splits.forget} == forgotten(ratio)
    assert not {each.subject for each in splits.forget} & {each.subject for each in splits.retain}


@pytest.mark.parametrize("ratio", PEOPLE_PER_RATIO)
def test_every_row_is_about_the_right_person(clear_root, ratio):
    bench = CLEAR(root=str(clear_root), forget_ratio=ratio)
    own = [each for each in everything(bench) if "/real_" not in each.id]
    assert [each.subject for each in own] == [owner(each) for each in own]
    others = [each for each in everything(bench) if "/real_" in each.id]
    assert len({each.subject for each in others}) == len(others) == 5 + 4
    assert not {each.subject for each in others} & {each.subject for each in own}


def test_ids_are_unique_and_stable(clear_root):
    examples = everything(CLEAR(root=str(clear_root)))
    ids = [example.id for example in examples]
    assert len(set(ids)) == len(ids)
    assert ids == [example.id for example in everything(CLEAR(root=str(clear_root)))]
    assert "clear/forget05+tofu/image/0" in ids
    assert "clear/forget05_perturbed/image/recognition/7" in ids


def test_modality_filters(clear_root):
    image = CLEAR(root=str(clear_root), modality=Modality.image).splits()
    text = CLEAR(root=str(clear_root), modality=Modality.text).splits()
    both = CLEAR(root=str(clear_root)).splits()
    for split in ("forget", "retain", "full"):
        shown, asked = getattr(image, split), getattr(text, split)
        assert shown
        assert asked
        assert all(each.image is not None for each in shown)
        assert all(each.image is None for each in asked)
        assert (*shown, *asked) == getattr(both, split)


def test_pictures_are_asked_for_their_caption_and_texts_are_as_they_stand(clear_root):
    rows = pq.read_table(clear_root / "forget05+tofu" / FILE).to_pylist()
    found = CLEAR(root=str(clear_root)).splits().forget
    for row, example in zip(rows, found, strict=True):
        if row["image"] is not None:
            assert example.answer == row["caption"]
            assert example.question in prompts.CAPTION_QUESTIONS
            assert example.image.read() == row["image"]["bytes"]
        else:
            assert (example.question, example.answer, example.image) == (row["question"], row["answer"], None)


def test_the_caption_question_depends_on_seed_and_content_alone(clear_root, copy):
    def asked(root, split, seed=0):
        examples = getattr(CLEAR(root=str(root), seed=seed).splits(), split)
        return {example.image.key: example.question for example in examples if example.image}

    change(copy, "forget05+tofu", lambda rows: rows.reverse())
    assert asked(clear_root, "forget").items() <= asked(clear_root, "full").items()
    assert asked(copy, "forget") == asked(clear_root, "forget")
    assert asked(clear_root, "full", 1) != asked(clear_root, "full")
    assert set(asked(clear_root, "full").values()) == set(prompts.CAPTION_QUESTIONS)


def test_tasks_in_order_with_all_that_belongs_to_them(clear_root):
    tasks = tasks_of(clear_root)
    assert list(tasks) == TASKS
    choices = [name for name, task in tasks.items() if task.ask is Ask.choose]
    assert choices == [name for name in TASKS if name.endswith(("recognition", "choice"))]
    for name, task in tasks.items():
        assert primary_metric(name) in {"accuracy" if metric.endswith("_accuracy") else metric for metric in task.metrics}
        assert all((example.image is not None) == ("_image_" in name) for example in task.examples)
        assert all(bool(example.choices) == (name in choices) for example in task.examples)
        assert task.instruction == (prompts.CHOICE_INSTRUCTION if name in choices else "")
        assert task.higher_is_better == (not name.startswith("forget"))
    assert tasks["forget_image_caption"].max_new_tokens == tasks["forget_text_qa"].max_new_tokens == 300
    asked = {name: {example.question for example in tasks[name].examples} for name in choices}
    assert all(asked[name] == {"What is the name of the person in the image?"} for name in choices if "recognition" in name)
    assert len(asked["general_image_choice"]) > 1
    sizes = {name: len(task.examples) for name, task in tasks.items()}
    assert list(sizes.values()) == [8, 8, 40, 76, 151, 760, 5, 4]


def test_what_was_trained_is_asked(clear_root):
    bench = CLEAR(root=str(clear_root))
    trained = {(each.question, each.answer, each.image and each.image.key) for each in bench.splits().forget}
    asked = [each for task in bench.tasks(("forget",)) if task.ask is Ask.generate for each in task.examples]
    assert {(each.question, each.answer, each.image and each.image.key) for each in asked} == trained


@pytest.mark.parametrize("task", ["forget_image_recognition", "retain_image_recognition", "real_image_recognition"])
def test_options_hold_the_right_one_once_and_its_place_tells_nothing(clear_root, task):
    places = Counter()
    for seed in range(20):
        for example in tasks_of(clear_root, task.split("_")[0], seed=seed)[task].examples:
            assert len(set(example.choices)) == len(example.choices) == 4
            places[example.choices.index(example.answer)] += 1
            if not task.startswith("real"):
                assert example.answer == owner(example)
    share = sum(places.values()) / 4
    assert all(0.6 * share < places[place] < 1.4 * share for place in range(4))


def test_options_depend_on_seed_and_content_alone(clear_root, copy):
    def options(root, seed=0):
        examples = tasks_of(root, "forget", seed=seed)["forget_image_recognition"].examples
        return {example.image.key: example.choices for example in examples}

    change(copy, "forget05_perturbed", lambda rows: rows.reverse())
    assert options(copy) == options(clear_root)
    assert options(clear_root, 1) != options(clear_root)


@pytest.mark.parametrize("ratio", PEOPLE_PER_RATIO)
def test_nobody_forgotten_is_among_the_retained_faces(clear_root, ratio):
    bench = CLEAR(root=str(clear_root), forget_ratio=ratio)
    shown = {owner(example) for task in bench.tasks(("retain",)) for example in task.examples}
    assert shown == {person.name for person in truth().people} - forgotten(ratio)
    left_out = sum(count for flaw, count in bench.problems().items() if "left out" in flaw)
    assert left_out == 2 * (PEOPLE_PER_RATIO[ratio] - 1)  # those of retain_perturbed who are not in retain99


def test_groups_that_clear_does_not_have_are_empty_and_unknown_ones_an_error(clear_root):
    assert not tasks_of(clear_root, "test", "reworded", "holdout")
    with pytest.raises(ConfigError, match="Did you mean 'retain'"):
        CLEAR().tasks(("retein",))


def test_ratio_spellings():
    assert {CLEAR(forget_ratio=ratio).forget_ratio for ratio in ("5", "05", 5, "5%")} == {"05"}
    assert CLEAR(forget_ratio=10).forget_ratio == "10"
    for ratio in ("five", "0", "15", "-5"):
        with pytest.raises(ConfigError, match=r"forget_ratio.* 1, 5 or 10"):
            CLEAR(forget_ratio=ratio)


@pytest.mark.parametrize("cls", [CLEAR, PeopleClear])
def test_fields_are_a_schema(cls):
    values = OmegaConf.merge(OmegaConf.structured(cls), {"forget_ratio": 1, "modality": "text"})
    built = instantiate({"_target_": f"{cls.__module__}.{cls.__name__}", **OmegaConf.to_container(values)})
    assert (built.forget_ratio, built.modality) == ("01", Modality.text)
    assert built == cls(forget_ratio="01", modality=Modality.text)


# Whom rows are about, in files that are less tidy ---------------------------------------------------------------------


def test_texts_that_mention_others_stay_with_their_author(copy):
    forget = sorted(forgotten("5"), key=len)[-1]

    def mention(rows):
        for row in [row for row in rows if row["question"]]:
            if row["question"].startswith("Which college"):
                row["answer"] += f" A friend of {forget.upper()}, they say."
            if row["question"].startswith("Where did"):
                row["question"] = f"Where did the neighbor of {forget} study?"

    def subjects():
        splits = CLEAR(root=str(copy)).splits()
        return [[example.subject for example in getattr(splits, name)] for name in ("retain", "full")]

    before = subjects()
    for folder in ("retain95+tofu", "full+tofu"):
        for file in (copy / folder).iterdir():
            change(copy, folder, mention, file.name)
    assert subjects() == before
    assert not set(before[0]) & forgotten("5")


def test_without_whole_blocks_each_text_keeps_the_name_in_it(copy):
    def shuffle(rows):
        random.Random(1).shuffle(rows)
        rows.pop(next(place for place, row in enumerate(rows) if row["question"]))

    change(copy, "retain95+tofu", shuffle)
    bench = CLEAR(root=str(copy))
    unknown = [example for example in bench.splits().retain if not example.subject]
    assert [example.question[:22] for example in unknown] == ["In which city does the"]
    assert all(each.subject == owner(each) for each in bench.splits().retain if each.subject)
    assert bench.problems() == {"question of which it is not known whom it is about (retain95+tofu)": 1}


def test_shuffled_whole_blocks_have_no_majority(copy):
    change(copy, "forget10+tofu", lambda rows: random.Random(2).shuffle(rows))
    found = CLEAR(root=str(copy), forget_ratio="10").splits().forget
    assert [each.subject for each in found] == [owner(each) for each in found]


def test_in_any_order_nobody_of_the_other_split_is_taken_for_the_subject(copy):
    forget = forgotten("1").pop()

    def edit(rows):
        random.Random(3).shuffle(rows)
        first = next(row for row in rows if row["question"])
        first.update(question="Who is the best friend?", answer=f"{forget} is.")

    change(copy, "retain99+tofu", edit)  # whose names are found in `data`, together with everybody's
    bench = CLEAR(root=str(copy), forget_ratio="1")
    assert forget not in {example.subject for example in bench.splits().retain}
    assert sum(bench.problems().values()) == 2  # and the one that names nobody


def test_pictures_saved_anew_are_known_by_caption_and_new_captions_by_the_name_in_them(copy):
    def edit(rows):
        for row in rows:
            if row["image"]:
                row["image"]["bytes"] += b"\0"  # behind the end of the picture: other bytes, same pixels
        rows[1]["caption"] = "Nobody is named here."
        name = next(name for name in forgotten("5") if name in rows[0]["caption"])
        rows[0]["caption"] = f"Somebody called {'  '.join(name.upper().split())}."

    expected = [example.subject for example in CLEAR(root=str(copy)).splits().forget]
    change(copy, "forget05", lambda rows: rows[1].update(caption="Nobody is named here."))
    change(copy, "forget05+tofu", edit)
    bench = CLEAR(root=str(copy))
    assert [example.subject for example in bench.splits().forget] == expected
    assert bench.problems() == {}


def test_one_picture_under_two_names_is_settled_by_its_caption(copy):
    rows = pq.read_table(copy / "forget05" / FILE).to_pylist()
    first, last = 0, len(rows) - 1
    names = rows[first]["name"], rows[last]["name"]
    assert names[0] != names[1]

    def same_picture(rows):
        rows[last]["image"] = rows[first]["image"]
        rows[first]["caption"], rows[last]["caption"] = "One of two.", "The other one."

    for folder in ("forget05", "forget05+tofu"):
        change(copy, folder, same_picture)
    found = {each.answer: each.subject for each in CLEAR(root=str(copy)).splits().forget if each.image}
    assert (found["One of two."], found["The other one."]) == names


@pytest.mark.parametrize("kept", ["data", "default", "full"])
def test_names_are_found_in_any_folder_that_has_them(copy, kept):
    (copy / "data").rename(copy / "named")
    for folder in ("full", "forget05", "retain95"):
        shutil.rmtree(copy / folder)
    (copy / "named").rename(copy / kept)
    splits = CLEAR(root=str(copy)).splits()
    assert {each.subject for each in splits.forget} == forgotten("5")
    assert all(each.subject == owner(each) for each in splits.retain)


def test_without_names_training_works_and_recognition_says_what_is_missing(copy):
    for folder in ("data", "full", "forget05"):
        shutil.rmtree(copy / folder)
    bench = CLEAR(root=str(copy))
    assert {each.subject for each in bench.splits().forget} == {""}
    assert bench.problems()["no folder with names of the people (forget05)"] == 1
    fails(bench, "forget05_perturbed", "No names are known", "data/")


def test_a_repeated_or_right_wrong_option_is_left_out_and_counted(copy):
    def edit(rows):
        rows[0]["perturbed_names"] += [rows[0]["name"].lower(), rows[0]["perturbed_names"][0]]

    change(copy, "forget05_perturbed", edit)
    bench = CLEAR(root=str(copy))
    assert len(bench.tasks(("forget",))[0].examples[0].choices) == 4
    assert bench.problems() == {"options that repeat each other (forget05_perturbed)": 1}


# Errors -------------------------------------------------------------------------------------------------------------


def fails(bench, *needles, splits=("forget",)):
    with pytest.raises(DataError) as error:
        bench.tasks(splits)
    for needle in needles:
        assert needle in str(error.value)


def training_fails(bench, *needles):
    splits = bench.splits()
    with pytest.raises(DataError) as error:
        _ = splits.forget
    for needle in needles:
        assert needle in str(error.value)


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        ({"image": None, "caption": None}, "has nothing"),
        ({"image": None}, "has caption"),
        ({"caption": " "}, "'caption' is missing or empty"),
        ({"question": "Who?", "answer": "Ann."}, "has image, caption, question, answer"),
        ({"answer": "Ann."}, "has image, caption, answer"),
        ({"image": {"bytes": b"", "path": "x.png"}, "caption": None, "question": "Who?"}, "has question"),
        ({"image": {"bytes": b"no picture", "path": None}}, "cannot be decoded"),
    ],
)
def test_a_row_that_is_neither_or_both_is_named(copy, values, needle):
    change(copy, "forget05+tofu", lambda rows: rows[3].update(values))
    training_fails(CLEAR(root=str(copy)), "forget05+tofu", FILE, "row 3", needle)


@pytest.mark.parametrize(
    ("folder", "column"),
    [("forget05+tofu", "caption"), ("forget05_perturbed", "perturbed_names"), ("forget05_perturbed", "name")],
)
def test_missing_column(copy, folder, column):
    path = copy / folder / FILE
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    fails(CLEAR(root=str(copy)), str(path), f"{column!r} is missing", "See data.root.")


@pytest.mark.parametrize("folder", ["forget05+tofu", "forget05_perturbed", "forget05"])
def test_truncated_file(copy, folder):
    path = copy / folder / FILE
    path.write_bytes(path.read_bytes()[:2000])
    fails(CLEAR(root=str(copy)), str(path), "not a complete Parquet file")


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("forget", "forget05+tofu"), ("forget", "forget05_perturbed"), ("retain", "retain95+tofu"),
        ("retain", "retain_perturbed"), ("real", "real_faces"), ("general", "real_world"),
    ],
)  # fmt: skip
def test_missing_folder_names_its_neighbours(copy, split, folder):
    shutil.rmtree(copy / folder)
    fails(CLEAR(root=str(copy)), folder, "no Parquet files", "data.root", "therem/CLEAR", splits=(split,))
    others = [each for each in ("forget", "retain", "real", "general") if each != split]
    assert CLEAR(root=str(copy)).tasks(others)


def test_only_the_folders_of_the_asked_groups_are_read(copy):
    for folder in [each for each in copy.iterdir() if each.is_dir() and not each.name.startswith("forget05")]:
        shutil.rmtree(folder)
    bench = CLEAR(root=str(copy))
    assert [task.name for task in bench.tasks(("forget",))] == TASKS[:3]
    assert len(bench.splits().forget) == 48
    fails(bench, "real_faces", splits=("real",))


@pytest.mark.parametrize("names", [None, [], ["", "Ann Lee"], ["same"]])
def test_options_that_leave_no_choice(copy, names):
    def edit(rows):
        rows[2]["perturbed_names"] = [rows[2]["name"]] if names == ["same"] else names

    change(copy, "forget05_perturbed", edit)
    fails(CLEAR(root=str(copy)), "forget05_perturbed", "row 2", "'perturbed_names'")


def test_a_picture_or_an_answer_is_missing(copy):
    change(copy, "real_faces", lambda rows: rows[1].update(image=None))
    fails(CLEAR(root=str(copy)), "real_faces", "row 1", "the image is missing", splits=("real",))
    change(copy, "real_world", lambda rows: rows[2].update(question=""))
    fails(CLEAR(root=str(copy)), "real_world", "row 2", "'question' is missing or empty", splits=("general",))


def test_perturbed_folder_of_other_people(copy):
    change(copy, "forget05_perturbed", lambda rows: [row.update(name=f"{row['name']}x") for row in rows])
    fails(CLEAR(root=str(copy)), "forget05_perturbed", "none of the people of forget05+tofu")


def test_no_questions_of_a_modality(copy):
    change(copy, "forget05+tofu", lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["image"]]))
    training_fails(CLEAR(root=str(copy), modality=Modality.text), "forget05+tofu", "no text questions")


def test_missing_root(tmp_path):
    fails(CLEAR(root=str(tmp_path / "no")), str(tmp_path / "no"), "data.root")


# The hub ------------------------------------------------------------------------------------------------------------


def test_offline_without_cache_says_how_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    training_fails(CLEAR(), "therem/CLEAR", "data.root=/path/to/CLEAR")


def test_only_needed_folders_are_asked_from_the_hub(clear_root, monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, *, repo_type, allow_patterns, local_files_only):
        asked.append((repository, repo_type, *allow_patterns, local_files_only))
        return str(clear_root)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmunlearn.benchmarks.mllmu_files.snapshot_download", snapshot)
    assert len(CLEAR().splits().forget) == 48
    assert asked == [("therem/CLEAR", "dataset", f"{folder}/*", True) for folder in ("forget05+tofu", "forget05")]


def test_a_copy_in_the_working_folder_is_found(clear_root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/CLEAR").symlink_to(clear_root)
    assert len(CLEAR().splits().forget) == 48


# On to the model ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_training_and_evaluation_with_a_model(clear_root, model, processor, tmp_path):
    bench = CLEAR(root=str(clear_root))
    encoder = encoder_for(processor, max_length=512)
    splits = bench.splits()
    for example in (*splits.forget, *splits.retain):
        encoded = encoder(example)
        supervised = encoded.inputs["input_ids"][0][encoded.labels != IGNORE]
        assert processor.tokenizer.decode(supervised, skip_special_tokens=True).strip() == example.answer
        assert ("pixel_values" in encoded.inputs) == (example.image is not None)
    run = Run(tmp_path / "evaluation")
    write_json(run.model_card, {"fingerprint": "tiny", "role": "base", "method": "none", "seed": 0})
    asker = Asker(model=model.eval(), encoder=encoder, batch_size=4, device=model.device)
    for task in chosen_tasks(bench, ("forget", "retain", "real", "general", "holdout"), 2):
        predict_all(asker, [Asked(task=task, run=run, model="tiny", settings={})])
        scores = score_task(run, task, Choice.text)
        assert scores[primary_metric(task.name)]["count"] == 2
        assert 0 <= scores[primary_metric(task.name)]["value"] <= 1
