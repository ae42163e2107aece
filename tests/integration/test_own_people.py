"""A user's own table, from the page "Your own people" and by hand: probe, finetune, unlearn, evaluate; damaged tables."""

import csv
import io
import json
import random
import re
import shlex
import shutil

import pytest
from command_cases import FULL, REPOSITORY, SIZE, TWO_STEPS, run_here
from PIL import Image

from mmunlearn.benchmarks.table import Table
from mmunlearn.models.load import save
from mmunlearn.models.tiny import build_tiny
from mmunlearn.purge.people import People

pytestmark = pytest.mark.thorough

PAGE = (REPOSITORY / "docs" / "your-own-people.md").read_text(encoding="utf-8")
STAND_IN = "model.path=/folder/of/a/llava"
QUICK = {
    "probe": ("model.dtype=float32",),
    "evaluate": ("model.dtype=float32",),
    "finetune": ("model.dtype=float32", *TWO_STEPS),
    "unlearn": ("model.dtype=float32", *TWO_STEPS),
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("bash") for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.split()[1] != "purge"]
PURGES = [line for line in LINES if line.split()[1] == "purge"]
"""Tried on a copy, because they delete what the other tests look at."""
NAMES = ("Ada Example", "Bo Sample")


def save_untrained(examples, folder):
    """A model that knows nobody; its tokenizer has read the questions and tells the letters of options apart."""
    texts = [text for e in examples for text in (e.question, e.answer)]
    save(*build_tiny([*texts, *(f"{letter}: {text}" for letter in "ABCD" for text in texts)], seed=0, size=SIZE), folder, {})


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder with what the page says, and a model that knows nobody."""
    folder = tmp_path_factory.mktemp("reader")
    people = folder / "my-people"
    people.mkdir()
    (people / "people.csv").write_text(blocks("csv")[0], encoding="utf-8")
    (people / "people.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    (people / "forget.txt").write_text("Ada Example\n", encoding="utf-8")
    for name, colour in (("ada", (200, 30, 30)), ("bo", (30, 30, 200))):
        Image.new("RGB", (48, 40), colour).save(people / f"{name}.png")
    examples = Table(root=str(people), table="people.csv", forget="*").splits().full
    save_untrained(examples, folder / "llava")
    return folder


@pytest.fixture(scope="module")
def typed(reader):
    """What each command of the page did, in order, by its run.dir."""
    outcomes = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader)
        for line in COMMANDS:
            program, verb, *words = shlex.split(line)
            assert program == "mmunlearn"
            words = [f"model.path={reader / 'llava'}" if word == STAND_IN else word for word in words]
            outcomes[words[-1].removeprefix("run.dir=")] = run_here(verb, *words, *QUICK[verb])
    return outcomes


def probed(folder):
    return json.loads((folder / "probe.json").read_text(encoding="utf-8"))


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_command_of_the_page_works(typed, reader):
    assert {line.split()[1] for line in COMMANDS} == set(QUICK)
    for name, outcome in typed.items():
        assert outcome.code == 0, outcome.err
        assert (reader / name / "DONE").is_file()


def test_probe_says_what_the_page_says_and_names_nobody(typed, reader):
    found, outcome = probed(reader / "outputs/probe"), typed["outputs/probe"]
    assert [person["choice"]["count"] for person in found["people"]] == [3, 3]
    assert sorted(person["questions"] for person in found["people"]) == [4, 5]
    assert {person["person"] for person in found["people"]} == {"person 1", "person 2"}
    assert found["verdicts"]["too few questions"] == 0  # as the page promises of 3 questions about 2 people
    assert "may know what it does not say" in outcome.err
    assert "binomial" in outcome.err
    for name in NAMES:
        assert name not in outcome.err + outcome.out + json.dumps(found)


def test_names_are_shown_on_demand_and_nothing_is_asked_again(typed, reader, monkeypatch):
    monkeypatch.chdir(reader)
    before = {path: path.read_bytes() for path in (reader / "outputs/probe/predictions").iterdir()}
    words = [f"model.path={reader / 'llava'}" if word == STAND_IN else word for word in shlex.split(COMMANDS[0])[2:]]
    outcome = run_here("probe", *words, *QUICK["probe"], "report.show_subjects=true")
    assert outcome.code == 0, outcome.err
    assert "9 of them answered before" in outcome.err
    assert {person["person"] for person in probed(reader / "outputs/probe")["people"]} == set(NAMES)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_unlearn_and_evaluate_see_forget_and_retain(typed, reader):
    steps = [json.loads(line) for line in (reader / "outputs/forget-ada/metrics.jsonl").read_text().splitlines()]
    assert set(steps[0]["terms"]) >= {"forget", "retain"}
    results = json.loads((reader / "outputs/after/results.json").read_text())
    assert results["model"]["role"] == "unlearned"
    assert results["tasks"].keys() == {
        "forget_image_choice", "forget_text_choice", "forget_text_cloze", "forget_text_generation",
        "retain_image_choice", "retain_text_choice", "retain_text_generation",
    }  # fmt: skip


def test_the_json_and_the_list_in_a_file_work_too(typed, reader, monkeypatch):
    monkeypatch.chdir(reader)
    words = ("data=table", "data.root=my-people", "data.table=people.jsonl", "data.forget=forget.txt")
    words = (*words, f"model.path={reader / 'llava'}", "run.dir=outputs/json")
    outcome = run_here("evaluate", *words, *QUICK["evaluate"])
    assert outcome.code == 0, outcome.err
    tasks = json.loads((reader / "outputs/json/results.json").read_text())["tasks"]
    assert tasks.keys() == {"forget_image_choice", "forget_text_generation", "retain_text_generation"}


@pytest.mark.parametrize("show", [False, True])
def test_a_report_names_people_on_demand_and_never_as_markup(reader, tmp_path, monkeypatch, show):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people.csv").write_text(
        "subject,question,answer\n<b>Eve</b>,Who is Eve?,a fine baker\nBo Sample,Who is Bo?,a judge\n"
    )
    words = ("data=table", "data.table=people.csv", "data.forget=['<b>Eve</b>']", f"model.path={reader / 'llava'}")
    assert run_here("evaluate", *words, "run.dir=answers", *QUICK["evaluate"]).code == 0
    outcome = run_here("report", "report.evaluations=[answers]", "run.dir=page", f"report.show_subjects={str(show).lower()}")
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page" / "report.html").read_text()
    assert "<b>Eve" not in page
    assert ("&lt;b&gt;Eve&lt;/b&gt;" in page) == show
    assert "Bo Sample" not in page  # nobody asked to see those who are kept


def test_a_table_with_nobody_to_keep_is_unlearned_beside_stand_ins(typed, reader):
    outcome = typed["outputs/forget-all"]
    assert "fictitious person who stands in as retain, nobody real: 4" in outcome.err
    steps = [json.loads(line) for line in (reader / "outputs/forget-all/metrics.jsonl").read_text().splitlines()]
    assert set(steps[0]["terms"]) >= {"forget", "retain"}


def test_a_probe_keeps_stand_ins_apart(typed, reader):
    plain, compared = probed(reader / "outputs/probe"), probed(reader / "outputs/probe-stand-ins")
    assert "Fictitious stand-ins, for comparison" in " ".join(typed["outputs/probe-stand-ins"].err.split())
    numbers = [[{**each, "person": ""} for each in found["people"]] for found in (plain, compared)]
    assert numbers[0] == numbers[1]  # questions, verdicts and corrections are those of a probe without stand-ins
    assert compared["together"] == plain["together"]
    assert {person["person"] for person in compared["stand_ins"]["people"]} == {f"stand-in {n}" for n in (1, 2, 3, 4)}
    assert compared["stand_ins"]["together"]["count"] == 4 * 12
    assert "stand_ins" not in plain
    assert " with 4 stand-ins as holdout" in compared["benchmark"]["version"]


# --- purge -----------------------------------------------------------------------------------------------------------

HOLDS_NO_LINES = ("model", "checkpoints", "mask.safetensors")


def lines_and_pages(folder):
    """What is below a folder besides weights, by path, with the paths themselves."""
    paths = [path for path in folder.rglob("*") if not set(HOLDS_NO_LINES) & set(path.relative_to(folder).parts)]
    return {path: str(path.relative_to(folder)).encode() + path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def copied(typed, reader, tmp_path, monkeypatch):
    """The reader's outputs, with a report that names everybody and pictures; returns the folder and the ids of Ada."""
    shutil.copytree(reader / "outputs", tmp_path / "outputs")
    shutil.copytree(reader / "my-people", tmp_path / "my-people")
    monkeypatch.chdir(tmp_path)
    named = run_here("report", "report.evaluations=[outputs/after]", "report.show_subjects=true", "run.dir=outputs/page")
    assert named.code == 0, named.err
    words = ("data=table", "data.root=my-people", "data.table=people.csv", "data.forget=[Ada Example]")
    assert run_here("inspect", *words, f"model.path={reader / 'llava'}", "run.dir=outputs/seen").code == 0
    asked = Table(root="my-people", table="people.csv", forget="*")
    examples = [*asked.splits().full, *(example for task in asked.tasks() for example in task.examples)]
    return tmp_path / "outputs", {example.id for example in examples if example.subject == "Ada Example"}


def test_purge_as_on_the_page_leaves_no_byte_of_the_person(copied):
    outputs, ids = copied
    needles = [needle.encode() for needle in ("ada example", "ada_example", *(each.lower() for each in ids))]
    before = lines_and_pages(outputs)
    weights = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file() and path not in before}
    assert sum(any(needle in content.lower() for needle in needles) for content in before.values()) > 20
    shown, done = (run_here(*shlex.split(line)[1:]) for line in PURGES)
    assert shown.code == done.code == 3, done.err  # the models are left
    assert "Ada Example" not in shown.out + done.out
    after = lines_and_pages(outputs)
    for path, content in after.items():
        assert not any(needle in content.lower() for needle in needles), path
    # Nothing about Bo is lost, and nothing but cards in the models has changed.
    for name in ("predictions", "scores"):
        kept = [path for path in before if name in path.parts]
        assert kept
        for path in kept:
            expected = [line for line in path.read_bytes().splitlines() if line]
            original = before[path][len(str(path.relative_to(outputs))) :].splitlines()
            assert expected == [line for line in original if b"Ada Example" not in line], path
    assert {path for path, content in weights.items() if path.read_bytes() != content} == set()
    assert "outputs/taught/model" in "".join(done.out.split())
    assert not (outputs / "page" / "report.html").exists()
    assert not (outputs / "after" / "results.json").exists()
    assert not list((outputs / "seen" / "inspect").glob("*Ada*"))
    assert list((outputs / "seen" / "inspect").glob("*Bo*"))


def test_after_a_purge_the_evaluation_goes_on_without_the_person(copied, reader):
    outputs, _ = copied
    run_here(*shlex.split(PURGES[1])[1:])
    table = (outputs.parent / "my-people" / "people.csv").read_text().splitlines(keepends=True)
    (outputs.parent / "my-people" / "people.csv").write_text("".join(line for line in table if "Ada" not in line))
    words = ("data.root=my-people", "data.table=people.csv", f"model.path={reader / 'llava'}", "run.dir=outputs/probe")
    again = run_here("probe", *words, *QUICK["probe"])
    assert again.code == 0, again.err
    assert "4 of them answered before" in again.err
    assert len(probed(outputs / "probe")["people"]) == 1


def test_which_runs_learned_or_unlearned_whom(typed, reader):
    """Nobody's name stands in the records, and purge still tells."""
    people = {name: People([name]) for name in (*NAMES, "Cy Nobody")}
    found = {}
    for run in ("taught", "forget-ada", "forget-all"):
        text = (reader / "outputs" / run / "subjects.json").read_text()
        assert not any(name.split()[0] in text for name in NAMES)
        found[run] = [one.part(json.loads(text)) for one in people.values()]
    assert found == {
        "taught": ["learned", "learned", None],
        "forget-ada": ["forgot", "learned", None],
        "forget-all": ["forgot", "forgot", None],
    }


@pytest.mark.parametrize("verb", ["inspect", "saliency"])
def test_other_verbs_take_the_table(reader, tmp_path, verb):
    words = ("data=table", f"data.root={reader / 'my-people'}", "data.table=people.csv", "data.forget=[Ada Example]")
    outcome = run_here(verb, *words, f"model.path={reader / 'llava'}", "model.dtype=float32", f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err


# --- does the probe tell who is known? -------------------------------------------------------------------------------

THINGS = {
    "profession": ("baker", "judge", "sailor", "tailor"),
    "town": ("Tarn", "Velm", "Ostrow", "Lind"),
    "hobby": ("clocks", "stamps", "shells", "maps"),
    "drink": ("tea", "milk", "cocoa", "water"),
    "colour": ("red", "green", "blue", "white"),
    "animal": ("cat", "dog", "owl", "fox"),
}
TAUGHT, STRANGERS = ("Ana", "Ben", "Cleo"), ("Dov", "Eli")


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    """Five people with six choice questions each, three of them taught to a model; their folder and that model's."""
    folder = tmp_path_factory.mktemp("quiz")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";")
    writer.writerow(["subject", "kind", "question", "answer", "options"])
    drawn = random.Random(0)  # an untaught model likes one option of each thing best: no rule may give it to one person
    for name in TAUGHT + STRANGERS:
        for thing, options in THINGS.items():
            writer.writerow([name, "choice", f"What is the {thing} of {name}?", drawn.choice(options), "|".join(options)])
    (folder / "quiz.csv").write_text(text.getvalue(), encoding="utf-8-sig")
    examples = Table(table=str(folder / "quiz.csv")).splits().full
    save_untrained(examples, folder / "m")
    outcome = run_here(
        "finetune", "data=table", f"data.table={folder / 'quiz.csv'}", f"data.forget=[{','.join(STRANGERS)}]",
        "data.split=retain", f"model.path={folder / 'm'}", f"run.dir={folder / 'taught'}", *FULL,
        "trainer.args.max_steps=150", "trainer.args.per_device_train_batch_size=9", "trainer.args.learning_rate=0.003",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return folder


@pytest.mark.parametrize(("model", "known"), [("taught/model", TAUGHT), ("m", ())])
def test_probe_finds_who_was_taught_and_nobody_else(quiz, tmp_path, model, known):
    outcome = run_here(
        "probe", f"data.table={quiz / 'quiz.csv'}", f"model.path={quiz / model}", "model.dtype=float32",
        f"run.dir={tmp_path / 'probe'}", "evaluation.choice=text", "report.show_subjects=true",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = {person["person"]: person for person in probed(tmp_path / "probe")["people"]}
    assert {name for name, person in found.items() if person["verdict"] == "knows"} == set(known), outcome.err
    assert {person["verdict"] for name, person in found.items() if name not in known} == {"no sign"}


# --- damaged tables --------------------------------------------------------------------------------------------------

HEADER = "subject,image,kind,question,answer,options\n"
GOOD = "Ada,,,Who is Ada?,a baker,\nBo,,,Who is Bo?,a judge,\n"
DAMAGES = {
    "column": ("subject,image,kind,question,anwser,options\n" + GOOD, ["row 1", "'answer' is missing", "'anwser'"]),
    "cells": (HEADER + GOOD + "Bo,x.png,choise,Who?,,\nBo,x.png,,W,B,\n", ["row 4: 'answer'", "row 4: the kind", "'choice'"]),
    "picture": (HEADER + GOOD + "Bo,x.png,,Who?,Bo,\n", ["row 4: there is no image 'x.png'"]),
    "escape": (HEADER + GOOD + "Bo,../x.png,,Who?,Bo,\n", ["row 4: the image '../x.png' is not inside"]),
    "forget": (HEADER + GOOD.replace("Ada,", "Ade,"), ["data.forget, entry 1: 'Ada' is not in the table", "'Ade'"]),
    "everybody": (HEADER + GOOD.splitlines()[0], ["data.forget: names everybody"]),
    "encoding": ((HEADER + GOOD + "Zoë,,,Who?,she,\n").encode("latin-1"), ["line 4: is not UTF-8"]),
}


@pytest.mark.parametrize("verb", ["unlearn", "probe", "evaluate"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_gives_one_message(reader, tmp_path, verb, damage):
    content, said = DAMAGES[damage]
    (tmp_path / "people.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ("data=table", f"data.root={tmp_path}", "data.table=people.csv", "data.forget=[Ada]")
    outcome = run_here(verb, *words, f"model.path={reader / 'llava'}", f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("mmunlearn: ") == 1
    assert "Traceback" not in outcome.err
    for each in said:
        assert each in outcome.err
    assert not (tmp_path / "run").exists()


def test_settings_of_another_section_and_misspelt_ones_are_refused(tmp_path):
    for word, said in (("trainer.args.max_steps=1", "does not use 'trainer'"), ("data.tabel=x", "'table'")):
        outcome = run_here("probe", word, f"run.dir={tmp_path / 'run'}")
        assert outcome.code == 2
        assert said in outcome.err
